"""The tokenizer that every model of a study shares (byte-level BPE), and documents packed into one row of its tokens:
fixed blocks of it in a random order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from heredity.errors import one_of, reason, short
from heredity.study.places import fault_of
from heredity.text.letters import BYTE, spelled
from heredity.text.spoken import Roles, Spoken
from heredity.text.vocabularies import meaning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "merges.txt")
_CODE = (
    "it ships code, which is not run; read that code, then set trust_remote_code = true for the model in the study, or "
    "give --trust-remote-code"
)
_TRAINING_CHARACTERS = 32 * 2**20
_BATCH_CHARACTERS = 2**20
_ROUND = 10_000
_SPARSEST = 16  # ids for every token, at most
_FEISTEL_ROUNDS = 6
_DIALOGUES = "dialogues"  # name of an empty file beside the tokens
_SPOKEN = "spoken.npy"
_MOST_UNKNOWN = 0.5  # share of unknown tokens beyond which a study would be about nothing else

# Words and runs of signs with one space before them, digits one by one, line ends and indentation as runs of their
# own, so that "=" and " =" are tokens in any context. English endings such as 's only where a word ends, since
# 'text' is more often a string than a contraction.
_PIECES = (
    r"'(?:[sdmtSDMT]|ll|ve|re|LL|VE|RE)(?!\p{L})| ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def token_texts(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Text of every token as it stands within a text, by its id up to the highest.

    A token is decoded behind another, since decoders drop the space that a first word begins with. What is only a part
    of a character is given by its bytes, `<0xE7>`; `letters` puts those together. An id that stands for nothing is
    `#id`.
    """
    before = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"][-1:]
    known = {value: key for key, value in tokenizer.get_vocab().items()}

    def decoded(ids: list[list[int]]) -> list[str]:
        return tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)

    (start,) = decoded([before])
    texts = decoded([[*before, number] if number in known else before for number in range(max(known) + 1)])
    found = []
    for number, text in enumerate(texts):
        if number not in known:
            found.append(f"#{number}")
            continue
        within = text[len(start) :] if text.startswith(start) else decoded([[number]])[0]
        raw = _bytes_of(known[number]) if "\ufffd" in within else None
        found.append(within if raw is None else spelled(raw))
    return found


def _bytes_of(token: str) -> bytes | None:
    """Bytes of a token that is written byte by byte, as byte-level vocabularies and fallbacks do; None for another."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    if match := BYTE.fullmatch(token):
        return bytes.fromhex(match[1])
    signs = {sign: byte for byte, sign in bytes_to_unicode().items()}
    return bytes(signs[sign] for sign in token) if all(sign in signs for sign in token) else None


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, on the first 32 million characters of `texts` when there are more.

    Any text survives encoding and decoding. Digits are tokens of their own, no space is put in front, nothing is added
    at either end; `<|endoftext|>` (id 0) is the only special token: end, beginning and padding at once.
    Raises ValueError for no text, and a `vocab_size` that does not hold the 256 bytes and the special token.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise ValueError(f"vocab_size={vocab_size} is less than {len(alphabet)} bytes and one special token; raise it")
    texts = iter(texts)
    if (first := next(texts, None)) is None:
        raise ValueError("no text to train a tokenizer on; give the start model a corpus that holds documents")
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_prefix(chain([first], texts), _TRAINING_CHARACTERS), trainer)
    from transformers import PreTrainedTokenizerFast

    ends = dict.fromkeys(("eos_token", "bos_token", "pad_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **ends)


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """Tokenizer of a local folder, GGUF file or hub id; code that it ships is run only with `trust_remote_code`.

    Raises ValueError where it cannot be loaded, needs that code, is not of the fast kind, or has no end-of-text token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder, options = Path(name).expanduser(), {"revision": revision, "trust_remote_code": trust_remote_code}
    place = str(folder) if folder.exists() else name
    if folder.suffix == ".gguf" and folder.is_file():
        place, options["gguf_file"] = str(folder.parent), folder.name
    elif folder.is_dir():
        _check_tokenizer_files(name, folder)
    elif "@" in name and revision is None:
        place, _, options["revision"] = name.partition("@")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the parsers beneath raise what they like, and panics of Rust are no Exception
        why = f"cannot be loaded ({reason(error)}); check the folder, or id and network"
        if "trust_remote_code" in str(error) and not trust_remote_code:
            why = _CODE
        raise ValueError(f"tokenizer {name}: {why}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"tokenizer {name}: has no tokenizer.json; save it with a fast tokenizer first")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {name}: has no end-of-text token; set eos_token in its tokenizer_config.json")
    vocabulary = tokenizer.get_vocab()
    token = max(vocabulary, key=lambda one: vocabulary[one])
    if vocabulary[token] > _SPARSEST * len(vocabulary) + 2**16:  # tables by id would take all memory
        sizes = f"token {short(repr(token), 80)} has id {vocabulary[token]:,}, beyond its {len(vocabulary):,} tokens"
        raise ValueError(f"tokenizer {name}: {sizes}; copy tokenizer.json anew")
    return tokenizer


