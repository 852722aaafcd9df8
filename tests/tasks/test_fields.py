"""The buckets of single fields, with values one can check by hand."""

from __future__ import annotations

import polars as pl
import pytest

from gradsense.tasks import fields
from gradsense.tasks.fields import Field
from gradsense.tasks.flows import words as flow_words


def words(field: Field, **columns: list[object]) -> list[str]:
    return pl.DataFrame(columns, strict=False).select(field.text).to_series().to_list()


def test_number_takes_the_highest_edge_reached() -> None:
    field = fields.number("n", "x", (0.5, 1.0, 4.0), str, zero="zero", missing="none")
    values = [-1.0, 0.0, 0.1, 0.5, 0.99, 1.0, 3.9, 4.0, float("inf"), float("nan"), None]
    expected = "zero zero 0.5 0.5 0.5 1.0 1.0 4.0 4.0 none none"
    assert words(field, x=values) == expected.split()


def test_share_rounds_to_the_nearest_step() -> None:
    field = fields.share("s", "x", ("0", "half", "1"), "none")
    values = [0.0, 0.24, 0.25, 0.74, 0.75, 1.0, 7.0, None]
    assert words(field, x=values) == ["0", "0", "half", "half", "1", "1", "1", "none"]


def test_category_has_a_word_for_other_and_missing() -> None:
    field = fields.category("c", "x", {"tcp": "T", "udp": "U"}, "other", "none")
    assert words(field, x=["udp", "tcp", "TCP", "", None]) == ["U", "T", "other", "none", "none"]


def test_a_set_of_services_reads_as_its_most_telling_member() -> None:
    field = fields.first_listed("s", "x", {"http": "H", "ssl": "S"}, "other", "none")
    values = ["ssl", "ssl,http", "http,ssl", "foo,ssl", "foo", "", None]
    assert words(field, x=values) == ["S", "H", "H", "S", "other", "none", "none"]


def test_port_is_known_or_a_range() -> None:
    field = flow_words.port("p", "x", (80, 23), lambda text: text, "none")
    values = [23, 80, 24, 1024, 32767, 32768, 49152, 65535, None]
    expected = "23 80 system registered registered ephemeral dynamic dynamic none"
    assert words(field, x=values) == expected.split()


@pytest.mark.parametrize(
    ("orig", "resp", "expected"),
    [
        ("192.168.1.2", "8.8.8.8", "priv>pub"),
        ("10.0.0.1", "10.0.0.255", "priv>bcast"),
        ("172.16.0.1", "172.32.0.1", "priv>pub"),
        ("100.64.0.1", "239.255.255.250", "priv>mcast"),
        ("169.254.3.4", "255.255.255.255", "link>bcast"),
        ("0.0.0.0", "127.0.0.1", "zero>loop"),
        ("fe80::1", "ff02::fb", "6:link>mcast"),
        ("fd00::1", "2001:db8::1", "6:priv>pub"),
        ("::", "::1", "6:zero>loop"),
        ("host.example", None, "other>other"),
    ],
)
def test_address_kinds(orig: str, resp: str | None, expected: str) -> None:
    field = flow_words.address_pair("a", lambda v6, o, r: f"{v6}{':' if v6 else ''}{o}>{r}")
    frame = pl.DataFrame(
        {"orig_h": [orig], "resp_h": [resp]}, schema_overrides={"resp_h": pl.String}
    )
    assert frame.select(field.text).item() == expected


def test_history_is_itself_or_what_occurred() -> None:
    field = flow_words.history("h", lambda text: text, "none")
    values = ["ShADadFf", "ShADadTTtFfR", "^hADr", "Q", "", None]
    assert words(field, history=values) == ["ShADadFf", "+DdFR", "+DR^", "+", "none", "none"]


def test_histories_are_listed_once() -> None:
    assert len(set(flow_words.HISTORIES)) == len(flow_words.HISTORIES)
    assert len(set(flow_words.KNOWN_PORTS)) == len(flow_words.KNOWN_PORTS)
