"""The HTTP service of a larger model: it answers prompts with verdicts.

``POST /v1/verdicts`` takes ``{"template": name, "version": number, "prompts": [text, ...]}`` and
answers ``{"model": id, "labels": [...], "verdicts": [...]}``, a verdict for each prompt in order.
``GET /v1/health`` and ``GET /metrics`` are for its operator. Bodies are bounded before they are
parsed, and appear in no log and no error.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, NoReturn, Protocol

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gradsense.detection.bundle import Manifest
from gradsense.detection.detector import Verdict

#: Seconds for a whole request body to arrive.
_BODY_S = 10.0
#: Seconds after which an overloaded server may be asked again.
_RETRY_S = 1

Prompt = Annotated[str, StringConstraints(min_length=1, max_length=2000)]


class Full(Exception):
    """Too many prompts are waiting already."""


@dataclass
class _Waiting:
    texts: Sequence[str]
    answer: asyncio.Future[list[Verdict]]


class RequestBatcher:
    """Collects prompts, up to ``most`` or for ``wait_s`` from the first, and judges them together.

    Requests that arrive while the model runs in its thread make the next batch, so batches grow
    with the load.

    Args:
        judge: prompts to verdicts; never called by two threads at once.
        most: prompts of a batch; a single larger request is still judged in one piece.
        wait_s: how long a single request waits for others.
        waiting: most prompts that may wait; beyond, ``ask`` raises ``Full``.
    """

    def __init__(
        self,
        judge: Callable[[Sequence[str]], list[Verdict]],
        *,
        most: int = 256,
        wait_s: float = 0.002,
        waiting: int = 8192,
    ) -> None:
        self._judge = judge
        self._most, self._wait_s, self._limit = most, wait_s, waiting
        self._queue: deque[_Waiting] = deque()
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._enough = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Prompts that are waiting for the model."""
        return self._waiting

    async def ask(self, texts: Sequence[str]) -> list[Verdict]:
        """Verdicts of ``texts``, in order.

        Raises:
            Full: at once, if too many prompts are waiting.
            ValueError: raised by ``judge`` for these texts.
        """
        if self._waiting + len(texts) > self._limit:
            raise Full
        request = _Waiting(texts, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self._waiting += len(texts)
        self._arrived.set()
        if self._waiting >= self._most:
            self._enough.set()
        return await request.answer

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            await self._arrived.wait()
            if self._waiting < self._most:
                try:
                    async with asyncio.timeout(self._wait_s):
                        await self._enough.wait()
                except TimeoutError:
                    pass
            await self._answer(self._take())

    def _take(self) -> list[_Waiting]:
        """The next batch, oldest first, without requests whose client has gone."""
        batch: list[_Waiting] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].texts) <= self._most):
            request = self._queue.popleft()
            self._waiting -= len(request.texts)
            if not request.answer.done():
                batch.append(request)
                size += len(request.texts)
        if not self._queue:
            self._arrived.clear()
        if self._waiting < self._most:
            self._enough.clear()
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        texts = [text for request in batch for text in request.texts]
        try:
            verdicts = await asyncio.to_thread(self._judge, texts)
        except Exception as error:  # it concerns the request, and must not end this loop
            if len(batch) > 1:  # one bad request must not fail the others
                for request in batch:
                    await self._answer([request])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        start = 0
        for request in batch:
            end = start + len(request.texts)
            if not request.answer.done():
                request.answer.set_result(verdicts[start:end])
            start = end


class LargerModel(Protocol):
    """The part of ``detection.detector.Detector`` that the service uses."""

    manifest: Manifest

    def judge_texts(self, texts: Sequence[str]) -> list[Verdict]: ...


class VerdictRequest(BaseModel):
    """The body of ``POST /v1/verdicts``."""

    model_config = ConfigDict(extra="forbid")

    template: str = Field(max_length=100)
    version: int
    prompts: list[Prompt] = Field(min_length=1)


