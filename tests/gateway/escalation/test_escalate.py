"""Asking the larger model: a real server behind real TLS, and servers that misbehave."""

from __future__ import annotations

import datetime
import ipaddress
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gradsense.detection.bundle import BundleThreshold, Manifest, TemplateName, Tokens
from gradsense.detection.detector import Verdict
from gradsense.errors import InputError
from gradsense.gateway.escalation.escalate import EscalateSettings, Escalator
from gradsense.prompts.templates import get_template
from gradsense.serving.server import create_app

TOKEN = "0123456789abcdef"
TEMPLATE = get_template("context")
LOCAL = Verdict("Benign", 0.6, 0.4, False, None, False)


# A server ---------------------------------------------------------------------------------------


class Fake:
    """A model that names each prompt's first word."""

    def __init__(self, version: int = 1) -> None:
        self.manifest = Manifest(
            labels=("Benign", "C&C"),
            template=TemplateName(name="context", version=version),
            tokens=Tokens(kind="words", max_tokens=19),
            alarm=BundleThreshold(value=0.5, share=0.0, flows=0, source="test"),
            files={},
        )
        self.seen: list[str] = []
        self.delay_s = 0.0

    def judge_texts(self, texts: Sequence[str]) -> list[Verdict]:
        self.seen += texts
        time.sleep(self.delay_s)
        return [Verdict(text.split()[0], 0.75, 0.5, True, None, False) for text in texts]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority ``ca.pem``, and ``cert.pem`` and ``key.pem`` for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("pki")
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = datetime.datetime.now(datetime.UTC)

    def signed(name: str, public: ec.EllipticCurvePublicKey, *more: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")]),
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            public,
            x509.random_serial_number(),
            now - datetime.timedelta(hours=1),
            now + datetime.timedelta(days=1),
        )
        ours = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
        for extension in (*more, x509.SubjectKeyIdentifier.from_public_key(public), ours):
            builder = builder.add_extension(
                extension, critical=isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
            )
        made = builder.sign(ca_key, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM)

    usage = dict.fromkeys(
        (
            *("digital_signature", "content_commitment", "key_encipherment", "encipher_only"),
            *("data_encipherment", "key_agreement", "key_cert_sign", "crl_sign", "decipher_only"),
        ),
        False,
    )
    authority = x509.KeyUsage(**{**usage, "key_cert_sign": True, "crl_sign": True})
    (folder / "ca.pem").write_bytes(
        signed(
            "test authority",
            ca_key.public_key(),
            x509.BasicConstraints(ca=True, path_length=0),
            authority,
        )
    )
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    (folder / "cert.pem").write_bytes(signed("service", key.public_key(), here))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder


