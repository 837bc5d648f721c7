"""Ranks: processes of one command that were started together, by a launcher such as `torchrun --nproc-per-node 2 -m
heredity` or by a cluster's tasks.

All ranks go through the same work on the same state. Of what can be divided each does its share, and all exchange what
they made, so that every rank holds the whole, to the bit what one process makes of it. Torch is imported in functions
only: reading arguments needs none.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import distributed as dist

_EXCHANGE = timedelta(minutes=30)  # longest that ranks at the same work may be apart
_LOOK = timedelta(seconds=1)  # between two looks for a signal while another rank works alone
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}  # a machine that is cut off is missed in 90 s
_PIECE = 2**26  # bytes of a file that are sent at once
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What a launcher sets. Taken away, or else a library that a rank uses alone would wait for the others in it.
_SET = (*_NEEDED, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE")


_GONE = (
    "another process of this command has ended, or cannot be reached; what it said last tells why, and the same "
    "command goes on from here"
)


class RankError(ValueError):
    """Another rank has ended, or works on something else."""


class Ranks:
    """This process alone."""

    number, count = 0, 1

    def edges(self, n: int) -> list[int]:
        """Where the share of each rank in n pieces begins, and where the last one ends; the last is never empty."""
        return [n * rank // self.count for rank in range(self.count + 1)]

    def own(self, n: int) -> tuple[int, int]:
        """Where the share of this rank begins and ends."""
        first, stop = self.edges(n)[self.number : self.number + 2]
        return first, stop

    def fill(self, whole: np.ndarray, edges: Sequence[int]) -> None:
        """Give all ranks all rows of an array, of which each has made those from its edge to the next."""

    def told(self, value: Any, by: int = 0) -> Any:  # noqa: ARG002
        """The value, JSON, that one rank gives here; the others wait for it, however long that takes."""
        return value

    def agree(self, figure: int, place: str) -> None:
        """Raise RankError at a place where ranks that should do the same have come to different figures."""

    def meet(self) -> None:
        """Wait until every rank has come here."""
        self.fill(np.zeros(self.count), range(self.count + 1))

    def copy(self, folder: Path) -> None:
        """Put the files of the first rank's folder into the folder that each other rank gives here."""
        if self.count == 1:
            return
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        for name, size in self.told(sizes).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb" if self.number else "rb") as file:
                for start in range(0, size, _PIECE):
                    piece = np.empty(min(_PIECE, size - start), np.uint8)
                    if not self.number:
                        piece[:] = np.frombuffer(file.read(len(piece)), np.uint8)
                    self.fill(piece, [0] + [len(piece)] * self.count)
                    if self.number:
                        file.write(piece.data)


ALONE = Ranks()


class _Several(Ranks):
    """One of several processes, which exchange arrays by Gloo and words through a store that all have joined.

    The group is this object's own: other libraries see no distributed torch.
    """

    def __init__(self, store: dist.Store, number: int, size: int, address: str) -> None:
        """address: of this machine, as the others reach it."""
        import torch.distributed as dist

        self.number, self.count, self._turns = number, size, count()
        self._store: Any = store
        # Nobody accepts here: the system answers for this process as long as it is there, and hangs up when it is gone.
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._there = socket.create_server((address, 0), family=family, backlog=size)
        self._lines: dict[int, socket.socket] = {}
        store.set(f"there/{number}", json.dumps(self._there.getsockname()[:2]))
        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()  # else Gloo would guess the address from the machine's name, often loopback
        options._devices, options._timeout = [gloo.create_device(hostname=address)], _EXCHANGE
        self._group: Any = gloo(dist.PrefixStore("group", store), number, size, options)

    def fill(self, whole: np.ndarray, edges: Sequence[int]) -> None:
        import torch

        def exchange() -> None:
            parts = [torch.from_numpy(whole[first:stop]) for first, stop in zip(edges, edges[1:], strict=False)]
            sent = [self._group.broadcast(part, rank) for rank, part in enumerate(parts) if part.numel()]
            for one in sent:
                one.wait()

        _reached(exchange)

    def told(self, value: Any, by: int = 0) -> Any:
        name = f"told/{next(self._turns)}"
        if self.number == by:
            _reached(lambda: self._store.set(name, json.dumps(value)))
            return value
        while not _reached(lambda: self._here(name)):
            # A rank that is killed leaves the store as it is, and what all exchange by Gloo alone would notice.
            if not _reached(lambda: self._lives(by)):
                raise RankError(_GONE)
        return json.loads(_reached(lambda: self._store.get(name)))

    def _lives(self, rank: int) -> bool:
        """Whether the process of a rank is there."""
        try:
            if rank not in self._lines:
                line = socket.create_connection(json.loads(self._store.get(f"there/{rank}")), 60)
                line.setblocking(False)
                line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in _KEEPALIVE.items():
                    if hasattr(socket, option):  # of Linux
                        line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
                self._lines[rank] = line
            return self._lines[rank].recv(1) != b""  # which never sends anything
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Hang up, and let go of what torch has: its threads would end Python badly if they were there at its end."""
        for line in (self._there, *self._lines.values()):
            line.close()
        self._group = self._store = None

    def _here(self, name: str) -> bool:
        import torch.distributed as dist

        try:
            self._store.wait([name], _LOOK)
        except dist.DistNetworkError:
            raise
        except dist.DistStoreError:
            return False
        return True

    def agree(self, figure: int, place: str) -> None:
        figures = np.zeros(self.count, np.int64)
        figures[self.number] = figure
        self.fill(figures, range(self.count + 1))
        if len(set(figures.tolist())) > 1:
            raise RankError(
                f"{place}: the processes have come to different numbers; give them machines of one kind, with the same "
                "versions and the same number of threads each"
            )


def _reached(exchange: Callable[[], Any]) -> Any:
    """What an exchange gives; torch's errors of a lost connection in one line."""
    try:
        return exchange()
    except RuntimeError as error:
        raise RankError(_GONE) from error


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """The ranks that a launcher started, or this process alone where none did."""
    if not all(os.environ.get(name) for name in _NEEDED) or int(os.environ["WORLD_SIZE"]) < 2:
        yield ALONE
        return
    import torch.distributed as dist

    store, number, size = _reached(lambda: next(dist.rendezvous("env://", timeout=_EXCHANGE)))
    with socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), 60) as line:
        address = line.getsockname()[0]
    for name in _SET:
        os.environ.pop(name, None)
    with together(store, number, size, address) as made:
        del store  # `together` lets go of all else
        yield made


@contextlib.contextmanager
def together(store: dist.Store, number: int, size: int, address: str) -> Iterator[Ranks]:
    """This process as one of several that have joined a store.

    address: of this machine, as the others reach it.
    """
    made = _reached(partial(_Several, store, number, size, address))
    del store
    try:
        yield made
        made.told(None)  # once the first is done with what it does alone
        made.meet()  # before it ends, and the store with it
    finally:
        made.close()


def hosted(listener: socket.socket) -> dist.Store:
    """A store of this process, which others join where the socket listens, and nowhere else."""
    import torch.distributed as dist

    address, port = listener.getsockname()[:2]
    more: dict[str, Any] = {"is_master": True, "wait_for_workers": False, "master_listen_fd": listener.detach()}
    return dist.TCPStore(address, port, timeout=_EXCHANGE, **more)


def joined(address: str, port: int) -> dist.Store:
    """The store of another process."""
    import torch.distributed as dist

    return _reached(lambda: dist.TCPStore(address, port, timeout=_EXCHANGE, wait_for_workers=False))