def _check_tokenizer_files(name: str, folder: Path) -> None:
    """That a folder holds a tokenizer, as files and not as pointers: transformers makes an empty one of no files."""
    files = [folder / file for file in _TOKENIZER_FILES if (folder / file).exists()]
    if not files:
        raise ValueError(
            f"tokenizer {name}: cannot be loaded: none of {', '.join(_TOKENIZER_FILES[:4])} is there; copy the "
            "tokenizer's files into the folder"
        )
    for file in files:
        if fault := fault_of(file):
            raise ValueError(f"tokenizer {name}: {fault}")


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 in hex of all that decides which ids text has, and of the special tokens."""
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    whole = [meaning(tokenizer), sorted(special.items())]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _prefix(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


@dataclass(frozen=True)
class PackedTokens:
    """Documents one after the other, each closed by the end-of-text token."""

    tokens: np.ndarray  # uint16 or uint32 [tokens], memory-mapped
    documents: np.ndarray  # int64 [documents + 1]: start of each document, and the end of the last
    dialogues: bool = False  # whether documents are kept whole in a block where they fit
    spoken: np.ndarray | None = None  # bool [tokens]: those that may be samples; None where all may
    _known: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)  # a memo, no state

    @classmethod
    def open(cls, path: Path) -> PackedTokens:
        """What `pack` wrote into a folder. ValueError for a missing or broken file, or two that differ in length."""
        try:
            tokens = np.load(path / "tokens.npy", mmap_mode="r", allow_pickle=False)
            documents = np.load(path / "documents.npy", allow_pickle=False)
            own = (path / _SPOKEN).exists()
            spoken = np.load(path / _SPOKEN, mmap_mode="r", allow_pickle=False) if own else None
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: packed tokens cannot be read ({error}); pack the corpus again") from error
        if not len(documents) or documents[-1] != len(tokens):
            raise ValueError(f"{path}: documents.npy does not end at the {len(tokens)} tokens; pack the corpus again")
        if spoken is not None and len(spoken) != len(tokens):
            raise ValueError(f"{path}: {_SPOKEN} does not fit the {len(tokens)} tokens; pack the corpus again")
        return cls(tokens, documents, (path / _DIALOGUES).exists(), spoken)

    def n_blocks(self, context_size: int) -> int:
        """Whole blocks of `context_size` tokens; what is left over at the end is not used."""
        return len(self._starts(context_size)) if self.dialogues else len(self.tokens) // context_size

    def offsets(self, blocks: np.ndarray, context_size: int) -> np.ndarray:
        """First token of each block, int64 of the shape of `blocks`.

        Blocks follow one another; but a dialogue that a block would cut, though it is no longer than one, begins the
        next, so that it is read whole there (and its beginning in both).
        """
        return self._starts(context_size)[blocks] if self.dialogues else blocks * context_size

    def _starts(self, context_size: int) -> np.ndarray:
        """Of dialogues: first token of every block, int64 [blocks]."""
        if context_size in self._known:
            return self._known[context_size]
        starts, at = list[int](), 0
        while at + context_size <= len(self.tokens):
            starts.append(at)
            end = at + context_size
            cut = int(np.searchsorted(self.documents, end, "right")) - 1  # the document that goes on behind the block
            begin, stop = self.documents[cut : cut + 2].tolist() if end < len(self.tokens) else (end, end)
            at = begin if at < begin and stop - begin <= context_size else end
        self._known[context_size] = np.array(starts, np.int64)
        return self._known[context_size]

    def block(self, i: int, context_size: int) -> np.ndarray:
        """Block `i`, [context_size], of the type of `tokens`. IndexError where there is no such block."""
        if not 0 <= i < self.n_blocks(context_size):
            raise IndexError(f"block {i} of {self.n_blocks(context_size)} blocks of {context_size} tokens")
        start = int(self.offsets(np.array(i), context_size))
        return self.tokens[start : start + context_size]

    def counts(self, vocab_size: int) -> np.ndarray:
        """Occurrences of each token, int64 [vocab_size]. ValueError for a token id that is not below `vocab_size`."""
        total = np.zeros(vocab_size, dtype=np.int64)
        for start in range(0, len(self.tokens), 2**24):
            counts = np.bincount(self.tokens[start : start + 2**24], minlength=vocab_size)
            if len(counts) > vocab_size:
                raise ValueError(f"token id {len(counts) - 1} is not below vocab_size={vocab_size}; tokenizers differ")
            total += counts
        return total


def pack(
    texts: Iterable[str | Spoken],
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
    dialogues: bool = False,
    roles: Roles = "all",
) -> PackedTokens:
    """Encode documents into the folder `path`: `tokens.npy` and `documents.npy`, both streamed.

    A document is followed by the end-of-text token. Special tokens that stand in a text, such as the markers of turns,
    are tokens; but for dialogues, which a chat template wrote, the string of one that begins or ends texts is encoded
    as ordinary text, so that it ends no document. roles: `assistant` makes samples only of the tokens of what the
    assistant says, `spoken.npy`, as the documents' spans tell; models read all tokens. ValueError for a tokenizer
    without end-of-text token, texts more than half of whose tokens are the unknown one, roles of texts without any, and
    roles that are not known.
    """
    one_of("roles", roles, get_args(Roles))
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ValueError("the tokenizer has no end-of-text token; set its eos_token")
    encoder = _encoder(tokenizer, dialogues)
    dtype = np.dtype(np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 else np.uint32)
    lengths, spoken = list[int](), list[np.ndarray]()
    path.mkdir(parents=True, exist_ok=True)
    # The header has one length for any count: numpy reserves 21 digits.
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    with (path / "tokens.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (0,)})
        for batch in _batches(texts):
            # The fast form does not tell where a token stands.
            encode = encoder.encode_batch if roles != "all" else encoder.encode_batch_fast
            encodings = encode([one if isinstance(one, str) else one.text for one in batch], add_special_tokens=False)
            for one, encoding in zip(batch, encodings, strict=True):
                ids = [*encoding.ids, eos]
                if roles != "all":
                    said = _within(encoding.offsets, () if isinstance(one, str) else one.spans)
                    spoken.append(np.append(said, False))
                lengths.append(len(ids))
                file.write(np.array(ids, dtype).tobytes())
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (sum(lengths),)})
    if dialogues:
        (path / _DIALOGUES).touch()
    if roles != "all":
        if not any(part.any() for part in spoken):
            raise ValueError(
                f'roles = "{roles}", but the texts hold no word of the assistant\'s; give dialogues as lists of '
                'messages with that role (format = "chat"), or leave roles out'
            )
        np.save(path / _SPOKEN, np.concatenate(spoken))
    np.save(path / "documents.npy", np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64))
    packed = PackedTokens.open(path)
    if (share := unknown_tokens(packed, tokenizer) / max(1, len(packed.tokens))) > _MOST_UNKNOWN:
        raise ValueError(
            f"{share:.0%} of the tokens are {tokenizer.unk_token}, the unknown token: the tokenizer does not know this "
            "text; give text that it covers, or a model whose tokenizer falls back to bytes"
        )
    return packed


def _within(offsets: Sequence[tuple[int, int]], spans: Sequence[int]) -> np.ndarray:
    """Which tokens lie in a span, by a character at least, bool [tokens]. spans: start, end, start, end ..., rising."""
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    edges = np.array(spans, np.int64)
    # An odd number of edges lies before what is inside a span.
    inside = np.searchsorted(edges, ends, "left") > np.searchsorted(edges, starts, "right")
    return (inside | (np.searchsorted(edges, starts, "right") % 2 == 1)) & (ends > starts)


def unknown_tokens(packed: PackedTokens, tokenizer: PreTrainedTokenizerFast) -> int:
    """How many tokens are the one for what the tokenizer does not know; 0 where that is its end-of-text token too."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:
        return 0
    spans = range(0, len(packed.tokens), 2**24)
    return sum(int((packed.tokens[start : start + 2**24] == unknown).sum()) for start in spans)