@contextmanager
def running(app: object, pki: Path) -> Iterator[str]:
    """Serve an ASGI application over TLS on a free port of this machine; its address."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        host="127.0.0.1",
        port=0,
        log_level="critical",
        ssl_certfile=pki / "cert.pem",
        ssl_keyfile=pki / "key.pem",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        yield f"https://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def fake() -> Fake:
    return Fake()


@pytest.fixture(scope="module")
def url(fake: Fake, pki: Path) -> Iterator[str]:
    with running(create_app(fake, token=TOKEN), pki) as url:
        yield url


@pytest.fixture
def escalator(
    url: str, fake: Fake, pki: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Escalator]]:
    """Makes escalators; by default for the real service, with time enough for a slow machine."""
    monkeypatch.setenv("TEST_TOKEN", TOKEN)
    fake.seen.clear()
    fake.delay_s = 0.0
    made: list[Escalator] = []

    def make(clock: Callable[[], float] = time.monotonic, **values: object) -> Escalator:
        given = {"url": url, "token_env": "TEST_TOKEN", "ca": pki / "ca.pem", "time_ms": 20_000}
        settings = EscalateSettings.model_validate({**given, **values})
        made.append(Escalator(settings, TEMPLATE, clock=clock))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Scripted:
    """An application that does as it is told, and notes what it was sent."""

    def __init__(self) -> None:
        self.tell(500, b"")

    def tell(self, status: int, body: bytes, **headers: str) -> None:
        """Answer this from now on."""
        self.status, self.body = status, body
        self.headers = [
            (name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()
        ]
        self.requests: list[tuple[dict[str, object], bytes]] = []

    async def __call__(self, scope: dict[str, object], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return
        self.requests.append((scope, (await receive())["body"]))
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


@pytest.fixture(scope="module")
def script(pki: Path) -> Iterator[tuple[Scripted, str]]:
    app = Scripted()
    with running(app, pki) as url:
        yield app, url


# What goes well ---------------------------------------------------------------------------------


def test_answers_are_the_larger_models_verdicts_in_order(
    escalator: Callable[..., Escalator], fake: Fake
) -> None:
    one = escalator()
    verdicts = one.ask(["p:tcp a", "p:udp b", "p:tcp a"])
    expected = Verdict("p", 0.75, 0.5, True, None, False)
    assert verdicts == [None, None, None], "'p:tcp' is no class name, and is not taken for one"
    assert one.counts["garbled"] == 3
    two = escalator()
    verdicts = two.ask(["Okiru a", "DDoS b", "Okiru a"])
    assert verdicts == [replace(expected, label=name) for name in ("Okiru", "DDoS", "Okiru")]
    assert two.counts == {"asked": 2, "answered": 2, "remembered": 0}


def test_identical_prompts_are_asked_once_and_again_when_the_answer_is_old(
    escalator: Callable[..., Escalator], fake: Fake
) -> None:
    now = [0.0]
    one = escalator(lambda: now[0], memory_s=60)
    first = one.ask(["Okiru a"])
    now[0] = 60.0
    assert one.ask(["Okiru a", "Okiru a"]) == first * 2
    assert fake.seen == ["Okiru a"]
    assert one.counts["remembered"] == 2
    now[0] = 61.0
    assert one.ask(["Okiru a"]) == first
    assert fake.seen == ["Okiru a", "Okiru a"]


def test_the_memory_is_bounded(escalator: Callable[..., Escalator], fake: Fake) -> None:
    one = escalator(memory=2)
    for text in ("A", "B", "C", "A", "C"):
        assert one.ask([text]) != [None]
    assert fake.seen == ["A", "B", "C", "A"], "C was still there, A was not"
    none = escalator(memory=0)
    assert none.ask(["A"]) != [None]


@pytest.mark.parametrize(
    ("verdict", "unsure"),
    [
        (replace(LOCAL, probability=0.49), False),
        (replace(LOCAL, probability=0.5), True),
        (replace(LOCAL, probability=0.9), True),
        (replace(LOCAL, probability=0.91), False),
        (replace(LOCAL, probability=0.99, novel=True), True),
    ],
)
def test_the_band(escalator: Callable[..., Escalator], verdict: Verdict, unsure: bool) -> None:
    assert escalator(band=(0.5, 0.9)).unsure(verdict) is unsure


def test_novel_flows_can_stay_here(escalator: Callable[..., Escalator]) -> None:
    sure = replace(LOCAL, probability=0.99, novel=True)
    assert not escalator(novel=False).unsure(sure)


# What leaves ------------------------------------------------------------------------------------


def test_nothing_but_prompts_leaves(
    escalator: Callable[..., Escalator],
    script: tuple[Scripted, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every byte of the request, and not only what the service happens to read."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # nor through anybody else
    app, url = script
    app.tell(500, b"")
    escalator(url=url).ask(["p:tcp s:irc"])
    (scope, body), *others = app.requests
    assert others == []
    assert json.loads(body) == {"template": "context", "version": 1, "prompts": ["p:tcp s:irc"]}
    assert (scope["path"], scope["query_string"]) == ("/v1/verdicts", b"")
    headers = dict(scope["headers"])  # type: ignore[call-overload]
    host = url.removeprefix("https://").encode()
    assert headers == {
        b"host": host,
        b"accept": b"*/*",
        b"accept-encoding": b"identity",
        b"connection": b"keep-alive",
        b"user-agent": b"gradsense",
        b"content-type": b"application/json",
        b"authorization": b"Bearer " + TOKEN.encode(),
        b"content-length": str(len(body)).encode(),
    }


def test_the_byte_budget_lets_the_first_prompts_through(
    escalator: Callable[..., Escalator], fake: Fake
) -> None:
    now = [0.0]
    one = escalator(lambda: now[0], bytes_per_minute=600)
    texts = [f"Okiru {'x' * 50}{number}" for number in range(4)]
    verdicts = one.ask(texts)
    asked = sum(verdict is not None for verdict in verdicts)
    assert 0 < asked < 4
    assert fake.seen == texts[:asked]
    assert one.counts["budget"] == 4 - asked
    assert one.sent_bytes <= 600
    now[0] = 60.0
    assert one.ask(texts[asked:])[0] is not None, "refilled"
    assert one.sent_bytes <= 1200


def test_no_bytes_at_all_means_no_connection(escalator: Callable[..., Escalator]) -> None:
    one = escalator(bytes_per_minute=0, url="https://127.0.0.1:1")
    assert one.ask(["Okiru"]) == [None]
    assert one.counts == {"remembered": 0, "budget": 1}


# What goes wrong --------------------------------------------------------------------------------


def test_a_slow_service_costs_the_time_budget_and_its_answer_is_not_lost(
    escalator: Callable[..., Escalator], fake: Fake
) -> None:
    one = escalator(time_ms=50)
    fake.delay_s = 0.3
    assert one.ask(["Okiru"]) == [None]
    assert one.counts["timeout"] == 1
    assert one.ask(["DDoS"]) == [None]
    assert one.counts["busy"] == 1, "the first is still under way"
    assert one._running is not None
    one._running.result(10)
    assert one.ask(["Okiru", "DDoS"])[0] is not None, "remembered"
    assert one.counts["waiting"] == 1, "too late is a failure: nobody is asked for a second"


def test_a_dead_service_is_asked_ever_more_rarely(escalator: Callable[..., Escalator]) -> None:
    now = [0.0]
    one = escalator(lambda: now[0], url="https://127.0.0.1:1")
    failures = []
    for second in range(0, 1000):
        now[0] = float(second)
        before = one.counts["http"]
        assert one.ask(["Okiru"]) == [None]
        if one.counts["http"] > before:
            failures.append(second)
    assert failures == [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 811], "doubling, up to 300 s"
    assert one.counts["http"] + one.counts["waiting"] == 1000


def test_one_answer_closes_the_breaker(
    escalator: Callable[..., Escalator], script: tuple[Scripted, str]
) -> None:
    now, (app, url) = [0.0], script
    good = json.dumps({"verdicts": [{**GOOD, "novelty": None}]}).encode()
    one, asked = escalator(lambda: now[0], url=url), []
    for second, status in ((0, 500), (1, 500), (3, 500), (7, 200), (7, 500), (8, 200)):
        now[0] = float(second)
        app.tell(status, good)
        asked.append(one.ask([f"at {second} {status}"]) != [None])
    assert asked == [False, False, False, True, False, True]
    assert one.counts["http"] == 4, "after a new failure it waits 1 s again, not 8"


GOOD = {"label": "C&C", "probability": 1.0, "suspicion": 1.0, "alarm": True, "novel": False}


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, b"", "refused"),
        (422, b"", "refused"),
        (409, b"", "mismatch"),
        (302, b"", "http"),
        (503, b"", "http"),
        (200, b"", "garbled"),
        (200, b"{}", "garbled"),
        (200, json.dumps({"verdicts": []}).encode(), "garbled"),
        (200, json.dumps({"verdicts": [{**GOOD, "novelty": None}] * 2}).encode(), "garbled"),
        (200, b'{"verdicts": [' + b" " * (5 << 20), "garbled"),
        *(
            (200, json.dumps({"verdicts": [{**GOOD, "novelty": None} | wrong]}).encode(), "garbled")
            for wrong in (
                {"label": "<b>"},
                {"label": "x" * 65},
                {"label": "two\nlines"},
                {"probability": 1.5},
                {"probability": float("nan")},
                {"novelty": float("inf")},
            )
        ),
    ],
)
def test_other_answers_leave_the_local_verdict(
    escalator: Callable[..., Escalator],
    script: tuple[Scripted, str],
    status: int,
    body: bytes,
    reason: str,
) -> None:
    app, url = script
    app.tell(status, body, location=f"{url}/elsewhere")
    one = escalator(url=url)
    assert one.ask(["Okiru"]) == [None]
    assert one.counts == {"remembered": 0, "asked": 1, reason: 1}
    assert len(app.requests) == 1, "no redirect is followed"


def test_a_server_may_ask_for_a_longer_rest(
    escalator: Callable[..., Escalator], script: tuple[Scripted, str]
) -> None:
    now, (app, url) = [0.0], script
    app.tell(503, b"", retry_after="20")
    one = escalator(lambda: now[0], url=url)
    for second in (0, 19, 20):
        now[0] = float(second)
        one.ask(["Okiru"])
    assert one.counts["http"] == 2
    assert one.counts["waiting"] == 1


def test_another_template_or_a_wrong_token_is_counted_by_name(
    escalator: Callable[..., Escalator], pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(create_app(Fake(version=2), token=TOKEN), pki) as other:
        one = escalator(url=other)
        assert one.ask(["Okiru"]) == [None]
    assert one.counts["mismatch"] == 1
    monkeypatch.setenv("TEST_TOKEN", TOKEN[::-1])
    two = escalator()
    assert two.ask(["Okiru"]) == [None]
    assert two.counts["refused"] == 1


def test_a_server_that_the_authority_did_not_sign_gets_nothing(
    escalator: Callable[..., Escalator], fake: Fake
) -> None:
    one = escalator(ca=None)  # the system's authorities do not know ours
    assert one.ask(["Okiru"]) == [None]
    assert one.counts["http"] == 1
    assert fake.seen == []


# Settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"url": "http://example.org"},
        {"url": "ftp://127.0.0.1"},
        {"url": "https://[::1"},
        {"band": (0.9, 0.1)},
        {"band": (0.0, 1.1)},
        {"token_env": "A", "token_file": "b"},
        {"time_ms": 0},
    ],
)
def test_settings_that_make_no_sense(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        EscalateSettings.model_validate({"url": "https://example.org", **values})
    EscalateSettings.model_validate({"url": "http://127.0.0.1:8765"})


def test_a_token_is_complained_about_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(**values: object) -> None:
        settings = EscalateSettings.model_validate({"url": "https://example.org", **values})
        Escalator(settings, TEMPLATE).close()

    file = tmp_path / "token"
    with pytest.raises(InputError, match="cannot be read"):
        make(token_file=file)
    file.write_text("short")
    file.chmod(0o600)
    with pytest.raises(InputError, match="16 or more"):
        make(token_file=file)
    file.write_text(TOKEN + "\n")
    make(token_file=file)
    file.chmod(0o604)
    with pytest.raises(InputError, match="chmod 600"):
        make(token_file=file)
    monkeypatch.delenv("NO_SUCH", raising=False)
    with pytest.raises(InputError, match=r"\$NO_SUCH"):
        make(token_env="NO_SUCH")
    with pytest.raises(InputError, match="authority"):
        make(ca=tmp_path / "none.pem")
    file.chmod(0o600)
    with pytest.raises(InputError, match="authority"):
        make(ca=file)


def test_the_client_refuses_old_tls(escalator: Callable[..., Escalator], pki: Path) -> None:
    transport = escalator()._client._transport
    assert isinstance(transport, httpx.HTTPTransport)
    context = transport._pool._ssl_context
    assert context is not None
    assert context.minimum_version.name == "TLSv1_2"
