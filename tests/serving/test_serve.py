"""The service of the larger model, without a network."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator, Sequence

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from gradsense.detection.bundle import BundleThreshold, Manifest, TemplateName, Tokens
from gradsense.detection.detector import Verdict
from gradsense.serving.server import Full, RequestBatcher, create_app

TOKEN = "0123456789abcdef"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def verdict(text: str) -> Verdict:
    return Verdict(text.upper(), 0.75, 0.25, False, 1.5, False)


class Fake:
    """Answers each prompt with itself in capitals, and remembers the batches it saw."""

    def __init__(self) -> None:
        self.manifest = Manifest(
            labels=("Benign", "C&C"),
            template=TemplateName(name="context", version=1),
            tokens=Tokens(kind="words", max_tokens=19),
            alarm=BundleThreshold(value=0.5, share=0.0, flows=0, source="test"),
            files={},
        )
        self.batches: list[list[str]] = []

    def judge_texts(self, texts: Sequence[str]) -> list[Verdict]:
        self.batches.append(list(texts))
        if "bad" in texts:
            raise ValueError("secret prompt")
        return [verdict(text) for text in texts]


def question(*prompts: str, version: int = 1) -> dict[str, object]:
    return {"template": "context", "version": version, "prompts": list(prompts)}


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def client(fake: Fake) -> Iterator[TestClient]:
    app = create_app(fake, token=TOKEN, max_prompts=3, max_bytes=500)
    with TestClient(app, headers=HEADERS) as client:
        yield client


def test_verdicts_come_in_order_with_everything_they_say(client: TestClient, fake: Fake) -> None:
    answer = client.post("/v1/verdicts", json=question("a", "b", "a"))
    assert answer.status_code == 200
    assert answer.json() == {
        "model": fake.manifest.id,
        "labels": ["Benign", "C&C"],
        "verdicts": [
            {
                "label": label,
                "probability": 0.75,
                "suspicion": 0.25,
                "alarm": False,
                "novelty": 1.5,
                "novel": False,
            }
            for label in ("A", "B", "A")
        ],
    }


@pytest.mark.parametrize("given", ["", "Bearer", f"Bearer {TOKEN}x", TOKEN, "Bearer \xe4"])
def test_no_token_no_answer(client: TestClient, fake: Fake, given: str) -> None:
    headers = {"Authorization": given.encode("latin-1")}
    for method, path in (("POST", "/v1/verdicts"), ("GET", "/metrics")):
        answer = client.request(method, path, json=question("a"), headers=headers)
        assert answer.status_code == 401
    assert fake.batches == []


def test_health_needs_no_token_and_tells_nothing(client: TestClient) -> None:
    answer = client.get("/v1/health", headers={"Authorization": ""})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert client.get("/docs").status_code == 404
    assert client.get("/openapi.json").status_code == 404


def test_another_template_is_a_conflict_that_says_so(client: TestClient) -> None:
    answer = client.post("/v1/verdicts", json=question("a", version=2))
    assert answer.status_code == 409
    assert "'context' version 1, not 'context' version 2" in answer.json()["detail"]


def test_too_much_is_refused_before_it_is_parsed(client: TestClient, fake: Fake) -> None:
    assert client.post("/v1/verdicts", json=question(*"abcd")).status_code == 413
    assert client.post("/v1/verdicts", content=b"{" * 501).status_code == 413

    def stream() -> Iterator[bytes]:  # chunked: no length in the head
        yield from [b" " * 100] * 6

    assert client.post("/v1/verdicts", content=stream()).status_code == 413
    lie = {"Content-Length": "10"}
    assert client.post("/v1/verdicts", content=b" " * 501, headers=lie).status_code == 413
    assert fake.batches == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        json.dumps(question()).encode(),
        json.dumps(question("")).encode(),
        json.dumps(question("secret" * 400)).encode()[:500],
        json.dumps({"prompts": "secret"}).encode(),
        json.dumps({**question("a"), "more": "secret"}).encode(),
        json.dumps({**question("a"), "prompts": ["secret", 5]}).encode(),
    ],
)
def test_what_is_no_question_is_refused_without_repeating_it(
    client: TestClient, body: bytes
) -> None:
    answer = client.post("/v1/verdicts", content=body)
    assert answer.status_code == 422
    assert "secret" not in answer.text


def test_nothing_of_a_body_is_logged(
    client: TestClient, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    client.post("/v1/verdicts", json=question("private-prompt"))
    client.post("/v1/verdicts", json=question("private-prompt", "bad"))
    client.post("/v1/verdicts", content=b'{"private-prompt')
    said = capfd.readouterr()
    assert "private-prompt" not in caplog.text + said.out + said.err


def test_a_prompt_that_the_model_cannot_read_spoils_its_own_request_only(fake: Fake) -> None:
    async def both() -> list[int]:
        app = create_app(fake, token=None, wait_s=0.2)
        answers = await asked(app, [question("good"), question("bad"), question("fine")])
        assert [answer.status_code for answer in answers] == [200, 422, 200]
        assert "secret" not in answers[1].text
        return [len(batch) for batch in fake.batches]

    assert asyncio.run(both()) == [3, 1, 1, 1], "together first, then each by itself"


async def asked(app: FastAPI, questions: Sequence[dict[str, object]]) -> list[httpx.Response]:
    """All questions at the same time."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        posts = (client.post("/v1/verdicts", json=one) for one in questions)
        return list(await asyncio.gather(*posts))


