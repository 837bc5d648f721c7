"""A language model in this process as a completer: no endpoint, no key, no cost."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from heredity.explain.protocol import LEVELS, Answer, Failure, Request
from heredity.lm.load import load_model, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Local:
    """A `Completer` around a causal language model of transformers, greedy, one request at a time.

    Prompts go through the tokenizer's chat template where it has one, echoed prompts never; for these the ten digits
    are reported as likely tokens. name: of the model in results and the ledger; one name must mean one set of weights.
    """

    concurrency = 1

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str):
        self.name = name
        self._model: Any = model
        self._tokenizer: Any = tokenizer
        self._lock = threading.Lock()
        self._stopped = False
        before = self._ids("\t", False)
        ids = [self._ids(f"\t{digit}", False) for digit in range(LEVELS)]
        # None where a digit is not one token: then it has no probability.
        self._digits = [digit[-1] if digit[:-1] == before else None for digit in ids]

    @classmethod
    def load(cls, path_or_id: str | Path) -> Local:
        """Load a model and its tokenizer from a folder or the hub; raises as `load_model` does."""
        from transformers import AutoTokenizer

        model = load_model(path_or_id)
        with quiet():
            return cls(model, AutoTokenizer.from_pretrained(str(path_or_id)), str(path_or_id))

    @property
    def identity(self) -> Mapping[str, Any]:
        """Provider, model and parameters."""
        return {"provider": "local", "model": self.name, "parameters": {"temperature": 0}}

    def stop(self) -> None:
        """Refuse further requests."""
        self._stopped = True

    def complete(self, request: Request) -> tuple[Answer | Failure, int]:
        """Greedy decoding, or the log-probabilities of the prompt; refused where the context leaves no room."""
        with self._lock, torch.inference_mode():
            if self._stopped:
                return Failure("unreachable", "stopped"), 0
            ids = self._ids(self._framed(request), True)
            context = getattr(self._model.config, "max_position_embeddings", None)
            limit = 0 if request.echo else request.max_tokens
            if context is not None and len(ids) + limit > context:
                detail = f"{len(ids)} tokens and {limit} for the answer exceed its context of {context}"
                return Failure("refused", f"{self.name}: {detail}; lower the batch"), 1
            return (self._echo(ids) if request.echo else self._generate(ids, limit)), 1

    def _generate(self, ids: list[int], limit: int) -> Answer:
        prompt = torch.tensor([ids], device=self._model.device)
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        with quiet():
            out = self._model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=limit, pad_token_id=0, **greedy
            )
        new = out[0, len(ids) :].tolist()
        ends = self._model.generation_config.eos_token_id
        ended = bool(new) and new[-1] in (ends if isinstance(ends, list) else [ends])
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        return Answer(text, "stop" if ended else "length", len(ids), len(new))

    def _echo(self, ids: list[int]) -> Answer:
        logits = self._model(torch.tensor([ids], device=self._model.device)).logits[0].float()
        total = logits.logsumexp(-1)
        top: list[dict[str, float]] = [{} for _ in ids]
        for digit, token in enumerate(self._digits):
            if token is not None:
                # A token is predicted by the logits one position before.
                for at, logprob in enumerate((logits[:-1, token] - total[:-1]).tolist(), 1):
                    top[at][str(digit)] = logprob

        def decoded(start: int, stop: int) -> str:
            return self._tokenizer.decode(ids[start:stop], clean_up_tokenization_spaces=False)

        # Text of every token after the one before it; some tokenizers drop a leading space otherwise.
        pieces = [decoded(max(at - 1, 0), at + 1)[len(decoded(at - 1, at)) if at else 0 :] for at in range(len(ids))]
        return Answer("", "stop", len(ids), 0, tuple(pieces), tuple(top))

    def _framed(self, request: Request) -> str:
        if request.echo or not getattr(self._tokenizer, "chat_template", None):
            return request.prompt
        message = [{"role": "user", "content": request.prompt}]
        return self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)

    def _ids(self, text: str, special: bool) -> list[int]:
        # A chat template writes its own special tokens.
        special = special and not getattr(self._tokenizer, "chat_template", None)
        return self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
