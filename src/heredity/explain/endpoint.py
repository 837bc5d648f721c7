"""Who completes prompts: an endpoint that speaks OpenAI's protocol, or a language model in this process."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from heredity.errors import install, reason, short
from heredity.explain.protocol import LEVELS, Answer, Failure, Request

OPENAI = "https://api.openai.com/v1"
GIVE_UP = 3  # requests in a row without a connection after which each further one is tried once, until one is answered
_SECRET = 8  # least characters of a key to hide; servers without keys are given words such as `x` or `token`
_MOST_TOKENS = 2**40
_LIMITS = ("max_tokens", "max_completion_tokens")  # names of the limit of an answer's tokens
_LARGEST = 64 * 2**20  # bytes of an answer
_TOO_MANY = re.compile(r"too (large|long|many)|maximum|at most|exceed|context|out of range|less than|<=|greater", re.I)
_UNKNOWN = re.compile(r"unsupported|not support|unknown|unrecogni|not permitted|not allowed|unexpected|instead", re.I)
_SAID = ("message", "msg", "detail", "error", "errors")  # keys of a body under which words are
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys of a message under which a model's thoughts are


class EndpointError(ValueError):
    """An endpoint that cannot be used; the message holds the reason and the way out."""


class Endpoint:
    """A `Completer` behind HTTP, through the `openai` client, at temperature 0.

    model, base_url: such as `http://127.0.0.1:8000/v1`. key_variable: environment variable with the API key; a server
    on this machine needs none, and "" declares that another one needs none either. retries: further tries after 408,
    409, 429, 5xx, a timeout, a broken connection or a broken body, with growing pauses or those of `Retry-After` (up to
    two minutes; longer ones are not waited for). timeout: seconds without a byte. concurrency: requests at a time.
    limit: the endpoint's name for the limit of an answer's tokens. extra: further parameters of the request body; None
    removes one, such as `{"temperature": None}`. asks: False for one that only names what would be asked, and so needs
    no client.

    Endpoints differ in what they take. A parameter that a 400 or 422 blames is left out from then on, or sent under its
    other name (`max_tokens`, `max_completion_tokens`), and the request is sent again: see `dialect`. A limit that is
    refused for its size is not.

    Raises `EndpointError` when the client is not installed, the key is missing, or base_url is not an http address.
    """

    def __init__(
        self,
        model: str,
        base_url: str = OPENAI,
        key_variable: str = "OPENAI_API_KEY",
        *,
        retries: int = 5,
        timeout: float = 120.0,
        concurrency: int = 8,
        limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra: Mapping[str, Any] | None = None,
        asks: bool = True,
    ):
        if retries < 0 or concurrency < 1 or not timeout > 0:
            wrong = f"retries={retries}, concurrency={concurrency}, timeout={timeout}"
            raise EndpointError(f"{wrong}: must be at least 0, at least 1 and above 0")
        self.name, self.concurrency = model, concurrency
        self.provider, self._key = _provider_and_key(base_url, key_variable)
        # Host and port without user, path or key.
        parameters = {"temperature": 0, "seed": 0} | dict(extra or {})
        self.identity = {"provider": self.provider, "model": model, "parameters": parameters}
        self.dialect: dict[str, str] = {}
        """Parameters that the endpoint refuses, and what is sent instead: another name, or "" for nothing."""
        self.learned: Callable[[str, str], object] = lambda *_: None
        """Called with each refusal."""
        if not asks:
            return
        try:
            import openai
        except ImportError:
            raise EndpointError(f"the openai client is not installed; {install('explain')}") from None
        stopped = self._stopped = threading.Event()

        def check(request: Any) -> None:
            if stopped.is_set():
                raise openai.APIConnectionError(message="stopped", request=request)

        def weigh(response: Any) -> None:
            packed, length = (response.headers.get(name, "") for name in ("content-encoding", "content-length"))
            if packed not in ("", "identity"):
                why = f"the answer is packed ({short(packed, 40)}), which was not asked for"
                raise openai.APIConnectionError(message=why, request=response.request)
            if length.isdigit() and int(length) > _LARGEST:
                why = f"the answer has {int(length):,} bytes, and an explanation has at most {_LARGEST:,}"
                raise openai.APIConnectionError(message=why, request=response.request)

        # Without a reference to self, so that the finalizer can run. Some kilobytes that are packed can be gigabytes.
        plain = {"Accept-Encoding": "identity"}
        hooks: Any = {"request": [check], "response": [weigh]}
        http = openai.DefaultHttpxClient(event_hooks=hooks, headers=plain)
        weakref.finalize(self, http.close)
        self._client = openai.OpenAI(base_url=base_url, api_key=self._key or "none", timeout=timeout, http_client=http)
        self._retries, self._limit = retries, limit
        self._slots = threading.Semaphore(concurrency)
        self._missed = 0
        self._denied: Failure | None = None
        self._adapting = threading.Lock()

    def stop(self) -> None:
        """Send nothing more; a pause before a retry runs out first."""
        self._stopped.set()

    def complete(self, request: Request) -> tuple[Answer | Failure, int]:
        """Ask, and retry where that can help. After a 401 nothing is asked any more: the key is wrong."""
        with self._slots:
            attempts, left = 0, 0 if self._missed >= GIVE_UP else self._retries
            while not self._denied:
                reply, tries = self._ask(request, left)
                attempts, left = attempts + tries, left - tries
                kind = reply.kind if isinstance(reply, Failure) else ""
                # The client retries all but a body that arrived broken.
                if kind != "truncated" or left < 0:
                    self._missed = self._missed + 1 if kind == "unreachable" else 0
                    return reply, attempts
            return self._denied, attempts

    def _ask(self, request: Request, retries: int) -> tuple[Answer | Failure, int]:
        """Send a request until no parameter of it is blamed; the reply and the number of attempts."""
        import openai

        client, attempts = self._client.with_options(max_retries=retries), 0
        while True:
            body = self._body(request)
            try:
                if request.echo:
                    # A limit of 0 means no limit to some servers: one token is requested and ignored.
                    sent = client.completions.with_raw_response.create(
                        model=self.name, prompt=request.prompt, extra_body=body | {"echo": True, "max_tokens": 1}
                    )
                else:
                    message: Any = [{"role": "user", "content": request.prompt}]
                    sent = client.chat.completions.with_raw_response.create(
                        model=self.name, messages=message, extra_body=body
                    )
                reply, http_request = self._read(sent.text, request.echo), sent.http_request
            except openai.APIStatusError as error:
                reply, http_request = self._failure("refused", f"HTTP {error.status_code}: {error}"), error.request
                if error.status_code == 401:
                    self._denied = reply
                blamed = _blamed(error.response.text, body) if error.status_code in (400, 422) else None
                if blamed:
                    attempts += _tries(http_request)
                    self._adapt(blamed, request, body)
                    continue
            except openai.APIConnectionError as error:
                late = isinstance(error, openai.APITimeoutError)
                why = "no answer in time" if late else str(error.__cause__ or error)
                reply, http_request = self._failure("unreachable", why), error.request
            except Exception as error:  # a body or an address that the client cannot take
                return self._failure("unreachable", reason(error)), attempts + 1
            return reply, attempts + _tries(http_request)

    def _body(self, request: Request) -> dict[str, Any]:
        """Parameters beside model and prompt, in the endpoint's dialect."""
        own = {"logprobs": request.logprobs} if request.echo else {self._limit: request.max_tokens}
        wanted = {name: value for name, value in (self.identity["parameters"] | own).items() if value is not None}
        renamed = {self.dialect.get(name, name): value for name, value in wanted.items()}
        return {name: value for name, value in renamed.items() if name and self.dialect.get(name) != ""}

    def _adapt(self, name: str, request: Request, sent: Mapping[str, Any]) -> None:
        """Give a parameter that was refused its other name, or else leave it out of all further requests."""
        with self._adapting:
            if self._body(request) == sent:  # no other request was refused for it meanwhile
                first = next((own for own, instead in self.dialect.items() if instead == name), name)
                other = {_LIMITS[0]: _LIMITS[1], _LIMITS[1]: _LIMITS[0]}.get(name, "")
                self.dialect |= dict.fromkeys((name, first), other if first == name else "")
            instead = self.dialect.get(name, "")
        self.learned(name, instead)

    def _failure(self, kind: Literal["refused", "unreachable", "truncated"], detail: str) -> Failure:
        # Half of a surrogate pair cannot be written down.
        shown = short(self._redacted(detail), 300).encode("utf-8", "replace").decode()
        return Failure(kind, f"{self.provider}: {shown}")

    def _read(self, text: str, echo: bool) -> Answer | Failure:
        try:
            body = json.loads(text)
        except ValueError:
            return self._failure("truncated", "the body of the response broke off")
        except RecursionError:
            return self._failure("refused", "the body of the response is nested too deeply")
        try:
            answer = _answer_of(body, echo)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            return self._failure("refused", text)
        # An endpoint may send the key back, in JSON escapes as well: it is searched after they are decoded.
        tokens = tuple(map(self._redacted, answer.tokens))
        top = tuple({self._redacted(token): value for token, value in likely.items()} for likely in answer.top)
        return answer._replace(text=self._redacted(answer.text), tokens=tokens, top=top)

    def _redacted(self, text: str) -> str:
        if len(self._key) < _SECRET:
            return text
        text = text.replace(self._key, "(key)")
        # JSON escapes that spell the key would become the key once they are decoded.
        unescaped = re.sub(r"\\u([0-9a-fA-F]{4})", lambda escape: chr(int(escape[1], 16)), text).replace("\\/", "/")
        return "(key)" if self._key in unescaped else text


