"""Asks a larger model about the few prompts of which the local model is not sure.

Only prompts are sent: closed-vocabulary texts that hold no address, uid or time. If anything
fails, the local verdict is kept, and the reason is counted.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from typing import Annotated, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gradsense.detection.detector import Verdict
from gradsense.gateway.alerting.sink import tls_context
from gradsense.gateway.settings import EscalateSettings, checked_secret, read_secret
from gradsense.prompts.templates import Template

#: Why a prompt kept its local verdict.
Reason = Literal["budget", "busy", "waiting", "timeout", "http", "refused", "mismatch", "garbled"]

_MAX_ANSWER_BYTES = 4 << 20
#: Timeout of connecting, of sending and of each read; and of a whole exchange. Both are longer than
#: a request's time budget, so that a slow connection is ready for the next request.
_PHASE_S, _EXCHANGE_S = 5.0, 30.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 300.0
#: Less than the service keeps an idle connection: otherwise requests would meet its closing.
_KEEP_ALIVE_S = 30.0
#: Request line, headers and TLS record of one request.
_OVERHEAD_BYTES = 400
_STATUS: dict[int, Reason] = dict.fromkeys((401, 403, 404, 413, 422), "refused")
_STATUS[409] = "mismatch"


class _Answer(BaseModel):
    """A verdict in the service's JSON."""

    model_config = ConfigDict(allow_inf_nan=False)

    # A larger model may have classes that the local one has not. They are taken as they are; the
    # pattern keeps them harmless in alerts and file formats.
    label: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9&+._/ ()-]{1,64}$")]
    probability: float = Field(ge=0, le=1)
    suspicion: float = Field(ge=0, le=1)
    alarm: bool
    novelty: float | None
    novel: bool


class _Answers(BaseModel):
    verdicts: list[_Answer]


class _Failed(Exception):
    """The request failed. ``wait_s``: the server's Retry-After."""

    def __init__(self, reason: Reason, wait_s: float = 0.0) -> None:
        self.reason, self.wait_s = reason, wait_s


_Found = dict[str, Verdict]


@dataclass
class ByteBudget:
    """A token bucket of at most ``per_minute`` bytes, refilled evenly over a minute.

    In any span of t seconds it grants at most ``per_minute`` · (1 + t / 60) bytes. A clock that
    is set back refills nothing.
    """

    per_minute: int
    _left: float = 0.0
    _at: float = -math.inf  # so it begins full

    def left(self, now: float) -> int:
        """Bytes that ``take`` would grant at ``now`` (seconds of any monotonic clock)."""
        if now > self._at:
            refill = (now - self._at) * self.per_minute / 60 if self.per_minute else 0.0
            self._left, self._at = min(self.per_minute, self._left + refill), now
        return int(self._left)

    def take(self, size: int, now: float) -> bool:
        """Spend ``size`` bytes if they are there; otherwise nothing is spent."""
        if size > self.left(now):
            return False
        self._left -= size
        return True


@dataclass
class _Breaker:
    """Exponential back-off: after k failures in a row no request for 2^(k-1) s, so ``until``."""

    failures: int = 0
    until: float = -math.inf

    def fail(self, now: float, least_s: float = 0.0) -> None:
        """Open it, for ``least_s`` at least."""
        wait = min(_FIRST_WAIT_S * 2.0 ** min(self.failures, 60), _LONGEST_WAIT_S)
        self.failures += 1
        self.until = now + min(max(wait, least_s), _LONGEST_WAIT_S)


