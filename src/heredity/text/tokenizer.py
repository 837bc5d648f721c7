"""The tokenizer that every model of a study shares: byte-level BPE, trained or loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"

_TRAINING_CHARACTERS = 32 * 2**20

# Words and runs of signs with one space before them, digits one by one, line ends and indentation as runs of their
# own, so that "=" and " =" are tokens in any context. English endings such as 's only where a word ends, since
# 'text' is more often a string than a contraction.
_PIECES = (
    r"'(?:[sdmtSDMT]|ll|ve|re|LL|VE|RE)(?!\p{L})| ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)


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
    first = next(texts, None)
    if first is None:
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

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """Tokenizer of a local folder or hub id; code that it ships is run only with `trust_remote_code`.

    Raises ValueError where it cannot be loaded, needs that code, is not of the fast kind, or has no end-of-text token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = f"cannot be loaded ({' '.join(str(error).split())[:200]}); check the folder, or id and network"
        if "trust_remote_code" in str(error) and not trust_remote_code:
            reason = (
                "it ships code, which is not run; read that code, then set trust_remote_code = true for the model in "
                "the study"
            )
        raise ValueError(f"tokenizer {name}: {reason}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"tokenizer {name}: has no tokenizer.json; save it with a fast tokenizer first")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {name}: has no end-of-text token; set eos_token in its tokenizer_config.json")
    return tokenizer


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 in hex of vocabulary, merges and special tokens: equal for tokenizers that mean the same by an id."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps([vocabulary, merges, sorted(special.items())]).encode()).hexdigest()


def _prefix(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return
