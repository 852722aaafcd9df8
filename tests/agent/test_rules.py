"""A rules file labels exactly the flows that it describes, and every mistake in it is named."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.agent.label_rules import LabelRule, LabelRules, read
from gradsense.data.flows import FLOW_SCHEMA
from gradsense.errors import InputError

FLOW: dict[str, Any] = {
    **dict.fromkeys(FLOW_SCHEMA),
    "orig_h": "192.168.1.5",
    "orig_p": 40_000,
    "resp_h": "198.51.100.7",
    "resp_p": 443,
    "proto": "tcp",
    "service": "ssl,http",
    "conn_state": "SF",
    "duration": 1.5,
    "orig_bytes": 700,
    "resp_bytes": 0,
}


def frame(*changes: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([{**FLOW, **change} for change in changes], schema=FLOW_SCHEMA)


def label(conditions: dict[str, Any], **change: Any) -> str | None:
    rules = LabelRules((LabelRule(label="Benign", **conditions),))
    return rules.labels(frame(change)).item()


def written(folder: Path, text: str) -> Path:
    path = folder / "rules.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "conditions",
    [
        {},
        {"orig_h": "192.168.1.5"},
        {"orig_h": ["10.0.0.0/8", "192.168.0.0/16"]},
        {"resp_p": 443},
        {"resp_p": [80, "440-443"]},
        {"resp_p": "443-"},
        {"resp_p": "-443"},
        {"proto": "TCP"},
        {"service": "http"},
        {"service": ["dns", "ssl"]},
        {"conn_state": ["S1", "SF"]},
        {"duration": "1.5-2"},
        {"resp_bytes": 0},
        {"orig_bytes": "1-", "orig_p": "1024-65535", "resp_h": "198.51.100.0/24"},
    ],
)
def test_what_matches(conditions: dict[str, Any]) -> None:
    assert label(conditions) == "Benign"


@pytest.mark.parametrize(
    "conditions",
    [
        {"orig_h": "192.168.1.6"},
        {"orig_h": "fd00::/8"},
        {"resp_p": [80, "444-"]},
        {"proto": "udp"},
        {"service": "htt"},
        {"service": "-"},
        {"duration": "-1.4"},
        {"resp_bytes": "1-"},
        {"orig_pkts": "0-"},  # the log says nothing of them
        {"resp_p": 443, "proto": "udp"},  # one condition is met, the other is not
    ],
)
def test_what_does_not_match(conditions: dict[str, Any]) -> None:
    assert label(conditions) is None


def test_what_is_unset_matches_a_dash_and_nothing_else() -> None:
    assert label({"service": "-"}, service=None) == "Benign"
    assert label({"service": "ssl"}, service=None) is None
    assert label({"orig_h": "0.0.0.0/0"}, orig_h=None) is None
    assert label({"resp_p": "0-65535"}, resp_p=None) is None


def test_addresses_of_the_other_version_and_names_are_in_no_network() -> None:
    assert label({"resp_h": "fd00::/8"}, resp_h="fd00::9") == "Benign"
    assert label({"resp_h": "0.0.0.0/0"}, resp_h="fd00::9") is None
    assert label({"resp_h": "0.0.0.0/0"}, resp_h="printer") is None


def test_the_first_rule_that_matches_wins() -> None:
    rules = LabelRules(
        (
            LabelRule(label="A", resp_p=22),
            LabelRule(label="B", resp_p="20-30"),
            LabelRule(label="C", proto="udp"),
        )
    )
    flows = frame({"resp_p": 22}, {"resp_p": 23}, {"resp_p": 22, "proto": "udp"}, {"resp_p": 1})
    assert rules.labels(flows).to_list() == ["A", "B", "A", None]
    assert rules.labels(frame()).to_list() == []


def spans(value: int, top: int) -> st.SearchStrategy[Any]:
    """Conditions that ``value`` meets."""
    low, high = st.integers(0, value), st.integers(value, top)
    met = st.one_of(
        st.just(value), st.builds("{}-{}".format, low, high),
        st.builds("{}-".format, low), st.builds("-{}".format, high),
    )  # fmt: skip
    return st.one_of(met, st.tuples(st.integers(0, top), met).map(list))


@st.composite
def flow_and_rule(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """A flow, and conditions each of which it meets by construction."""
    address = draw(st.ip_addresses())
    width = draw(st.integers(0, address.max_prefixlen))
    network = ipaddress.ip_network(f"{address}/{width}", strict=False)
    port, size = draw(st.integers(0, 65_535)), draw(st.integers(0, 1 << 40))
    proto = draw(st.sampled_from(["tcp", "udp", "icmp"]))
    services = draw(st.lists(st.sampled_from(["ssl", "http", "dns"]), min_size=1, unique=True))
    met = {
        "resp_h": draw(st.sampled_from([str(network), str(address)])),
        "resp_p": draw(spans(port, 65_535)),
        "orig_bytes": draw(spans(size, 1 << 41)),
        "proto": draw(st.sampled_from([proto, proto.upper(), [proto, "sctp"]])),
        "service": draw(st.sampled_from(services)),
    }
    keys = draw(st.sets(st.sampled_from(sorted(met))))
    flow = {
        "resp_h": str(address), "resp_p": port, "orig_bytes": size,
        "proto": proto, "service": ",".join(services),
    }  # fmt: skip
    return flow, {key: met[key] for key in keys}


@settings(max_examples=100, deadline=None)
@given(flow_and_rule())
def test_a_rule_matches_what_it_was_made_for(made: tuple[dict[str, Any], dict[str, Any]]) -> None:
    flow, conditions = made
    assert label(conditions, **flow) == "Benign"
    # One condition more that the flow does not meet, and it no longer does.
    assert label({**conditions, "conn_state": "REJ"}, **flow) is None


def test_a_file_is_read_as_docs_show_it(tmp_path: Path) -> None:
    doc = Path(__file__).parents[2] / "docs" / "rules.md"
    example = "\n".join(
        line.removeprefix("    ")
        for line in doc.read_text().splitlines()
        if line.startswith("    ") or not line
    )
    rules = read(written(tmp_path, example))
    flows = frame(
        {"orig_h": "192.168.1.66", "resp_p": 23, "conn_state": "S0"},
        {"orig_h": "192.168.1.10", "resp_p": 53, "proto": "udp"},
        {"orig_h": "192.168.1.10", "resp_h": "203.0.113.9", "resp_p": 443},
    )
    assert rules.labels(flows).to_list() == ["PartOfAHorizontalPortScan", "Benign", None]


@pytest.mark.parametrize(
    ("rule", "field", "what"),
    [
        ("resp_port = 80", "rule 2: resp_port", "unknown key"),
        ("resp_p = '80..90'", "rule 2: resp_p", "no range"),
        ("resp_p = '90-80'", "rule 2: resp_p", "ends before it begins"),
        ("resp_p = 70000", "rule 2: resp_p", "ports end at 65535"),
        ("resp_p = true", "rule 2: resp_p", "no number"),
        ("resp_p = []", "rule 2: resp_p", "at least 1"),
        ("orig_bytes = -1", "rule 2: orig_bytes", "no number"),
        ("duration = nan", "rule 2: duration", "no number"),
        ("orig_h = '10.0.0.1/8'", "rule 2: orig_h", "network"),
        ("orig_h = 5", "rule 2: orig_h", "no address"),
        ("proto = 6", "rule 2: proto", "no text"),
        ("label = ''", "rule 2: label", "at least 1"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, rule: str, field: str, what: str) -> None:
    given_label = "" if rule.startswith("label") else "label = 'Benign'\n"
    path = written(tmp_path, f"[[rule]]\nlabel = 'Benign'\n[[rule]]\n{given_label}{rule}\n")
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.field == field
    assert what in caught.value.what
    assert caught.value.file == path


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[[rule]]\nresp_p = 80", "missing"),
        ("", "missing"),
        ("rules = 1\n[[rule]]\nlabel = 'Benign'", "unknown key"),
        ("[[rule]\n", "no TOML"),
        ("#" * (1 << 20) + "\n", "larger than 1 MiB"),
    ],
)
def test_what_is_no_rules_file(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        read(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "rules.toml")