def test_concurrent_requests_share_a_batch(fake: Fake) -> None:
    app = create_app(fake, token=None, wait_s=0.5, batch=8)
    answers = asyncio.run(asked(app, [question(f"p{number}") for number in range(8)]))
    assert len(fake.batches) == 1, "eight prompts are a full batch"
    labels = [answer.json()["verdicts"][0]["label"] for answer in answers]
    assert labels == [f"P{number}" for number in range(8)]


def test_overload_is_said_at_once(fake: Fake) -> None:
    app = create_app(fake, token=None, wait_s=0.1, waiting=2)
    answers = asyncio.run(asked(app, [question("a"), question("b"), question("c")]))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503]
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["retry-after"] == "1"


def test_metrics_count_requests_and_prompts(client: TestClient) -> None:
    client.post("/v1/verdicts", json=question("a", "b"))
    client.post("/v1/verdicts", json=question("a", version=9))
    text = client.get("/metrics").text
    assert "gradsense_serve_prompts_total 2.0" in text
    assert 'gradsense_serve_requests_total{status="200"} 1.0' in text
    assert 'gradsense_serve_requests_total{status="409"} 1.0' in text


# The batcher alone ------------------------------------------------------------------------------


def test_what_arrives_while_the_model_works_is_the_next_batch() -> None:
    batches: list[int] = []
    release = threading.Event()

    def judge(texts: Sequence[str]) -> list[Verdict]:
        batches.append(len(texts))
        release.wait(5)
        return [verdict(text) for text in texts]

    async def run() -> None:
        batcher = RequestBatcher(judge, most=4, wait_s=0.0)
        task = asyncio.create_task(batcher.run())
        first = asyncio.create_task(batcher.ask(["x"]))
        while not batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.ask([str(number)])) for number in range(6)]
        await asyncio.sleep(0)
        assert batcher.waiting == 6
        release.set()
        await asyncio.gather(first, *others)
        task.cancel()

    asyncio.run(run())
    assert batches == [1, 4, 2]


def test_a_question_whose_asker_has_gone_costs_nothing() -> None:
    seen: list[str] = []

    def judge(texts: Sequence[str]) -> list[Verdict]:
        seen.extend(texts)
        return [verdict(text) for text in texts]

    async def run() -> None:
        batcher = RequestBatcher(judge, wait_s=0.01)
        gone = asyncio.create_task(batcher.ask(["gone"]))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        task = asyncio.create_task(batcher.run())
        await batcher.ask(["here"])
        assert batcher.waiting == 0
        task.cancel()

    asyncio.run(run())
    assert seen == ["here"]


def test_a_question_larger_than_a_batch_goes_in_one_piece_and_one_beyond_the_queue_never() -> None:
    batches: list[int] = []

    def judge(texts: Sequence[str]) -> list[Verdict]:
        batches.append(len(texts))
        return [verdict(text) for text in texts]

    async def run() -> None:
        batcher = RequestBatcher(judge, most=4, wait_s=0.0, waiting=10)
        task = asyncio.create_task(batcher.run())
        assert len(await batcher.ask(["x"] * 7)) == 7
        with pytest.raises(Full):
            await batcher.ask(["x"] * 11)
        assert len(await batcher.ask(["x"])) == 1, "it goes on"
        task.cancel()

    asyncio.run(run())
    assert batches == [7, 1]
