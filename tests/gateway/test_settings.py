"""The settings file of the watch command."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from gradsense.errors import InputError
from gradsense.gateway.alerting.sinks.mqtt import MqttSettings
from gradsense.gateway.alerting.sinks.syslog import SyslogSettings
from gradsense.gateway.alerting.sinks.webhook import WebhookSettings
from gradsense.gateway.settings import Settings, read

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "watch.toml"


def given(tmp_path: Path, text: str, **environ: str) -> Settings:
    file = tmp_path / "watch.toml"
    file.write_text(text, encoding="utf-8")
    return read(file, environ=environ)


def test_the_example_of_the_repository_is_right() -> None:
    settings = read(EXAMPLE, environ={"MQTT_PASSWORD": "m", "WEBHOOK_TOKEN": "w"})
    assert {sink.type for sink in settings.sink} == {
        "jsonl",
        "syslog",
        "webhook",
        "mqtt",
        "prometheus",
    }


def documented() -> list[str]:
    """The settings that pages show, indented in a list or not."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.md")]
    shown = re.compile(r"(?ms)^( *)```toml\n(.+?)^\1```$")
    return [textwrap.dedent(text) for page in pages for _, text in shown.findall(page.read_text())]


def test_settings_that_are_documented_are_right(tmp_path: Path) -> None:
    found = documented()
    assert len(found) >= 3
    for text in found:
        given(tmp_path, text, MQTT_PASSWORD="m")
        every = re.sub(r"(?m)^# (?=\w+ = )", "", text)  # those that are commented out, too
        given(tmp_path, every, MQTT_PASSWORD="m")


def test_a_newcomer_finds_the_settings() -> None:
    """From the README: a file that is enough, every key, and every sink."""
    start = (ROOT / "README.md").read_text()
    for link in ("docs/sinks.md#the-settings-file", "deploy/watch.toml"):
        assert f"]({link})" in start
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("sinks.md", "edge.md"))
    for key in Settings.model_fields:
        assert re.search(rf"^\|.*`\[*{key}\]*`.*\|", pages, re.MULTILINE), key


def test_an_empty_file_has_defaults(tmp_path: Path) -> None:
    settings = given(tmp_path, "")
    assert settings.sink == ()
    assert settings.window_s == 300
    assert settings.sensor


def test_a_sink_is_called_like_its_type(tmp_path: Path) -> None:
    settings = given(
        tmp_path,
        '[[sink]]\ntype="jsonl"\npath="-"\n[[sink]]\ntype="jsonl"\npath="a"\nname="archive"\n',
    )
    assert [sink.name for sink in settings.sink] == ["jsonl", "archive"]


def test_secrets_come_from_the_environment_and_are_not_shown(tmp_path: Path) -> None:
    settings = given(
        tmp_path,
        '[[sink]]\ntype="webhook"\nurl="env:URL"\nheaders={Authorization="env:TOKEN"}\n'
        '[[sink]]\ntype="mqtt"\nhost="b"\nusername="u"\npassword="plainly"\n',
        URL="https://hooks.example/hidden-path",
        TOKEN="Bearer hidden-token",
    )
    hook, broker = settings.sink
    assert isinstance(hook, WebhookSettings)
    assert hook.url.get_secret_value() == "https://hooks.example/hidden-path"
    assert hook.headers["Authorization"].get_secret_value() == "Bearer hidden-token"
    assert isinstance(broker, MqttSettings)
    for text in (repr(settings), settings.model_dump_json()):
        assert "hidden" not in text
        assert "plainly" not in text


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("udp://log.example", ("log.example", 514)),
        ("tcp://log.example", ("log.example", 601)),
        ("tls://log.example:9999", ("log.example", 9999)),
        ("tcp://[2001:db8::1]", ("2001:db8::1", 601)),
    ],
)
def test_syslog_addresses(address: str, place: tuple[str, int]) -> None:
    assert SyslogSettings(type="syslog", address=address).host_port() == place


@pytest.mark.parametrize(
    ("text", "field", "what"),
    [
        ("window=3", "window", "unknown key"),
        ("window_s=0", "window_s", "greater than 0"),
        ('sensor="a/b"', "sensor", "pattern"),
        ('[[sink]]\ntype="pigeon"', "sink 1", "pigeon"),
        ('[[sink]]\npath="-"', "sink 1", "type"),
        ('[[sink]]\ntype="jsonl"', "sink 1 (jsonl): path", "Field required"),
        ('[[sink]]\ntype="jsonl"\npath="-"\ncolour=1', "sink 1 (jsonl): colour", "unknown key"),
        ('[[sink]]\ntype="syslog"\naddress="ftp://x"', "sink 1 (syslog): address", "udp://host"),
        ('[[sink]]\ntype="syslog"\naddress="udp://x:99999"', "sink 1 (syslog): address", "Port"),
        ('[[sink]]\ntype="webhook"\nurl="x"', "sink 1 (webhook): url", "https://"),
        ('[[sink]]\ntype="webhook"\nurl="http://me:pw@x"', "sink 1 (webhook): url", "header"),
        ('[[sink]]\ntype="webhook"\nurl="env:NO_SUCH"', "sink 1 (webhook): url", "NO_SUCH"),
        (
            '[[sink]]\ntype="webhook"\nurl="http://x"\nheaders={A="b\\nc"}',
            "sink 1 (webhook): headers: A",
            "line break",
        ),
        ('[[sink]]\ntype="mqtt"\nhost="b"\nca="x.pem"', "sink 1 (mqtt)", "tls is not true"),
        ('[[sink]]\ntype="mqtt"\nhost="b"\ntopic="a/#"', "sink 1 (mqtt): topic", "pattern"),
        ('[[sink]]\ntype="prometheus"\naddress="9465"', "sink 1 (prometheus): address", "host:"),
        ('[[sink]]\ntype="jsonl"\npath="-"\n' * 2, None, "two sinks are called 'jsonl'"),
        ("sensor=", None, "no TOML"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, text: str, field: str | None, what: str) -> None:
    with pytest.raises(InputError) as caught:
        given(tmp_path, text)
    assert caught.value.field == field
    assert what in caught.value.what
    assert str(tmp_path / "watch.toml") in str(caught.value)


def test_a_wrong_secret_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        given(tmp_path, '[[sink]]\ntype="webhook"\nurl="ftp://hooks.example/hidden"')
    assert "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("text", [b"\xff", b"#" * ((1 << 20) + 1)])
def test_a_file_that_is_no_settings_file(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x").write_bytes(text)
    with pytest.raises(InputError):
        read(tmp_path / "x")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.toml")


def test_a_sink_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sink 1"):
        given(tmp_path, "sink = [3]")


def test_a_file_nested_too_deep(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no TOML"):
        given(tmp_path, "sink = " + "[" * 100_000)