def _answer_of(body: Mapping[str, Any], echo: bool) -> Answer:
    """Read a body of `/chat/completions`, or of `/completions` for an echo; raises for another form."""
    choice, usage = body["choices"][0], body.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    used, made = (count if isinstance(count, int) and 0 <= count < _MOST_TOKENS else None for count in counts)
    if echo:
        logprobs = choice.get("logprobs") or {}
        # Values that are not numbers count as not reported.
        top = [
            {token: float(value) for token, value in (likely or {}).items() if isinstance(value, (int, float))}
            for likely in logprobs.get("top_logprobs") or ()
        ]
        return Answer("", "stop", used, made, tuple(map(str, logprobs.get("tokens") or ())), tuple(top))
    message, finish = choice["message"], choice.get("finish_reason")
    text = message.get("content") or ""
    if not isinstance(text, str):
        raise TypeError(f"content is {type(text).__name__}")
    cut = finish in ("length", "max_tokens")
    if cut and not text:  # all of it went into thoughts, which some endpoints hide
        thoughts = next((message[name] for name in _THOUGHTS if isinstance(message.get(name), str)), "")
        text = f"<think>{thoughts}"
    refused = finish == "content_filter" or (not text and message.get("refusal"))
    return Answer(text, "refused" if refused else "length" if cut else "stop", used, made)


