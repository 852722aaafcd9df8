"""Dynamic batching: requests of many gateways are judged together by one model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gradsense.detection.detector import Verdict


class Full(Exception):
    """Too many prompts are waiting already."""


@dataclass
class _Request:
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
        self._queue: deque[_Request] = deque()
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
        request = _Request(texts, asyncio.get_running_loop().create_future())
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

    def _take(self) -> list[_Request]:
        """The next batch, oldest first, without requests whose client has gone."""
        batch: list[_Request] = []
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

    async def _answer(self, batch: list[_Request]) -> None:
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
