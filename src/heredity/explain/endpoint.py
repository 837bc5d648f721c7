"""Any endpoint that speaks OpenAI's protocol: a provider, or a server on this machine."""

from __future__ import annotations

import email.utils
import ipaddress
import json
import os
import random
import re
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from heredity.explain.completer import Answer, Refused, Request
from heredity.explain.protocol import Failure

OPENAI = "https://api.openai.com/v1"
LONGEST_WAIT = 120.0
"""Seconds: a server that asks for a longer pause is not waited for."""
GIVE_UP = 3
"""After this many requests in a row that found nobody, each further one is tried once, until one is answered."""
_SECRET = 8
"""Characters of a key that is worth hiding; servers that need none are given words such as `x` or `token`."""
_MOST_TOKENS = 2**40
_FIRST_WAIT, _LONGEST_BACKOFF = 0.5, 16.0
_TRANSIENT = (408, 409, 429)


class EndpointError(ValueError):
    """An endpoint that cannot be used; the message says why and what to do."""


class _Fault(NamedTuple):
    failure: Failure
    again: bool
    wait: float | None


class Endpoint:
    """A `Completer` behind HTTP, through the `openai` client.

    model, base_url: what to ask and where, such as `http://127.0.0.1:8000/v1`. key_variable: the environment variable
    that holds the API key; a server on this machine needs none, and "" says that another one needs none either.
    retries: further tries after 408, 409, 429, 5xx, a timeout, a broken connection or a broken body, with growing
    pauses or those that the server asks for in `Retry-After`. timeout: seconds without a byte. concurrency: requests at
    a time. seed: sent along, at temperature 0. limit: the name under which the endpoint knows the limit of an answer's
    tokens. extra: further parameters of the request body; None leaves one out, such as `{"temperature": None}`.

    Raises `EndpointError` when the client is not installed, the key is missing, or base_url is no http address.
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
        seed: int = 0,
        limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra: Mapping[str, Any] | None = None,
    ):
        if retries < 0 or concurrency < 1 or not timeout > 0:
            raise EndpointError(
                f"retries={retries}, concurrency={concurrency}, timeout={timeout}: must be at least 0, at least 1 and "
                "above 0"
            )
        self.name = model
        self.concurrency = concurrency
        self.provider = _provider(base_url)
        self._key = _key(base_url, key_variable)
        self._client = _client(base_url, self._key, timeout)
        self._retries = retries
        self._limit = limit
        self._parameters = {"temperature": 0, "seed": seed} | dict(extra or {})
        self._slots = threading.Semaphore(concurrency)
        self._stopped = threading.Event()
        self._missed = 0
        self._denied: Failure | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """Host and port without user, path or key; model; parameters."""
        return {"provider": self.provider, "model": self.name, "parameters": self._parameters}

    def stop(self) -> None:
        """Try nothing again."""
        self._stopped.set()

    def complete(self, request: Request) -> Answer | Refused:
        """Ask, and ask again where that can help. After a 401 nothing is asked any more: the key is wrong."""
        retries = 0 if self._missed >= GIVE_UP else self._retries
        with self._slots:
            attempt = 0
            while True:
                if self._denied:
                    return Refused(self._denied, attempt)
                if self._stopped.is_set():
                    return Refused(Failure("unreachable", "stopped"), attempt)
                attempt += 1
                found = self._once(request)
                if isinstance(found, Answer):
                    self._missed = 0
                    return found._replace(attempts=attempt)
                if not found.again or attempt > retries:
                    break
                backoff = min(_FIRST_WAIT * 2 ** (attempt - 1), _LONGEST_BACKOFF) * random.uniform(0.75, 1)
                self._stopped.wait(backoff if found.wait is None else found.wait)
        self._missed = self._missed + 1 if found.failure.kind == "unreachable" else 0
        return Refused(found.failure, attempt)

    def _once(self, request: Request) -> Answer | _Fault:
        import openai

        body = {name: value for name, value in self._body(request).items() if value is not None}
        ask: Any = (self._client.completions if request.echo else self._client.chat.completions).with_raw_response
        wanted = {"model": self.name} | {name: body.pop(name) for name in ("prompt", "messages") if name in body}
        try:
            text = ask.create(**wanted, extra_body=body).text
        except openai.APIStatusError as error:
            return self._status(error.status_code, error.response.headers, str(error))
        except openai.APITimeoutError:
            return _Fault(Failure("unreachable", f"{self.provider}: no answer in time"), True, None)
        except openai.APIConnectionError as error:
            reason = self._redacted(str(error.__cause__ or error))
            return _Fault(Failure("unreachable", f"{self.provider}: {reason}"), True, None)
        return self._read(text, request)

    def _body(self, request: Request) -> dict[str, Any]:
        if request.echo:
            # A limit of 0 means no limit to some servers, so one token is asked for and never looked at.
            asked = {"prompt": request.prompt, "echo": True, "logprobs": request.logprobs, "max_tokens": 1}
            return self._parameters | asked
        asked = {"messages": [{"role": "user", "content": request.prompt}], self._limit: request.max_tokens}
        if request.logprobs:
            asked |= {"logprobs": True, "top_logprobs": request.logprobs}
        return self._parameters | asked

    def _status(self, status: int, headers: Mapping[str, str], message: str) -> _Fault:
        failure = Failure("refused", f"{self.provider}: HTTP {status}: {self._redacted(message)[:300]}")
        if status == 401:
            self._denied = failure
        wait = retry_after(headers, time.time())
        again = (status in _TRANSIENT or status >= 500) and (wait or 0.0) <= LONGEST_WAIT
        return _Fault(failure, again, wait)

    def _read(self, text: str, request: Request) -> Answer | _Fault:
        try:
            body = json.loads(text)
        except ValueError:
            return _Fault(Failure("truncated", f"{self.provider}: the body of the response broke off"), True, None)
        try:
            return self._without_key(answer_of(body, request.echo))
        except (LookupError, TypeError, ValueError, AttributeError):
            return _Fault(Failure("refused", f"{self.provider}: {self._redacted(json.dumps(body))[:300]}"), False, None)

    def _without_key(self, answer: Answer) -> Answer:
        """An endpoint may send the key back, in whatever escapes: it is looked for in what the escapes mean."""
        tokens = tuple(self._redacted(token) for token in answer.tokens)
        top = tuple({self._redacted(token): value for token, value in likely.items()} for likely in answer.top)
        return answer._replace(text=self._redacted(answer.text), tokens=tokens, top=top)

    def _redacted(self, text: str) -> str:
        if not self._key or len(self._key) < _SECRET:
            return text
        text = text.replace(self._key, "(key)")
        # What is written in JSON's escapes would be a key again once it is read.
        return "(key)" if self._key in _unescaped(text) else text


def answer_of(body: Mapping[str, Any], echo: bool) -> Answer:
    """An answer from the body of a response of `/chat/completions`, or of `/completions` for an echo.

    Raises `LookupError`, `TypeError`, `ValueError` or `AttributeError` for a body of another form.
    """
    choice, usage = body["choices"][0], body.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    tokens_in, tokens_out = (
        count if isinstance(count, int) and 0 <= count < _MOST_TOKENS else None for count in counts
    )
    told = choice.get("logprobs") or {}
    if echo:
        tokens = tuple(str(token) for token in told.get("tokens") or ())
        top = tuple(_likely(likely or {}) for likely in told.get("top_logprobs") or ())
        return Answer("", "stop", tokens_in, tokens_out, tokens, top)
    message, finish = choice["message"], choice.get("finish_reason")
    text = message.get("content") or ""
    if not isinstance(text, str):
        raise TypeError(f"content is {type(text).__name__}")
    refused = finish == "content_filter" or (not text and message.get("refusal"))
    places = told.get("content") or ()
    top = tuple(_likely({own["token"]: own["logprob"] for own in place["top_logprobs"]}) for place in places)
    return Answer(
        text,
        "refused" if refused else "length" if finish == "length" else "stop",
        tokens_in,
        tokens_out,
        tuple(place["token"] for place in places),
        top,
    )


def _unescaped(text: str) -> str:
    found = re.sub(r"\\u([0-9a-fA-F]{4})", lambda escape: chr(int(escape[1], 16)), text)
    return found.replace("\\/", "/")


def _likely(told: Mapping[str, Any]) -> dict[str, float]:
    """Log-probabilities by token; what is no number was not told."""
    return {token: float(value) for token, value in told.items() if isinstance(value, (int, float))}


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds a response asks to wait (`retry-after-ms`, or `Retry-After` in seconds or as a date); None if it does
    not."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return max(float(headers[name]) / scale, 0.0)
        except (KeyError, ValueError):
            continue
    try:
        return max(email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - now, 0.0)
    except (KeyError, ValueError):
        return None


def _provider(base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if not host or parts.scheme not in ("http", "https"):
        raise EndpointError(f"{base_url}: is no http address; give one such as {OPENAI} or http://127.0.0.1:8000/v1")
    return host if port is None else f"{host}:{port}"


def _key(base_url: str, variable: str) -> str | None:
    key = os.environ.get(variable, "").strip() if variable else ""
    if not key.isascii():
        raise EndpointError(f"{variable}: holds characters that no key has; put the API key there")
    if key or not variable or _on_this_machine(urlsplit(base_url).hostname or ""):
        return key or None
    raise EndpointError(
        f"{variable}: is not set; put the API key of {_provider(base_url)} there, name another variable, or name none "
        'if it needs no key ("")'
    )


def _on_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _client(base_url: str, key: str | None, timeout: float) -> Any:
    try:
        from openai import OpenAI
    except ImportError:
        raise EndpointError("the openai client is not installed; pip install 'heredity[explain]'") from None
    # Its own retries cannot be interrupted, nor counted when they fail.
    return OpenAI(base_url=base_url, api_key=key or "none", timeout=timeout, max_retries=0)