def create_app(
    detector: LargerModel,
    *,
    token: str | None,
    max_prompts: int = 1024,
    max_bytes: int = 1 << 20,
    batch: int = 256,
    wait_s: float = 0.002,
    waiting: int = 8192,
) -> FastAPI:
    """The service around one detector.

    Args:
        token: required as ``Authorization: Bearer``; None requires none.
        max_prompts, max_bytes: of one request; more is refused with 413.
        batch, wait_s, waiting: of ``RequestBatcher``; beyond ``waiting`` prompts 503.

    Statuses: 401 no or wrong token, 408 the body did not arrive in 10 s, 409 another template,
    413 too large, 422 an invalid body, 503 overloaded, with Retry-After.
    """
    batcher = RequestBatcher(detector.judge_texts, most=batch, wait_s=wait_s, waiting=waiting)
    manifest, figures = detector.manifest, _Figures()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    async def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise HTTPException(401, "no or wrong token", headers={"WWW-Authenticate": "Bearer"})

    # Without FastAPI's own pages, which would show anybody what runs here.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(figures.watch)

    @app.post("/v1/verdicts", dependencies=[Depends(allowed)])
    async def verdicts(request: Request) -> dict[str, Any]:
        wanted = _parsed(await _body(request, max_bytes))
        if len(wanted.prompts) > max_prompts:
            raise HTTPException(413, f"more than {max_prompts} prompts")
        own = manifest.template
        if (wanted.template, wanted.version) != (own.name, own.version):
            reads = f"template '{own.name}' version {own.version}"
            asked = f"'{wanted.template}' version {wanted.version}"
            raise HTTPException(409, f"this model reads {reads}, not {asked}")
        try:
            answers = await batcher.ask(wanted.prompts)
        except Full:
            raise HTTPException(503, "overloaded", headers={"Retry-After": str(_RETRY_S)}) from None
        except ValueError:
            raise HTTPException(422, "a prompt is not one of this template") from None
        figures.prompts.inc(len(answers))
        return {
            "model": manifest.id,
            "labels": manifest.labels,
            "verdicts": [asdict(verdict) for verdict in answers],
        }

    @app.get("/v1/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", dependencies=[Depends(allowed)])
    async def metrics() -> Response:
        return Response(generate_latest(figures.registry), media_type=CONTENT_TYPE_LATEST)

    return app


class _Figures:
    """The service's Prometheus metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.prompts = Counter(
            "gradsense_serve_prompts", "Prompts answered.", registry=self.registry
        )
        self._requests = Counter(
            "gradsense_serve_requests", "Requests by status.", ["status"], registry=self.registry
        )
        self._seconds = Histogram(
            "gradsense_serve_request_seconds", "Time to answer.", registry=self.registry
        )

    async def watch(self, request: Request, following: Callable[[Request], Any]) -> Response:
        """Middleware that counts a request and times it."""
        began = time.perf_counter()
        response: Response = await following(request)
        self._requests.labels(response.status_code).inc()
        self._seconds.observe(time.perf_counter() - began)
        return response


async def _body(request: Request, limit: int) -> bytes:
    """The whole body; reading stops as soon as it is known to be too large."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        _too_large(limit)
    pieces = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for piece in request.stream():
                pieces += piece
                if len(pieces) > limit:  # a stream may have no length, or a wrong one
                    _too_large(limit)
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive in {_BODY_S:g} s") from None
    return bytes(pieces)


def _too_large(limit: int) -> NoReturn:
    # The rest of the body is not read, so the connection is of no further use.
    raise HTTPException(413, f"more than {limit} bytes", headers={"Connection": "close"})


def _parsed(body: bytes) -> VerdictRequest:
    try:
        return VerdictRequest.model_validate_json(body)
    except ValidationError as error:
        # Place and kind of the fault only: the value would be a gateway's prompt.
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in fault["loc"][:2]) or "body"
        raise HTTPException(422, f"{place}: {fault['type']}") from None