class Escalator:
    """Asks the service, within budgets of bytes and time.

    An answer is the larger model's verdict unchanged, with its own label, thresholds and scale of
    novelty: whether it raises an alert is the larger model's decision, not the local threshold's.

    After a failure no request is sent for 1 s, then 2 s and so on up to 5 minutes (a circuit
    breaker with exponential back-off), so a dead service soon costs one time budget in five
    minutes. A request runs in a thread of its own, and ``ask`` waits for it no longer than the
    time budget. An answer that comes later counts as a failure, but is cached for the next
    identical prompt.

    Attributes:
        counts: prompts by outcome: ``asked`` and ``answered``, ``remembered`` (from the cache), or
            the ``Reason`` why the local verdict is kept.
        sent_bytes: of requests, with an allowance for headers.

    Raises:
        InputError: no usable token or authority file.
    """

    def __init__(
        self,
        settings: EscalateSettings,
        template: Template,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self.sent_bytes = 0
        self._template, self._clock = template, clock
        self._budget = ByteBudget(settings.bytes_per_minute)
        self._breaker = _Breaker()
        self._memory: OrderedDict[str, tuple[float, Verdict]] = OrderedDict()
        self._lock = threading.Lock()  # for memory and breaker, which two threads use
        self._client = _client(settings)
        self._pool = ThreadPoolExecutor(1, "escalate")
        self._running: Future[_Found] | None = None

    def unsure(self, verdict: Verdict) -> bool:
        """Whether a local verdict should be escalated."""
        low, high = self.settings.band
        return low <= verdict.probability <= high or (self.settings.novel and verdict.novel)

    def ask(self, texts: Sequence[str]) -> list[Verdict | None]:
        """The larger model's verdicts on prompts, in order; None where the local one is kept.

        Takes ``time_ms`` at most. Pass the least sure prompts first: where the byte budget or
        ``most`` does not suffice for all, the first are sent.
        """
        now = self._clock()
        found = self._remembered(texts, now)
        self.counts["remembered"] += sum(text in found for text in texts)
        unknown = [text for text in dict.fromkeys(texts) if text not in found]
        failed: dict[str, Reason] = {}
        if unknown:
            fresh, failed = self._escalate(unknown, now)
            found |= fresh
        self.counts.update(failed[text] for text in texts if text in failed)
        return [found.get(text) for text in texts]

    def close(self) -> None:
        """Cancel a running request."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _escalate(self, texts: list[str], now: float) -> tuple[_Found, dict[str, Reason]]:
        """Verdicts of distinct prompts, and why the others have none."""
        if self._running is not None and not self._running.done():
            return {}, dict.fromkeys(texts, "busy")
        with self._lock:
            if now < self._breaker.until:
                return {}, dict.fromkeys(texts, "waiting")
        chosen, body = self._fitting(texts, now)
        failed: dict[str, Reason] = dict.fromkeys(texts[len(chosen) :], "budget")
        if not chosen:
            return {}, failed
        deadline = now + self.settings.time_ms / 1000
        self.counts["asked"] += len(chosen)
        self._running = self._pool.submit(self._request, chosen, body, deadline)
        try:
            found = self._running.result(timeout=max(0.0, deadline - self._clock()))
        except Late:
            return {}, failed | dict.fromkeys(chosen, "timeout")
        except _Failed as failure:
            return {}, failed | dict.fromkeys(chosen, failure.reason)
        self.counts["answered"] += len(found)
        return found, failed

    def _fitting(self, texts: list[str], now: float) -> tuple[list[str], bytes]:
        """The first prompts, as many as the budgets allow, and the request's body."""
        template = self._template
        lead = f'{{"template":{json.dumps(template.name)},"version":{template.version},"prompts":['
        written = [json.dumps(text) for text in texts[: self.settings.most]]
        room = self._budget.left(now) - _OVERHEAD_BYTES - len(lead) - len("]}")
        fitting = 0
        for text in written:
            room -= len(text) + 1
            if room < 0:
                break
            fitting += 1
        body = f"{lead}{','.join(written[:fitting])}]}}".encode()
        if fitting:
            self._budget.take(len(body) + _OVERHEAD_BYTES, now)
            self.sent_bytes += len(body) + _OVERHEAD_BYTES
        return texts[:fitting], body

    def _request(self, texts: list[str], body: bytes, deadline: float) -> _Found:
        """One exchange, in its own thread."""
        try:
            verdicts = self._exchange(body, len(texts))
        except _Failed as failure:
            with self._lock:
                self._breaker.fail(self._clock(), failure.wait_s)
            raise
        found, now = dict(zip(texts, verdicts, strict=True)), self._clock()
        with self._lock:
            if now < deadline:
                self._breaker = _Breaker()
            else:
                self._breaker.fail(now)
            for text, verdict in found.items():
                self._memory[text] = (now, verdict)
                self._memory.move_to_end(text)
            while len(self._memory) > self.settings.memory:
                self._memory.popitem(last=False)
        return found

    def _exchange(self, body: bytes, prompts: int) -> list[Verdict]:
        """Send a body and read as many verdicts as it has prompts.

        Raises:
            _Failed: there is no valid answer.
        """
        ends, answer = self._clock() + _EXCHANGE_S, bytearray()
        try:
            with self._client.stream("POST", "/v1/verdicts", content=body) as response:
                if response.status_code != httpx.codes.OK:
                    raise _Failed(_STATUS.get(response.status_code, "http"), _retry_s(response))
                for piece in response.iter_raw():
                    answer += piece
                    if len(answer) > _MAX_ANSWER_BYTES or self._clock() > ends:
                        raise _Failed("garbled")
            verdicts = _Answers.model_validate_json(answer).verdicts
        except httpx.TimeoutException:
            raise _Failed("timeout") from None
        except httpx.HTTPError:
            raise _Failed("http") from None
        except ValidationError:
            raise _Failed("garbled") from None
        if len(verdicts) != prompts:
            raise _Failed("garbled")
        return [Verdict(**verdict.model_dump()) for verdict in verdicts]

    def _remembered(self, texts: Sequence[str], now: float) -> _Found:
        with self._lock:
            known = {text: self._memory.get(text) for text in texts}
        return {
            text: entry[1]
            for text, entry in known.items()
            if entry is not None and now - entry[0] <= self.settings.memory_s
        }


def _client(settings: EscalateSettings) -> httpx.Client:
    # No compressed answers: decompression would defeat the bound on their size.
    headers = {"User-Agent": "gradsense", "Accept-Encoding": "identity"}
    headers["Content-Type"] = "application/json"
    token = _token(settings)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return httpx.Client(
        base_url=settings.url,
        headers=headers,
        verify=tls_context(ca=settings.ca),
        timeout=_PHASE_S,
        limits=httpx.Limits(max_connections=1, keepalive_expiry=_KEEP_ALIVE_S),
        trust_env=False,  # only the settings count: no proxy, no .netrc
    )


def _token(settings: EscalateSettings) -> str | None:
    if settings.token_file is not None:
        return read_secret(settings.token_file)
    if settings.token_env is None:
        return None
    return checked_secret(os.environ.get(settings.token_env, ""), f"${settings.token_env}")


def _retry_s(response: httpx.Response) -> float:
    """Seconds of Retry-After (RFC 9110, §10.2.3); 0 where there are none, or a date."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdecimal() and len(value) < 6 else 0.0
