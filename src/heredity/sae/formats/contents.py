"""Settings and tensors of a folder, each taken by name; what nobody took and is not neutral is refused by name.

A key that a reader does not know may change what an SAE computes, as `normalize_activations` does, and so may a tensor.
Readers therefore take what they use and list what means nothing for values; `refuse_rest` settles all others.
"""

from __future__ import annotations

import json
import pickle
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeGuard, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

T = TypeVar("T")
_LONGEST = 80  # characters of a value in a message


class FormatError(ValueError):
    """A folder that holds no SAE we can read, or an SAE that a format cannot hold."""


def keys(words: str) -> frozenset[str]:
    """Keys that mean nothing for what an SAE computes, with blanks between them."""
    return frozenset(words.split())


def shown(value: object) -> str:
    """A value of a settings file as a message shows it."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def is_factor(value: object) -> TypeGuard[float]:
    """Whether a setting is a number above 0 that weights can be multiplied by."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e30


def _neutral(key: str, value: object) -> bool:
    """Whether a setting leaves things as they are, whatever it is for: none, off, nothing, and 1 for a factor."""
    if isinstance(value, str):
        return value.lower() in ("", "none", "not_in_use")
    if isinstance(value, list):
        return all(one is None for one in value)
    return not value or ("factor" in key and value == 1)


class Settings:
    """A table of a settings file, from which keys are taken."""

    def __init__(self, path: Path, values: Mapping[str, Any], place: str = "") -> None:
        self.path, self.values, self.place, self.taken = path, values, place, set[str]()

    @staticmethod
    def read(path: Path, beside: str = "the weights") -> Settings:
        """Those of a JSON file that lies beside another.

        Raises FormatError for a file that is missing, is not JSON or holds no table.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FormatError(f"{path} is missing beside {beside}; copy the whole folder") from None
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"{path} is not readable JSON ({error}); copy it anew") from None
        if not isinstance(values, dict):
            raise FormatError(f"{path} holds no table of settings; copy it anew")
        return Settings(path, values)

    def get(self, *keys: str, default: Any = None) -> Any:
        """The first of these keys that is given and not null."""
        self.taken.update(keys)
        return next((self.values[key] for key in keys if self.values.get(key) is not None), default)

    def table(self, key: str) -> Settings:
        """A table inside this one, empty where there is none."""
        value = self.get(key, default={})
        if not isinstance(value, dict):
            raise FormatError(f"{self.path}: {self.place}{key}={shown(value)} is not a table; repair it")
        return Settings(self.path, value, f"{self.place}{key}.")

    def choice(self, key: str, known: Mapping[str, T], default: str | None = None) -> T:
        """What a name stands for. Raises FormatError, with the names known, for any other."""
        value = self.get(key, default=default)
        if not isinstance(value, str) or value not in known:
            self.refuse(key, f"is not supported; give one of {', '.join(known)}", value)
        return known[value]

    def refuse(self, key: str, why: str, value: Any = None) -> NoReturn:
        """Raise FormatError about a key."""
        value = self.values.get(key) if value is None else value
        raise FormatError(f"{self.path}: {self.place}{key}={shown(value)} {why}")

    def check_sizes(self, weights: Path, sizes: Mapping[str, int]) -> None:
        """Raise FormatError for a size that is given, and is another than that of the weights; 0 says none."""
        for key, size in sizes.items():
            if (given := self.values.get(key)) and given != size:
                both = f"and the weights beside it, {weights.name}, have {size}"
                self.refuse(key, f"{both}; they belong to different SAEs: copy both anew")

    def refuse_rest(self, silent: Collection[str]) -> None:
        """Raise FormatError for the first key that was not taken, is not silent, and is not neutral."""
        for key, value in self.values.items():
            if key not in self.taken and key not in silent and not _neutral(key, value):
                self.refuse(
                    key, "is not known, and may change what the SAE computes; take the key out if it does not, or save "
                    "the SAE with SAELens and read that"
                )  # fmt: skip


class Tensors:
    """Weights of one file (safetensors, torch's `weights_only` pickles, npz), taken one by one with shapes checked."""

    def __init__(self, path: Path) -> None:
        self.path, self.taken = path, set[str]()
        try:
            if path.suffix == ".npz":
                with np.load(path) as arrays:
                    self.named: Any = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
            else:
                pickled = path.suffix in (".pt", ".pth")
                self.named = torch.load(path, map_location="cpu", weights_only=True) if pickled else load_file(path)
        except (
            SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError,
            KeyError, TypeError, zlib.error, MemoryError
        ) as error:  # fmt: skip
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise FormatError(f"{path} is damaged or not a file of weights ({reason}); copy it anew") from None
        if not isinstance(self.named, dict):
            raise FormatError(f"{path} holds no named weights; give a file written by the library's own save")

    def __contains__(self, name: str) -> bool:
        return name in self.named

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A tensor as float32; None in the shape stands for any size."""
        self.taken.add(name)
        tensor = self.named.get(name)
        if not isinstance(tensor, Tensor):
            raise FormatError(f"{self.path} has no {name} (it has {', '.join(map(str, self.named))}); copy it anew")
        if len(shape) != tensor.dim() or any(s not in (None, n) for s, n in zip(shape, tensor.shape, strict=True)):
            wanted = ["any" if s is None else s for s in shape]
            raise FormatError(f"{self.path}: {name} is {list(tensor.shape)} instead of {wanted}; check its format")
        tensor = tensor.float()
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{self.path}: {name} holds NaN or infinity; use a checkpoint from before it diverged")
        return tensor

    def matrices(self, enc: str, dec: str) -> tuple[Tensor, Tensor]:
        """Encoder and decoder, one of the shape of the other's transpose."""
        w_enc, w_dec = self.take(enc, None, None), self.take(dec, None, None)
        if w_enc.shape != w_dec.T.shape:
            shapes = f"{enc} is {list(w_enc.shape)} and {dec} {list(w_dec.shape)}"
            turned = "; one of them is turned" if w_enc.shape == w_dec.shape else ""
            raise FormatError(
                f"{self.path}: {shapes}, and each must be the other's transpose{turned}: check its format"
            )
        return w_enc, w_dec

    def refuse_rest(self, what: str, silent: Collection[str] = ()) -> None:
        """Raise FormatError, by name, for tensors that were not taken: `what` they were looked for in has no use."""
        rest = [str(name) for name in self.named if name not in self.taken and name not in silent]
        if rest:
            named = f"{self.path} holds {', '.join(rest[:8])}, and {what} has no use for {rest[0]}"
            raise FormatError(f"{named}; name the kind of SAE that it belongs to, or give another file")