def _tries(http_request: Any) -> int:
    return int(http_request.headers.get("x-stainless-retry-count", 0)) + 1


def _blamed(text: str, sent: Mapping[str, Any]) -> str | None:
    """Which of the parameters that were sent the body of a 400 or 422 refuses, if it says so.

    By the field that names it (OpenAI's `param`, pydantic's `loc`), or else the one mentioned first in its words, in
    quotes or at least as a word. A limit that is refused for its size is not blamed: another name would not help.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = {"message": text}
    named = [name for name in _fields(body) if name]
    words = " ".join(_words(body)) or text
    if named and not set(named) & set(sent):
        return None
    blamed = next((name for name in named if name in sent), None)
    for form in (r"[`'\"]{}[`'\"]", r"(?<!\w){}(?!\w)"):
        places = {name: match.start() for name in sent if (match := re.search(form.format(re.escape(name)), words))}
        blamed = blamed or min(places, key=lambda name: places[name], default=None)
    if blamed in (*_LIMITS, "logprobs", "echo") and _TOO_MANY.search(words) and not _UNKNOWN.search(words):
        return None
    return None if blamed in ("echo", "logprobs") else blamed


def _fields(body: object) -> Iterator[str]:
    """Names of parameters in the fields of a refusal."""
    if isinstance(body, dict):
        if isinstance(body.get("param"), str):
            yield body["param"].partition(".")[0]
        if isinstance(body.get("loc"), list) and body["loc"]:
            yield str(body["loc"][-1])
    for part in body.values() if isinstance(body, dict) else body if isinstance(body, list) else ():
        yield from _fields(part)


def _words(body: object) -> Iterator[str]:
    """What a refusal says in words."""
    if isinstance(body, str):
        yield body
    elif isinstance(body, list):
        for part in body:
            yield from _words(part)
    elif isinstance(body, dict):
        for key in _SAID:
            yield from _words(body.get(key))


def _provider_and_key(base_url: str, variable: str) -> tuple[str, str]:
    """Host and port of an address, and its key; empty where it needs none."""
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    if not host or parts.scheme not in ("http", "https"):
        raise EndpointError(f"{base_url}: is no http address; give one such as {OPENAI} or http://127.0.0.1:8000/v1")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    provider = host if port is None else f"{host}:{port}"
    key = os.environ.get(variable, "").strip() if variable else ""
    if not key.isascii():
        raise EndpointError(f"{variable}: holds characters that no key has; put the API key there")
    if not key and variable and not local:
        where = f"put the API key of {provider} there, name another variable, or name none if it needs no key"
        raise EndpointError(f'{variable}: is not set; {where} ("")')
    return provider, key


_BEGUN = '{"explanation": "'
_SENTENCE_ENDS = ('"', ". ", ".\n", "\n", "\\")
"""Where an explanation that was begun for a model ends; a backslash would escape what closes it."""


class Local:
    """A `Completer` around a causal language model of transformers, greedy, one request at a time; no key, no cost.

    Prompts go through the tokenizer's chat template where it has one, echoed prompts never; for these the ten digits
    are reported as likely tokens. An explanation is begun for the model, `{"explanation": "`, and ends with its first
    sentence, since small models keep to no form that is only asked for. path_or_id: a folder or a hub id, loaded with
    its tokenizer; raises as `load_model` does. It names the model in results and the ledger; one name must mean one
    set of weights.
    """

    concurrency = 1

    def __init__(self, path_or_id: str | Path):
        from transformers import AutoTokenizer

        from heredity.lm.load import load_model, quiet

        self.name = str(path_or_id)
        self.identity = {"provider": "local", "model": self.name, "parameters": {"temperature": 0, "begun": True}}
        self._model: Any = load_model(path_or_id)
        with quiet():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self.name)
        self._lock = threading.Lock()
        self._stopped = False
        before = self._ids("\t", False)
        ids = [self._ids(f"\t{digit}", False) for digit in range(LEVELS)]
        # None where a digit is not one token: then it has no probability.
        self._digits = [digit[-1] if digit[:-1] == before else None for digit in ids]

    def stop(self) -> None:
        """Refuse further requests."""
        self._stopped = True

    def complete(self, request: Request) -> tuple[Answer | Failure, int]:
        """Greedy decoding, or the log-probabilities of the prompt; refused where the context leaves no room."""
        import torch

        with self._lock, torch.inference_mode():
            if self._stopped:
                return Failure("unreachable", "stopped"), 0
            begun = _BEGUN if request.question == "explain" and not request.echo else ""
            ids = self._ids(self._framed(request) + begun, True)
            context = getattr(self._model.config, "max_position_embeddings", None)
            limit = 0 if request.echo else request.max_tokens
            if context is not None and len(ids) + limit > context:
                detail = f"{len(ids)} tokens and {limit} for the answer exceed its context of {context}"
                return Failure("refused", f"{self.name}: {detail}; lower the batch"), 1
            prompt = torch.tensor([ids], device=self._model.device)
            return (self._echo(prompt, ids) if request.echo else self._generate(prompt, limit, begun)), 1

    def _generate(self, prompt: Any, limit: int, begun: str) -> Answer:
        from heredity.lm.load import quiet

        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        mask, size = prompt.new_ones(prompt.shape), prompt.shape[1]
        if begun:
            greedy |= {"stop_strings": list(_SENTENCE_ENDS), "tokenizer": self._tokenizer}
        with quiet():
            out = self._model.generate(prompt, attention_mask=mask, max_new_tokens=limit, pad_token_id=0, **greedy)
        new = out[0, size:].tolist()
        ends = self._model.generation_config.eos_token_id
        ended = bool(new) and new[-1] in (ends if isinstance(ends, list) else [ends])
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        if begun:
            first = min((at for end in _SENTENCE_ENDS if (at := text.find(end)) >= 0), default=-1)
            ended = ended or first >= 0
            text = begun + (text[:first] if first >= 0 else text) + ('"}' if ended else "")
        return Answer(text, "stop" if ended else "length", size, len(new))

    def _echo(self, prompt: Any, ids: list[int]) -> Answer:
        logits = self._model(prompt).logits[0].float()
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
