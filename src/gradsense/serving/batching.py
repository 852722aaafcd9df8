"""Questions of many gateways, answered together: dynamic batching in front of one model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gradsense.detection.detector import Verdict


class Full(Exception):
    """Too many prompts wait already."""


@dataclass
class _Question:
    texts: Sequence[str]
    answer: asyncio.Future[list[Verdict]]


class RequestBatcher:
    """Collects prompts up to ``most``, or for ``wait_s`` from the first, and judges them at once.

    While the model works in its thread, what arrives waits and makes the next batch, so batches
    grow with the load.

    Args:
        judge: prompts to verdicts; called by one thread at a time, never by two.
        most: prompts of a batch; a single larger question still goes in one piece.
        wait_s: what a lone question waits for company.
        waiting: prompts that may wait; beyond, ``ask`` raises ``Full``.
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
        self._queue: deque[_Question] = deque()
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._enough = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Prompts that wait for the model."""
        return self._waiting

    async def ask(self, texts: Sequence[str]) -> list[Verdict]:
        """Verdicts of ``texts``, in order.

        Raises:
            Full: at once, when too much waits.
            ValueError: what ``judge`` raised for these texts.
        """
        if self._waiting + len(texts) > self._limit:
            raise Full
        question = _Question(texts, asyncio.get_running_loop().create_future())
        self._queue.append(question)
        self._waiting += len(texts)
        self._arrived.set()
        if self._waiting >= self._most:
            self._enough.set()
        return await question.answer

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

    def _take(self) -> list[_Question]:
        """The next batch, oldest first, without questions whose asker has gone."""
        batch: list[_Question] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].texts) <= self._most):
            question = self._queue.popleft()
            self._waiting -= len(question.texts)
            if not question.answer.done():
                batch.append(question)
                size += len(question.texts)
        if not self._queue:
            self._arrived.clear()
        if self._waiting < self._most:
            self._enough.clear()
        return batch

    async def _answer(self, batch: list[_Question]) -> None:
        texts = [text for question in batch for text in question.texts]
        try:
            verdicts = await asyncio.to_thread(self._judge, texts)
        except Exception as error:  # whatever it is belongs to the asker, not to this loop
            if len(batch) > 1:  # one bad question must not spoil the others
                for question in batch:
                    await self._answer([question])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        start = 0
        for question in batch:
            end = start + len(question.texts)
            if not question.answer.done():
                question.answer.set_result(verdicts[start:end])
            start = end
