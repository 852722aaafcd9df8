"""File, syslog, webhook and Prometheus sinks against real files and sockets."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from gradsense.errors import InputError
from gradsense.gateway.alerting.sink import Refused, Sink, SinkContext, SinkError
from gradsense.gateway.alerting.sinks.jsonl import JsonlSettings
from gradsense.gateway.alerting.sinks.prometheus import PrometheusSettings
from gradsense.gateway.alerting.sinks.syslog import SyslogSettings, message
from gradsense.gateway.alerting.sinks.webhook import WebhookSettings
from gradsense.gateway.instruments import Metrics
from tests.support.sample_alerts import sample


def made(setting: Any, **more: Any) -> Sink:
    sink: Sink = setting.open(SinkContext("gateway-1", **more))
    return sink


# Files.


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[tuple[Path, Sink]]:
    path = tmp_path / "alerts.jsonl"
    with closing(made(JsonlSettings(type="jsonl", path=str(path)))) as sink:
        yield path, sink


def revisions(path: Path) -> list[int]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line)["revision"] for line in text.splitlines()]


def test_a_file_grows_by_one_line_an_alert(lines: tuple[Path, Sink]) -> None:
    path, sink = lines
    sink.send([sample(revision=0), sample(revision=1)])
    sink.send([sample(revision=2)])
    assert revisions(path) == [0, 1, 2]


def test_a_file_that_was_moved_away_is_made_anew(lines: tuple[Path, Sink]) -> None:
    path, sink = lines
    sink.send([sample(revision=0)])
    path.rename(path.with_suffix(".1"))
    sink.send([sample(revision=1)])
    assert revisions(path) == [1]
    assert revisions(path.with_suffix(".1")) == [0]


def test_half_a_line_of_a_power_cut_is_dropped(lines: tuple[Path, Sink]) -> None:
    path, sink = lines
    path.write_text('{"revision":7}\n{"revis', encoding="utf-8")
    sink.send([sample(revision=8)])
    assert revisions(path) == [7, 8]


@pytest.mark.parametrize("path", ["/dev/null", "/no/such/folder/x"])
def test_what_is_no_file_is_refused(path: str) -> None:
    with closing(made(JsonlSettings(type="jsonl", path=path))) as sink, pytest.raises(SinkError):
        sink.send([sample()])


FULL_DISK = """
import resource, sys
from gradsense.gateway.alerting.sink import SinkError
from gradsense.gateway.alerting.sinks.jsonl import JsonlSettings, JsonlSink
from tests.support.sample_alerts import sample
sink = JsonlSink(JsonlSettings(type="jsonl", path=sys.argv[1]))
sink.send([sample(revision=0)])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    sink.send([sample(revision=1), sample(revision=2)])
except SinkError as error:
    print("SinkError", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sink.send([sample(revision=3)])
"""


def test_what_does_not_fit_on_the_disk_is_cut_away(tmp_path: Path) -> None:
    """2,000 bytes hold one line and a part of the batch after it."""
    path = tmp_path / "alerts.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "SinkError" in done.stdout
    assert "too large" in done.stdout
    assert revisions(path) == [0, 3]


def test_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    sink = made(JsonlSettings(type="jsonl", path="-", format="ecs"))
    sink.send([sample()])
    sink.close()
    print("still open", flush=True)
    first, second = capfd.readouterr().out.splitlines()
    assert json.loads(first)["event"]["kind"] == "alert"
    assert second == "still open"


# Syslog.

RFC5424 = re.compile(
    r"<(?P<pri>\d{1,3})>1 (?P<time>\S+) (?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48}) "
    r"(?P<pid>[!-~]{1,128}) (?P<msgid>[!-~]{1,32}) "
    r"\[(?P<sdid>[!-<>-\\^-~]{1,32})(?P<data>(?: [!-<>-~]{1,32}=\"(?:[^\"\\\]]|\\[\"\\\]])*\")*)\] "
    "\ufeff(?P<text>.*)"
)


def parsed(raw: bytes) -> tuple[dict[str, str], dict[str, str]]:
    found = RFC5424.fullmatch(raw.decode())
    assert found is not None, raw
    pairs = re.findall(r' ([^= ]+)="((?:[^"\\\]]|\\.)*)"', found["data"])
    return found.groupdict(), {key: re.sub(r"\\(.)", r"\1", value) for key, value in pairs}


@settings(max_examples=100, deadline=None)
@given(
    st.text(), st.text(), st.sampled_from(["info", "low", "medium", "high", "critical"]),
    st.integers(480, 2000),
)  # fmt: skip
def test_syslog_reads_back(label: str, text: str, severity: Any, limit: int) -> None:
    alert = sample(label=label[:20], severity=severity)
    raw = message(alert, sensor="gateway-1", facility="local4", text=text * 20, max_bytes=limit)
    fields, facts = parsed(raw)
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text * 20)
    assert len(raw) <= limit
    assert plain.startswith(fields["text"])
    if fields["text"] != plain:  # cut, by less than the longest character
        assert len(raw) > limit - 4
    assert facts["class"] == re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", label[:20])
    assert facts["device"] == "192.168.1.195"
    level = {"info": 6, "low": 5, "medium": 4, "high": 3, "critical": 2}[severity]
    assert int(fields["pri"]) == 20 * 8 + level


def test_syslog_by_hand() -> None:
    raw = message(sample(label='a"b\\c]d'), sensor="gateway-1", facility="daemon", text="Hello")
    assert (
        raw
        == (
            "<27>1 2018-12-21T14:53:13.250Z gateway-1 gradsense - open "
            '[gradsense@32473 id="00112233aabbccdd" revision="0" device="192.168.1.195" '
            'class="a\\"b\\\\c\\]d" severity="high" flows="14394" peers="1" technique="T1498"] '
            "\ufeffHello"
        ).encode()
    )


def listener(kind: socket.SocketKind) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.settimeout(5)
    made.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


def syslog(address: str, **more: Any) -> Sink:
    return made(SyslogSettings(type="syslog", address=address, **more))


def frames(connection: Any, count: int) -> list[bytes]:
    """Octet counting, RFC 6587 section 3.4.1."""
    with connection.makefile("rb") as stream:
        return [read_frame(stream) for _ in range(count)]


def read_frame(stream: Any) -> bytes:
    length = b""
    while (digit := stream.read(1)) != b" ":
        assert digit.isdigit()
        length += digit
    return bytes(stream.read(int(length)))


def test_syslog_over_udp_is_one_datagram_each_and_bounded() -> None:
    with listener(socket.SOCK_DGRAM) as server:
        address = f"udp://127.0.0.1:{server.getsockname()[1]}"
        with closing(syslog(address, format="ocsf", max_bytes=600)) as sink:
            sink.send([sample(revision=0), sample(revision=1)])
        received = [server.recv(65_535) for _ in range(2)]
    assert [parsed(raw)[1]["revision"] for raw in received] == ["0", "1"]
    assert [len(raw) for raw in received] == [600, 600]


def test_syslog_over_a_unix_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.settimeout(5)
        server.bind(str(tmp_path / "log"))
        with closing(syslog(f"unix://{tmp_path}/log")) as sink:
            sink.send([sample()])
        fields, _ = parsed(server.recv(65_535))
    assert fields["text"].startswith("DDoS attack: 192.168.1.195 sent")


def test_syslog_over_tcp_connects_again_when_the_receiver_hung_up() -> None:
    with listener(socket.SOCK_STREAM) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with closing(syslog(address)) as sink:
            sink.send([sample(revision=0), sample(revision=1)])
            first, _ = server.accept()
            got = frames(first, 2)
            first.close()
            sink.send([sample(revision=2)])
            second, _ = server.accept()
            with second:
                got += frames(second, 1)
    assert [parsed(raw)[1]["revision"] for raw in got] == ["0", "1", "2"]


def test_syslog_over_tls_checks_the_name(tmp_path: Path) -> None:
    certificate = own_certificate(tmp_path)
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.load_cert_chain(certificate)
    got: list[bytes] = []

    def serve(server: socket.socket, connections: int) -> None:
        for _ in range(connections):
            plain, _ = server.accept()
            try:
                with accepting.wrap_socket(plain, server_side=True) as connection:
                    got.extend(frames(connection, 2))
            except OSError:
                plain.close()  # the client did not like the certificate

    with listener(socket.SOCK_STREAM) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=serve, args=(server, 2))
        thread.start()
        with closing(syslog(f"tls://localhost:{port}", ca=certificate)) as sink:
            sink.send([sample(revision=0)])
            sink.send([sample(revision=1)])  # after TLS 1.3's session tickets
        sink = syslog(f"tls://127.0.0.1:{port}", ca=certificate)
        with closing(sink), pytest.raises(SinkError, match="certificate verify failed"):
            sink.send([sample(revision=2)])
        thread.join(5)
    assert [parsed(raw)[1]["revision"] for raw in got] == ["0", "1"]


def own_certificate(folder: Path) -> Path:
    """A certificate for ``localhost`` and its key, in one PEM file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    file = folder / "own.pem"
    file.write_bytes(
        signed.public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_syslog_without_a_receiver_is_a_sink_error(scheme: str) -> None:
    with listener(socket.SOCK_DGRAM) as taken:  # nobody listens on this port for streams
        address = f"{scheme}://127.0.0.1:{taken.getsockname()[1]}"
        with closing(syslog(address)) as sink, pytest.raises(SinkError, match="cannot send"):
            sink.send([sample()])


def test_a_missing_certificate_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pem"):
        syslog("tls://localhost", ca=tmp_path / "none.pem")


# Webhooks.


class Receiver(ThreadingHTTPServer):
    """Answers one status after another, the last one for ever, and keeps what came."""

    daemon_threads = True

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = list(statuses)
        self.got: list[tuple[str, str, dict[str, Any]]] = []
        self.stalled = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hidden"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = (self.headers["Idempotency-Key"], self.headers.get("Authorization", ""))
        self.server.got.append((*headers, body))
        statuses = self.server.statuses
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        if status == 0:  # says nothing until the test ends
            self.server.stalled.wait(10)
            self.close_connection = True
            return
        text = b"because\nof reasons" * 1000
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    servers: list[Receiver] = []

    def start(*statuses: int) -> Receiver:
        server = Receiver(*statuses)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.stalled.set()
        server.shutdown()
        server.server_close()


def webhook(url: str, **more: Any) -> Sink:
    return made(WebhookSettings(type="webhook", url=url, **more))


def test_a_webhook_gets_one_object_an_alert_with_its_key(receiver: Any) -> None:
    server = receiver(200)
    with closing(webhook(server.url, headers={"Authorization": "Bearer x"})) as sink:
        sink.send([sample(revision=0), sample(revision=1)])
    assert [(key, who) for key, who, _ in server.got] == [
        ("00112233aabbccdd-0", "Bearer x"),
        ("00112233aabbccdd-1", "Bearer x"),
    ]
    assert server.got[1][2]["revision"] == 1


@pytest.mark.parametrize("status", [429, 500, 503, 302])
def test_a_webhook_that_may_take_it_later(receiver: Any, status: int) -> None:
    server = receiver(status, 200)
    with closing(webhook(server.url)) as sink:
        with pytest.raises(SinkError, match=f"answered {status} because of") as caught:
            sink.send([sample(revision=0), sample(revision=1)])
        assert not isinstance(caught.value, Refused)
        assert "hidden" not in str(caught.value)
        sink.send([sample(revision=0), sample(revision=1)])
    assert [key[-1] for key, _, _ in server.got] == ["0", "0", "1"]


def test_a_refused_alert_does_not_keep_the_others_back(receiver: Any) -> None:
    server = receiver(400, 200)
    reason = "refused 1 of 2 alerts: 400 because of reasons"
    with closing(webhook(server.url)) as sink, pytest.raises(Refused, match=reason):
        sink.send([sample(revision=0), sample(revision=1)])
    assert [key[-1] for key, _, _ in server.got] == ["0", "1"]


def test_what_arrived_is_not_posted_again_with_the_rest_of_its_batch(receiver: Any) -> None:
    server = receiver(400, 200, 503, 200)
    batch = [sample(revision=revision) for revision in range(3)]
    with closing(webhook(server.url)) as sink:
        with pytest.raises(SinkError, match="answered 503"):
            sink.send(batch)
        with pytest.raises(Refused, match="refused 1 of 3"):
            sink.send(batch)
        sink.send(batch)  # a batch of its own, as after a restart
    assert [key[-1] for key, _, _ in server.got] == ["0", "1", "2", "2", "0", "1", "2"]


def test_a_silent_webhook_is_given_up(receiver: Any) -> None:
    server = receiver(0)
    silent = pytest.raises(SinkError, match=r"no answer: .*timed out")
    with closing(webhook(server.url, timeout_s=0.2)) as sink, silent:
        sink.send([sample()])
    assert len(server.got) == 1


def test_no_webhook_there() -> None:
    with listener(socket.SOCK_DGRAM) as taken:  # nobody listens on this port for streams
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/hidden"
        with closing(webhook(url)) as sink, pytest.raises(SinkError, match="no answer") as caught:
            sink.send([sample()])
    assert "hidden" not in str(caught.value)


# Prometheus.


def test_prometheus_counts_alerts_once_by_label_and_severity() -> None:
    with listener(socket.SOCK_STREAM) as taken:
        port = taken.getsockname()[1]
        setting = PrometheusSettings(type="prometheus", address=f"127.0.0.1:{port}")
        with pytest.raises(InputError, match="cannot listen"):
            made(setting)
    metrics = Metrics(CollectorRegistry())
    metrics.counted["dropped"].labels("bad-count").inc(3)
    with closing(made(setting, metrics=metrics)) as sink:
        sink.send([sample(), sample(state="update"), sample(state="closed"), sample(id="f" * 16)])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            page = answer.read().decode()
    assert 'gradsense_alerts_total{label="DDoS",severity="high"} 2.0\n' in page
    assert 'gradsense_dropped_lines_total{reason="bad-count"} 3.0\n' in page
    assert "\ngradsense_flows_total 0.0\n" in page
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
