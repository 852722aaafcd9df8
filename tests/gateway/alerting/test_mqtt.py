"""MQTT and Home Assistant's discovery, against a real Mosquitto."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.gateway.alerting.sink import Sink, SinkContext, SinkError
from gradsense.gateway.alerting.sinks import mqtt as mqtt_sink
from gradsense.gateway.alerting.sinks.mqtt import HomeAssistant, MqttSettings, slug
from tests.support.mosquitto import WAIT_S, Broker, Listener
from tests.support.sample_alerts import sample

STATUS = "gradsense/gateway-1/status"
ALERT = "gradsense/gateway-1/alert"
DEVICE = "gradsense/gateway-1/device/192-168-1-195"
CONFIG = "homeassistant/binary_sensor/gradsense_gateway-1_192-168-1-195/config"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    running = Broker(tmp_path)
    yield running
    running.stop()


def mqtt(port: int, **more: Any) -> Sink:
    setting = MqttSettings(type="mqtt", name="mqtt", host="127.0.0.1", port=port, **more)
    return setting.open(SinkContext("gateway-1"))


@pytest.mark.broker
def test_an_alert_and_its_entity(broker: Broker) -> None:
    with closing(Listener(broker.port)) as ear, closing(mqtt(broker.port)) as sink:
        ear.expect(STATUS, "online")
        sink.send([sample()])
        assert json.loads(ear.expect(ALERT))["id"] == "00112233aabbccdd"
        config = json.loads(ear.expect(CONFIG))
        assert config["unique_id"] == "gradsense_gateway-1_192-168-1-195"
        assert config["name"] == "192.168.1.195"
        assert config["device_class"] == "problem"
        assert config["availability_topic"] == STATUS
        assert config["device"]["identifiers"] == ["gradsense_gateway-1"]
        assert config["origin"]["name"] == "gradsense"
        ear.expect(config["state_topic"], "ON")
        attributes = json.loads(ear.expect(config["json_attributes_topic"]))
        assert attributes["class"] == "DDoS"
        assert attributes["open_alerts"] == 1
        sink.send([sample(state="closed", revision=1)])
        ear.expect(f"{DEVICE}/state", "OFF")
    with closing(Listener(broker.port)) as late:  # what Home Assistant finds when it starts
        late.expect(STATUS, "offline")
        late.expect(CONFIG)
        late.expect(f"{DEVICE}/state", "OFF")
        assert all(topic != ALERT for topic, _, _ in late.got)


@pytest.mark.broker
def test_the_format_and_no_discovery(broker: Broker) -> None:
    plain = mqtt(broker.port, discovery="", format="ocsf", topic="site/7")
    with closing(Listener(broker.port)) as ear, closing(plain) as sink:
        sink.send([sample()])
        assert json.loads(ear.expect("site/7/gateway-1/alert"))["class_uid"] == 2004
        ear.expect("site/7/gateway-1/status", "online")
        assert ear.got == []


@pytest.mark.broker
def test_a_broker_that_forgot_everything_gets_it_again(broker: Broker) -> None:
    with closing(mqtt(broker.port)) as sink:
        sink.send([sample()])
        broker.stop()
        broker.start()
        with closing(Listener(broker.port)) as ear:
            ear.expect(STATUS, "online")
            ear.expect(CONFIG)
            ear.expect(f"{DEVICE}/state", "ON")
            sink.send([sample(revision=1, state="update")])
            assert json.loads(ear.expect(ALERT))["revision"] == 1


DYING = """
import sys, time
from gradsense.gateway.alerting.sink import SinkContext
from gradsense.gateway.alerting.sinks.mqtt import MqttSettings
from tests.support.mosquitto import WAIT_S, Broker, Listener
from tests.support.sample_alerts import sample
setting = MqttSettings(type="mqtt", name="mqtt", host="127.0.0.1", port=int(sys.argv[1]))
setting.open(SinkContext("gateway-1")).send([sample()])
print("sent", flush=True)
time.sleep(60)
"""


@pytest.mark.broker
def test_the_last_will_of_a_killed_process(broker: Broker) -> None:
    with closing(Listener(broker.port)) as ear:
        with subprocess.Popen(
            [sys.executable, "-c", DYING, str(broker.port)],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"sent\n"
            ear.expect(STATUS, "online")
            process.send_signal(signal.SIGKILL)
        ear.expect(STATUS, "offline")


def test_without_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradsense.gateway.alerting.sinks.mqtt._CONNECT_S", 0.3)
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        refused = pytest.raises(SinkError, match=r"no connection: .*refused")
        with closing(mqtt(port)) as sink, refused:
            sink.send([sample()])


@pytest.mark.broker
def test_a_wrong_password_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradsense.gateway.alerting.sinks.mqtt._CONNECT_S", 0.5)
    closed = Broker(tmp_path, "allow_anonymous false\n")
    sink = mqtt(closed.port, username="u", password="wrong")
    with closing(sink), pytest.raises(SinkError, match="Not authorized"):
        sink.send([sample()])
    closed.stop()


@pytest.mark.broker
def test_a_forbidden_topic_is_named(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text(f"topic read {ALERT}\ntopic write {STATUS}\n", encoding="utf-8")
    strict = Broker(tmp_path, f"allow_anonymous true\nacl_file {tmp_path / 'acl'}\n")
    with closing(mqtt(strict.port, discovery="")) as sink:
        for _ in range(2):  # nor does trying again make it delivered
            with pytest.raises(SinkError, match="does not allow"):
                sink.send([sample(revision=0), sample(revision=1)])
    strict.stop()


@pytest.mark.broker
def test_a_broker_that_hangs(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """No acknowledgement is an error; what waits for one is not published twice."""
    monkeypatch.setattr("gradsense.gateway.alerting.sinks.mqtt._ACK_S", 0.3)
    with closing(Listener(broker.port)) as ear, closing(mqtt(broker.port)) as sink:
        ear.expect(STATUS, "online")
        broker.process.send_signal(signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(SinkError, match="no acknowledgement"):
                sink.send([sample()])
        broker.process.send_signal(signal.SIGCONT)
        monkeypatch.setattr("gradsense.gateway.alerting.sinks.mqtt._ACK_S", WAIT_S)
        sink.send([sample()])
        sink.send([sample(revision=1, state="closed")])
        ear.expect(f"{DEVICE}/state", "OFF")
        assert [json.loads(ear.expect(ALERT))["revision"] for _ in range(2)] == [0, 1]


# The rules of Home Assistant's entities, without a broker.


def home() -> HomeAssistant:
    return HomeAssistant(sensor="g", topic="gradsense/g", discovery="homeassistant")


def states(entities: HomeAssistant) -> list[str]:
    return [one.payload for one in entities.everything() if one.topic.endswith("/state")]


def test_a_device_is_on_while_any_alert_is_open() -> None:
    entities = home()
    for alert, state, wanted in (
        ("a", "open", "ON"),
        ("b", "open", "ON"),
        ("a", "closed", "ON"),
        ("b", "update", "ON"),
        ("b", "closed", "OFF"),
        ("b", "closed", "OFF"),
    ):
        entities.take(sample(id=alert, state=state))
        assert states(entities) == [wanted]


def test_only_what_changed_is_said() -> None:
    entities = home()
    assert len(entities.take(sample())) == 3
    assert entities.take(sample()) == []
    update = entities.take(sample(state="update", severity="critical"))
    assert [one.topic.rpartition("/")[2] for one in update] == ["attributes"]


def test_devices_beyond_the_bound_are_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mqtt_sink, "MAX_DEVICES", 2)
    entities = home()
    for device in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.3", "10.0.0.1"):
        entities.take(sample(device=device))
    assert entities.left_out == 2
    assert len(caplog.records) == 1
    assert len(states(entities)) == 2


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("192.168.1.5", "192-168-1-5"),
        ("2001:db8::1", "2001-0db8-0000-0000-0000-0000-0000-0001"),
        ("2001:DB8:0::1", "2001-0db8-0000-0000-0000-0000-0000-0001"),
    ],
)
def test_slugs(device: str, name: str) -> None:
    assert slug(device) == name


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.ip_addresses().map(str),
            st.from_regex(r"(::ffff:)?[0-9]{1,2}([.:-][0-9]{1,2}){3}(%[a-z0-9])?", fullmatch=True),
            st.text(max_size=8),
        ),
        unique=True,
        max_size=20,
    )
)
def test_slugs_are_topics_and_never_meet(devices: list[str]) -> None:
    import ipaddress  # noqa: PLC0415

    def same(device: str) -> object:
        try:
            address = ipaddress.ip_address(device)
        except ValueError:
            return device
        return address

    names = {slug(device) for device in devices}
    assert len(names) == len({same(device) for device in devices})
    assert all(name.replace("-", "").isalnum() and name.isascii() for name in names)
