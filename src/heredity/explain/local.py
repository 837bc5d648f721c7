"""A language model in this process as a completer: no endpoint, no key, no cost."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from heredity.explain.completer import Answer, Refused, Request
from heredity.explain.protocol import LEVELS, Failure
from heredity.lm.load import load_model, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Local:
    """A `Completer` around a causal language model of transformers, greedy, one request at a time.

    A tokenizer with a chat template is asked through it, another one gets the prompt as it is. Echoed prompts are not
    put into the template; of the likely tokens, the ten digits are told.

    name: what results and the ledger call the model; the same name must mean the same weights.
    """

    concurrency = 1

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str):
        self.name = name
        self._model: Any = model
        self._tokenizer: Any = tokenizer
        self._lock = threading.Lock()
        self._stopped = False
        ids = [self._ids(f"\t{digit}", False) for digit in range(LEVELS)]
        before = self._ids("\t", False)
        # None where a digit is no token of its own: then it has no probability of its own either.
        self._digits = [own[-1] if own[:-1] == before else None for own in ids]

    @classmethod
    def load(cls, path_or_id: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Local:
        """A model and its tokenizer from a folder or the hub; raises as `load_model` does."""
        from transformers import AutoTokenizer

        model: Any = load_model(path_or_id, dtype=dtype)
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(path_or_id))
        return cls(model.to(device), tokenizer, str(path_or_id))

    @property
    def identity(self) -> Mapping[str, Any]:
        """Provider, model and parameters."""
        return {"provider": "local", "model": self.name, "parameters": {"temperature": 0}}

    def stop(self) -> None:
        """Ask nothing more."""
        self._stopped = True

    def complete(self, request: Request) -> Answer | Refused:
        """Greedy decoding, or the log-probabilities of the prompt.

        A prompt that does not leave room for the answer in the model's context is refused, by its length.
        """
        with self._lock, torch.inference_mode():
            if self._stopped:
                return Refused(Failure("unreachable", "stopped"), 0)
            ids = self._ids(self._framed(request), True)
            context = getattr(self._model.config, "max_position_embeddings", None)
            limit = 0 if request.echo else request.max_tokens
            if context is not None and len(ids) + limit > context:
                detail = (
                    f"{len(ids)} tokens and {limit} for the answer exceed its context of {context}; lower the batch"
                )
                return Refused(Failure("refused", f"{self.name}: {detail}"), 1)
            return self._echo(ids) if request.echo else self._generate(ids, request)

    def _generate(self, ids: list[int], request: Request) -> Answer:
        prompt = torch.tensor([ids], device=self._model.device)
        with quiet():
            out = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=request.max_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=request.logprobs > 0,
            )
        made = out.sequences[0, len(ids) :].tolist()
        ends = self._model.generation_config.eos_token_id
        ended = bool(made) and made[-1] in (ends if isinstance(ends, list) else [ends])
        tokens = self._texts(made)
        top = tuple(self._likely(logits[0], request.logprobs) for logits in out.logits or ())
        text = self._tokenizer.decode(made, skip_special_tokens=True)
        told = tokens if request.logprobs else ()
        return Answer(text, "stop" if ended else "length", len(ids), len(made), told, top)

    def _echo(self, ids: list[int]) -> Answer:
        logits = self._model(torch.tensor([ids], device=self._model.device)).logits[0].float()
        total = logits.logsumexp(-1)
        top: list[dict[str, float]] = [{} for _ in ids]
        for digit, token in enumerate(self._digits):
            if token is not None:
                # What stands at a place is predicted one place before.
                for at, logprob in enumerate((logits[:-1, token] - total[:-1]).tolist(), 1):
                    top[at][str(digit)] = logprob
        return Answer("", "stop", len(ids), 0, self._texts(ids), tuple(top))

    def _framed(self, request: Request) -> str:
        if request.echo or not getattr(self._tokenizer, "chat_template", None):
            return request.prompt
        message = [{"role": "user", "content": request.prompt}]
        return self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)

    def _ids(self, text: str, special: bool) -> list[int]:
        # A chat template writes its own special tokens.
        own = special and not getattr(self._tokenizer, "chat_template", None)
        return self._tokenizer(text, add_special_tokens=own, verbose=False)["input_ids"]

    def _texts(self, ids: list[int]) -> tuple[str, ...]:
        """Text of every token as it stands behind the one before; some tokenizers drop a leading space otherwise."""
        alone = [self._tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]
        pairs = [
            self._tokenizer.decode(ids[at - 1 : at + 1], clean_up_tokenization_spaces=False)
            for at in range(1, len(ids))
        ]
        return tuple(alone[:1] + [pair[len(before) :] for before, pair in zip(alone[:-1], pairs, strict=True)])

    def _likely(self, logits: torch.Tensor, wanted: int) -> dict[str, float]:
        found = logits.float().log_softmax(-1).topk(wanted)
        return {
            self._tokenizer.decode([token]): value
            for token, value in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        }