def _encoder(tokenizer: PreTrainedTokenizerFast, dialogues: bool) -> Tokenizer:
    """A copy of the tokenizer's core that reads the strings of special tokens as `pack` says."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    ends = {str(token) for token in tokenizer.special_tokens_map.values() if not isinstance(token, list)}
    for token in state["added_tokens"]:
        token["special"] = token["special"] and not dialogues and token["content"] in ends
    encoder = Tokenizer.from_str(json.dumps(state))
    encoder.encode_special_tokens = True
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


class BlockSampler:
    """Fixed blocks of packed tokens in a fixed random order without end, open at any place.

    Position p of the order is a pure function of the blocks, `shares` and `seed`: a run can stop and resume anywhere,
    and any number of workers can read disjoint ranges. Within one pass over a corpus no block comes twice; the next
    pass has another order.
    """

    def __init__(
        self, packs: Mapping[str, PackedTokens], context_size: int, seed: int, shares: Mapping[str, float] | None = None
    ) -> None:
        """Without `shares`, a pass is one permutation of the union of all blocks, so that corpora count by their size.

        With them (relative to their sum), each 10,000 positions hold every corpus in its share, to the nearest
        1/10,000, at random places, and each corpus goes through passes of its own.
        Raises ValueError for no corpus, one without a whole block, or shares that do not belong to the corpora.
        """
        if not packs:
            raise ValueError("no corpus to take blocks from; name at least one")
        self.names = tuple(packs)  # corpora, in the order that `origin` counts in
        self.packs = tuple(packs.values())
        self.context_size, self._seed = context_size, seed
        self._blocks = np.array([pack.n_blocks(context_size) for pack in self.packs], dtype=np.int64)
        for name, pack, count in zip(self.names, self.packs, self._blocks, strict=True):
            if not count:
                tokens = f"{len(pack.tokens)} tokens do not fill one block of context_size={context_size}"
                raise ValueError(f"corpus {name}: {tokens}; lower context_size or add text")
        self._starts = np.concatenate([[0], np.cumsum(self._blocks)])
        self.blocks_per_pass = int(self._starts[-1])  # blocks of all corpora together
        self._round: tuple[int, np.ndarray, np.ndarray] | None = None  # the last one drawn; a memo, no state
        self._quotas = None if shares is None else _quotas(self.names, shares)

    def take(self, start: int, stop: int) -> np.ndarray:
        """Token ids of the blocks at positions start..stop-1, int64 [stop - start, context_size]; see `origin`.

        Where only what an assistant says is sampled, a masked array: every token is there to be read, and those that
        are no samples are masked.
        """
        corpora, offsets = self.origin(start, stop)
        blocks = np.empty((stop - start, self.context_size), dtype=np.int64)
        left_out = np.zeros(blocks.shape, bool) if any(pack.spoken is not None for pack in self.packs) else None
        for corpus, pack in enumerate(self.packs):
            if (here := corpora == corpus).any():
                places = offsets[here, None] + np.arange(self.context_size)
                blocks[here] = pack.tokens[places]
                if left_out is not None and pack.spoken is not None:
                    left_out[here] = ~pack.spoken[places]
        return blocks if left_out is None else np.ma.masked_array(blocks, left_out)

    def origin(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Corpus index of the blocks at positions start..stop-1, and their first token in its pack.

        Both are int64 [stop - start]. ValueError for a range that is negative or turned around.
        """
        if not 0 <= start <= stop:
            raise ValueError(f"blocks {start} to {stop} are no range; give 0 <= start <= stop")
        positions = np.arange(start, stop)
        if self._quotas is None:
            numbers = self._in_passes(positions, self.blocks_per_pass, 0)
            corpora = np.searchsorted(self._starts, numbers, side="right") - 1
            return corpora, self._offsets(corpora, numbers - self._starts[corpora])
        corpora, ranks = self._mixed(positions, self._quotas)
        numbers = np.empty_like(ranks)
        for corpus, count in enumerate(self._blocks):
            here = corpora == corpus
            numbers[here] = self._in_passes(ranks[here], int(count), corpus + 1)
        return corpora, self._offsets(corpora, numbers)

    def _offsets(self, corpora: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """First tokens of blocks by their numbers within their corpora, int64 of the same shape."""
        offsets = np.empty_like(numbers)
        for corpus, pack in enumerate(self.packs):
            here = corpora == corpus
            offsets[here] = pack.offsets(numbers[here], self.context_size)
        return offsets

    def documents(self, start: int, stop: int) -> np.ndarray:
        """Number of the document in which each block at positions start..stop-1 begins, int64 [stop - start].

        Numbers are unique over the corpora. Documents are whole texts; a block may run on into the next one.
        """
        corpora, offsets = self.origin(start, stop)
        numbers, first = np.empty(stop - start, dtype=np.int64), 0
        for corpus, pack in enumerate(self.packs):
            here = corpora == corpus
            numbers[here] = first + np.searchsorted(pack.documents, offsets[here], side="right") - 1
            first += len(pack.documents) - 1
        return numbers

    def _in_passes(self, positions: np.ndarray, count: int, stream: int) -> np.ndarray:
        """Block numbers below `count` at positions that run through pass after pass."""
        passes, within = np.divmod(positions, count)
        numbers = np.empty_like(within)
        for number in np.unique(passes):
            here = passes == number
            numbers[here] = permuted(within[here], count, (self._seed, stream, int(number)))
        return numbers

    def _mixed(self, positions: np.ndarray, quotas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corpus at each position, and how many earlier positions have the same corpus; both int64 [positions]."""
        corpora, ranks = np.empty_like(positions), np.empty_like(positions)
        rounds, within = np.divmod(positions, _ROUND)
        for number in map(int, np.unique(rounds)):
            if self._round is None or self._round[0] != number:
                order = permuted(np.arange(_ROUND), _ROUND, (self._seed, -1, number))
                drawn, counted = np.searchsorted(np.cumsum(quotas), order, side="right"), np.empty_like(order)
                for corpus, quota in enumerate(quotas):
                    counted[drawn == corpus] = number * quota + np.arange(quota)
                self._round = number, drawn, counted
            here = rounds == number
            corpora[here], ranks[here] = (column[within[here]] for column in self._round[1:])
        return corpora, ranks


def distinct_blocks(sampler: BlockSampler, tokens: int) -> np.ndarray:
    """The first blocks of an order, int64 [blocks, context], without repeats of a corpus that is short.

    As many blocks as hold `tokens` (rounded up), at most one pass, less the repeats.
    """
    places = _distinct(sampler, tokens)
    return sampler.take(0, int(places[-1]) + 1)[places]


def corpus_shares(sampler: BlockSampler, tokens: int) -> dict[str, float]:
    """Share of each corpus in `distinct_blocks`."""
    places = _distinct(sampler, tokens)
    corpora = sampler.origin(0, int(places[-1]) + 1)[0][places]
    return dict(zip(sampler.names, np.bincount(corpora, minlength=len(sampler.names)) / len(corpora), strict=True))


def _distinct(sampler: BlockSampler, tokens: int) -> np.ndarray:
    """Positions of the first blocks of an order without repeats, rising."""
    count = min(-(-tokens // sampler.context_size), sampler.blocks_per_pass)
    _, first = np.unique(np.stack(sampler.origin(0, count)), axis=1, return_index=True)
    return np.sort(first)


def permuted(places: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Values at `places` of a random permutation of 0..size-1 picked by `key`, int64 of the shape of `places`.

    Nothing but these values is computed or stored: a balanced Feistel network over the smallest even number of bits
    that holds `size`, with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002) and the
    finalizer of SplitMix64 as round function; the same on every machine. ValueError for a place outside 0..size-1.
    """
    values = np.asarray(places, dtype=np.int64)
    if values.size and not (values.min() >= 0 and values.max() < size):
        raise ValueError(f"places {values.min()} to {values.max()} are outside a permutation of {size}")
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.frombuffer(hashlib.shake_256(repr(key).encode()).digest(8 * _FEISTEL_ROUNDS), dtype="<u8")

    def network(values: np.ndarray) -> np.ndarray:
        left, right = values >> half, values & mask
        for round_key in keys.astype(np.uint64):
            mixed = right ^ round_key
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
        return (left << half) | right

    values = network(values.astype(np.uint64))
    outside = np.flatnonzero(values >= size)
    while outside.size:
        walked = network(values.flat[outside])
        values.flat[outside] = walked
        outside = outside[walked >= size]
    return values.astype(np.int64)


def _quotas(names: Sequence[str], shares: Mapping[str, float]) -> np.ndarray:
    """Positions that each corpus gets in a round, int64 [corpora], by largest remainder."""
    if set(shares) != set(names) or not all(shares[name] > 0 for name in names):
        raise ValueError(f"shares {dict(shares)} must be positive and name the corpora {', '.join(names)}, each once")
    exact = np.array([shares[name] for name in names], dtype=np.float64)
    exact *= _ROUND / exact.sum()
    quotas = np.floor(exact).astype(np.int64)
    short = _ROUND - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:short]] += 1
    if not quotas.all():
        raise ValueError(f"share of {names[int(quotas.argmin())]} is below 1/{_ROUND} of the whole; raise or drop it")
    return quotas


def _batches(texts: Iterable[str | Spoken]) -> Iterator[list[str | Spoken]]:
    """Lists of texts of about a million characters: enough to keep every core busy, little to hold."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text if isinstance(text, str) else text.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
