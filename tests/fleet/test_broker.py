"""Access, judged by a real Mosquitto over TLS; what EMQX is told, by its text."""

from __future__ import annotations

import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from gradsense.coordinator.doorkeeper import Allowance
from gradsense.fleet import enrolment
from gradsense.fleet.broker_files import Access, emqx_acl, emqx_conf, mosquitto_acl, mosquitto_conf
from gradsense.localfleet.local_broker import free_port
from gradsense.transport.protocol import Kind, Topic
from tests.support.mosquitto import WAIT_S, Broker, program

RUN = "gradsense/v2/run1"
DAY = 86_400.0


class Mosquitto(Broker):
    """A Mosquitto with the configuration of a fleet folder and nothing else."""

    def __init__(self, fleet: Path) -> None:
        self.port = enrolment.read(fleet).broker.port
        self._command = [program(), "-c", str(fleet / "broker" / "mosquitto.conf")]
        self.start()

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def restart(self) -> None:
        self.process.terminate()  # as service managers do; it saves what it keeps
        self.process.wait(WAIT_S)
        self.start()


class Member:
    """A connection with the keys in a folder; none in it means none are shown."""

    def __init__(
        self, port: int, ca: Path, keys: Path | None, *topics: str, name: str = ""
    ) -> None:
        self.got: list[tuple[str, str]] = []
        self.interruptions = 0
        self.entered: bool | None = None
        self._news, self._open = threading.Condition(), set(topics)
        tls = ssl.create_default_context(cafile=str(ca / "ca.pem"))
        if keys is not None:
            tls.load_cert_chain(keys / "cert.pem", keys / "key.pem")
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.tls_set_context(tls)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._tell(self._open.pop)
        self._client.on_message = self._on_message
        self._client.on_disconnect = lambda *_: self._tell(self._on_disconnect)
        try:
            self._client.connect("localhost", port)
        except OSError:  # ssl.SSLError is one
            self.entered = False
            return
        self._client.loop_start()
        with self._news:
            assert self._news.wait_for(lambda: self.entered is not None, WAIT_S)
            assert not self.entered or self._news.wait_for(lambda: not self._open, WAIT_S)

    def _tell(self, change: Callable[[], Any]) -> None:
        with self._news:
            change()
            self._news.notify_all()

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
        for topic in list(self._open):
            client.subscribe(topic, qos=1)
        self._tell(lambda: setattr(self, "entered", not reason.is_failure))

    def _on_disconnect(self) -> None:
        self.interruptions += 1
        self.entered = bool(self.entered)

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        self._tell(lambda: self.got.append((message.topic, message.payload.decode())))

    def say(self, topic: str, payload: str, *, retain: bool = False) -> None:
        """Publish and wait until the broker has answered, whatever it says."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(WAIT_S)

    def hears(self, topic: str, payload: str) -> bool:
        """Wait for a message."""
        with self._news:
            return self._news.wait_for(lambda: (topic, payload) in self.got, WAIT_S)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@dataclass
class Site:
    """A fleet with devices a and b, its broker, and whoever connects."""

    folder: Path
    broker: Mosquitto

    def __post_init__(self) -> None:
        self._members: list[Member] = []

    def keys(self, name: str) -> Path:
        if name == "coordinator":
            return self.folder / "fleet" / name
        return self.folder / name / "device"

    def join(self, keys: Path | str | None, *topics: str, name: str = "") -> Member:
        place = self.keys(keys) if isinstance(keys, str) else keys
        ca = self.folder / "fleet" / "ca"
        member = Member(self.broker.port, ca, place, *topics, name=name)
        self._members.append(member)
        return member

    def leave(self) -> None:
        while self._members:
            self._members.pop().close()

    def is_refused(self, keys: Path | str | None) -> bool:
        member = self.join(keys)
        member.close()
        return not member.entered

    def change(self) -> Any:
        return enrolment.opened(self.folder / "fleet")


def build(folder: Path) -> Site:
    """The fleet is 40 days old, so that the certificate of the device ``old`` has ended."""
    now = time.time()  # OpenSSL looks at the machine's clock
    port = free_port()
    fleet = folder / "fleet"
    enrolment.create(fleet, None, port, now=now - 40 * DAY)
    (fleet / "runs" / "run1").mkdir(parents=True)
    with enrolment.opened(fleet) as opened:
        opened.enroll("old", folder / "old", now=now - 40 * DAY, days=30)
        for device in ("a", "b"):
            opened.enroll(device, folder / device, now=now - 10, days=30)
    return Site(folder, Mosquitto(fleet))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    built = build(tmp_path_factory.mktemp("site"))
    yield built
    built.broker.stop()


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """For tests that leave the fleet as it is."""
    yield shared
    shared.leave()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Site]:
    """For tests that change the fleet."""
    built = build(tmp_path)
    yield built
    built.leave()
    built.broker.stop()


def eventually(found: Callable[[], bool]) -> bool:
    """A broker acts on a signal when it comes to it."""
    end = time.monotonic() + WAIT_S
    while not found():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.broker
def test_a_device_is_heard_and_the_coordinator_answers(site: Site) -> None:
    coordinator = site.join("coordinator", f"{RUN}/up/#")
    device = site.join("a", f"{RUN}/down/#", f"{RUN}/device/a/#")
    device.say(f"{RUN}/up/a/update", "1")
    assert coordinator.hears(f"{RUN}/up/a/update", "1")
    coordinator.say(f"{RUN}/down/model", "2")
    coordinator.say(f"{RUN}/device/a/ack", "3")
    assert device.hears(f"{RUN}/down/model", "2")
    assert device.hears(f"{RUN}/device/a/ack", "3")


@pytest.mark.broker
def test_strangers_do_not_get_in(site: Site, tmp_path: Path) -> None:
    enrolment.create(tmp_path / "other", None, 8883, now=time.time() - 10)
    with enrolment.opened(tmp_path / "other") as other:
        other.enroll("a", tmp_path / "foreign", now=time.time() - 5, days=1)
    assert site.is_refused(None), "no certificate"
    assert site.is_refused(tmp_path / "foreign" / "device"), "of another authority"
    assert site.is_refused("old"), "expired"
    assert site.is_refused(site.folder / "fleet" / "broker"), "made for a server"
    assert not site.is_refused("a")


@pytest.mark.broker
@pytest.mark.parametrize(
    "topic",
    [
        f"{RUN}/up/b/update",
        f"{RUN}/up/update",
        f"{RUN}/up/a/hello",
        "gradsense/v2/run2/up/a/update",
        f"{RUN}/down/model",
        f"{RUN}/device/a/ack",
        "gradsense/v2/up/a/x",
        "gradsense/v1/run1/up/a/x",
        "elsewhere",
    ],
)
def test_a_device_speaks_only_for_itself(site: Site, topic: str) -> None:
    coordinator = site.join("coordinator", "gradsense/v2/#")
    other, device = site.join("b", "#"), site.join("a")
    device.say(topic, "forged")
    device.say(f"{RUN}/up/a/presence", "own")
    coordinator.say(f"{RUN}/down/after", "all")
    assert coordinator.hears(f"{RUN}/up/a/presence", "own")
    assert other.hears(f"{RUN}/down/after", "all")
    assert "forged" not in [payload for _, payload in coordinator.got + other.got]


@pytest.mark.broker
@pytest.mark.parametrize("topic", ["#", "gradsense/v2/#", "+/+/+/+/+/+"])
def test_a_device_reads_only_its_own(site: Site, topic: str) -> None:
    coordinator = site.join("coordinator", f"{RUN}/up/#")
    device, curious = site.join("a"), site.join("b", topic, f"{RUN}/down/#")
    device.say(f"{RUN}/up/a/update", "secret")
    assert coordinator.hears(f"{RUN}/up/a/update", "secret")
    coordinator.say(f"{RUN}/device/a/ack", "secret")
    coordinator.say(f"{RUN}/down/after/all", "open")
    assert curious.hears(f"{RUN}/down/after/all", "open")
    assert {payload for _, payload in curious.got} == {"open"}


@pytest.mark.broker
def test_a_device_cannot_take_over_the_session_of_another(site: Site) -> None:
    device = site.join("a", f"{RUN}/device/a/#", name="a")
    site.join("b", name="a")
    coordinator = site.join("coordinator")
    coordinator.say(f"{RUN}/device/a/ack", "for a")
    assert device.hears(f"{RUN}/device/a/ack", "for a")
    assert device.interruptions == 0


@pytest.mark.broker
def test_a_revoked_device_is_shut_out_at_once_and_others_stay(own: Site) -> None:
    coordinator = own.join("coordinator", f"{RUN}/up/#")
    lost, kept = own.join("a"), own.join("b")
    with own.change() as fleet:
        fleet.enroll("canary", own.folder / "canary", now=time.time(), days=30)
        fleet.revoke("canary", now=time.time())
        fleet.revoke("a", now=time.time())
    own.broker.reload()
    # To ask as "a" before the broker has read its files would take over the open connection.
    assert eventually(lambda: own.is_refused("canary"))
    assert own.is_refused("a")
    lost.say(f"{RUN}/up/a/update", "on the open connection")
    kept.say(f"{RUN}/up/b/update", "still here")
    assert coordinator.hears(f"{RUN}/up/b/update", "still here")
    assert coordinator.got == [(f"{RUN}/up/b/update", "still here")]
    assert kept.interruptions == coordinator.interruptions == 0
    assert not own.is_refused("coordinator")
    own.broker.restart()
    assert own.is_refused("a")


@pytest.mark.broker
def test_rotated_keys_take_the_place_of_the_old(own: Site) -> None:
    with own.change() as fleet:
        fleet.rotate("a", own.folder / "new", now=time.time(), days=30)
        fleet.rotate_coordinator(now=time.time())
        fleet.rotate_broker(now=time.time())
    own.broker.reload()
    assert eventually(lambda: own.is_refused("a"))
    coordinator = own.join("coordinator", f"{RUN}/up/#")
    own.join("new").say(f"{RUN}/up/a/update", "new keys")
    assert coordinator.hears(f"{RUN}/up/a/update", "new keys")


@pytest.mark.broker
def test_a_revoked_device_may_be_enrolled_again(own: Site) -> None:
    with own.change() as fleet:
        fleet.revoke("a", now=time.time())
        fleet.enroll("a", own.folder / "again", now=time.time(), days=30)
    own.broker.restart()
    assert own.is_refused("a")
    assert not own.is_refused("again")


@pytest.mark.broker
def test_a_restart_of_the_broker_keeps_the_model_and_the_access(own: Site) -> None:
    own.join("coordinator").say(f"{RUN}/down/model", "retained", retain=True)
    own.leave()
    own.broker.restart()
    assert own.join("a", f"{RUN}/down/#").hears(f"{RUN}/down/model", "retained")


def test_mosquitto_is_told_all_that_keeps_strangers_out() -> None:
    conf = mosquitto_conf(Path("/f"), port=1, address="127.0.0.1", user="u").splitlines()
    for line in (
        "user u",
        "listener 1 127.0.0.1",
        "allow_anonymous false",
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "crlfile /f/crl.pem",
        "acl_file /f/acl",
        "persistence true",
    ):
        assert line in conf
    assert "listener 1" in mosquitto_conf(Path("/f"), port=1, address="", user="u").splitlines()


ACCESS = Access(["plant", "yard"], {"gate-7": "plant"}, ["lost"])


def test_emqx_is_told_the_same() -> None:
    rules = [line for line in emqx_acl(ACCESS).splitlines() if not line.startswith("%%")]
    own = "gradsense/v2/plant/up/${cert_common_name}"
    assert rules[:6] == [
        '{deny, {username, "lost"}, all, ["#"]}.',
        '{allow, {username, "coordinator"}, all, ["gradsense/v2/#"]}.',
        '{deny, {username, "gate-7"}, all, ["gradsense/v2/yard/#"]}.',
        f'{{allow, all, {{publish, [{{qos, 1}}, {{retain, false}}]}}, ["{own}/update", '
        f'"{own}/resume-request"]}}.',
        f'{{allow, all, {{publish, [{{qos, 1}}]}}, ["{own}/presence"]}}.',
        '{allow, all, subscribe, ["gradsense/v2/plant/down/#", '
        '"gradsense/v2/plant/device/${cert_common_name}/#"]}.',
    ]
    assert rules[-1] == "{deny, all}."
    conf = emqx_conf(8884)
    for part in (":8884", ":8885", "no_match = deny"):
        assert part in conf
    for part in ("fail_if_no_peer_cert = true", "verify_peer"):
        assert conf.count(part) == conf.count("listeners.ssl.") == 2
    assert ":65534" in emqx_conf(65535)
    assert f'messages_rate = "{Allowance().messages_per_s:.0f}/s"' in conf
    assert f'bytes_rate = "{Allowance().bytes_per_s / (1 << 20):.0f}MB/s"' in conf
    assert "user lost\ntopic deny #\n" in mosquitto_acl(ACCESS)


def allowed(rules: str, device: str, access: str, topic: str) -> bool:
    """Whether the rules let a device read or write a topic, as Mosquitto reads them."""
    user = ""
    for line in rules.splitlines():
        what, *rest = line.split()
        if what == "user":
            (user,) = rest
        elif what == "topic" and user == device:
            right, pattern = rest
            if right == "deny" and paho.topic_matches_sub(pattern, topic):
                return False
    patterns = [line.split() for line in rules.splitlines() if line.startswith("pattern ")]
    return any(
        right in {access, "readwrite"}
        and paho.topic_matches_sub(pattern.replace("%u", device), topic)
        for _, right, pattern in patterns
    )


@pytest.mark.parametrize(
    ("kind", "access"),
    [
        *(("update", "write"), ("resume-request", "write"), ("presence", "write")),
        *(("resume", "read"), ("ack", "read")),
    ],
)
def test_the_rules_are_those_of_the_protocol(kind: Kind, access: str) -> None:
    rules = mosquitto_acl(ACCESS)
    own, other = (str(Topic("plant", kind, device)) for device in ("gate-7", "gate-8"))
    wrong = "read" if access == "write" else "write"
    assert allowed(rules, "gate-7", access, own)
    assert not allowed(rules, "gate-7", access, other)
    assert not allowed(rules, "gate-7", wrong, own)
    assert not allowed(rules, "lost", access, own.replace("gate-7", "lost"))
    for run in ("yard", "attic"):  # not its own, and none at all
        assert not allowed(rules, "gate-7", access, str(Topic(run, kind, "gate-7")))
    if access == "write":
        assert not allowed(rules, "gate-7", access, own + "/more")
        assert not allowed(rules, "gate-7", access, own.replace(kind, "hello"))
    early = mosquitto_acl(Access())  # the broker was started before there was a run
    assert allowed(early, "gate-7", access, own)
    assert not allowed(early, "gate-7", access, other)


@pytest.mark.parametrize("index", [0, 3])
def test_every_device_reads_the_model_and_writes_none(index: int) -> None:
    topic = str(Topic("plant", "model", index=index))
    assert allowed(mosquitto_acl(ACCESS), "gate-7", "read", topic)
    assert not allowed(mosquitto_acl(ACCESS), "gate-7", "write", topic)


@pytest.mark.broker
def test_the_broker_cannot_be_filled(own: Site) -> None:
    """1,100 large retained messages on free topics: none stays, and honest devices go on."""
    filler = own.join("a")
    for number in range(1100):
        topic = f"gradsense/v2/run{number + 2}/up/a/update"
        filler._client.publish(topic, bytes(250_000), qos=1, retain=True)
        if number % 50 == 49:
            filler.say(f"gradsense/v2/{number}/up/a/presence", "x", retain=True)
    filler.say(f"{RUN}/up/a/update", "x" * 250_000, retain=True)
    late = own.join("coordinator", "gradsense/v2/#")
    device = own.join("b", f"{RUN}/down/#")
    device.say(f"{RUN}/up/b/update", "honest")
    assert late.hears(f"{RUN}/up/b/update", "honest")
    late.say(f"{RUN}/down/model", "answered")
    assert device.hears(f"{RUN}/down/model", "answered")
    kept = {topic for topic, _ in late.got} - {f"{RUN}/up/b/update", f"{RUN}/down/model"}
    assert kept == {f"{RUN}/up/a/update"}, "its own topic, once"
