"""Every template, on anything that a log can hold: closed vocabulary, budget, nothing leaks."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.data.flows import CONTEXT_SCHEMA, FLOW_SCHEMA
from gradsense.errors import InputError
from gradsense.models.embedded import build_tokenizer
from gradsense.prompts.templates import Template, get_template, templates

SCHEMA = FLOW_SCHEMA | CONTEXT_SCHEMA
TEMPLATES = templates()
every_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)

ANY: dict[type[pl.DataType], st.SearchStrategy[Any]] = {
    pl.Float64: st.floats() | st.floats(0, 1) | st.sampled_from([0.0, -1.0, 5e-324, 1e300]),
    pl.Int64: st.integers(-(2**63), 2**63 - 1) | st.integers(0, 70_000),
    pl.String: st.text(max_size=20)
    | st.from_regex(r"[0-9a-fA-F:.]{1,20}\n?")
    | st.ip_addresses().map(str)
    | st.sampled_from(["tcp", "ssl,http", ",,", "S0", "ShADadFf", "^dR", "10.0.0.255", "ff02::1"]),
}
flow_rows = st.fixed_dictionaries({name: st.none() | ANY[kind] for name, kind in SCHEMA.items()})
frames = st.lists(flow_rows, max_size=5).map(lambda rows: pl.DataFrame(rows, schema=SCHEMA))


def one_flow(**values: object) -> pl.DataFrame:
    return pl.DataFrame([dict.fromkeys(SCHEMA) | values], schema=SCHEMA)


TELNET_SCAN = one_flow(
    ts=1_538_478_769.6,
    uid="CSQG794riQ4XnzTxP2",
    orig_h="192.168.100.103",
    orig_p=40_000,
    resp_h="203.0.114.9",
    resp_p=23,
    proto="tcp",
    duration=3.1,
    orig_bytes=0,
    resp_bytes=0,
    conn_state="S0",
    history="S",
    orig_pkts=3,
    orig_ip_bytes=180,
    resp_pkts=0,
    resp_ip_bytes=0,
    ctx_flows=32,
    ctx_rate=5.0,
    ctx_failed=1.0,
    ctx_fresh=0.5,
    ctx_same_port=0.0,
)

UNSET = one_flow()
TOKENIZERS = {
    name: build_tokenizer(TEMPLATES[name].vocabulary(), max_tokens=TEMPLATES[name].budget)
    for name in ("compact", "context")
}


@pytest.mark.slow
@every_template
@settings(max_examples=100, deadline=None)
@given(frame=frames)
def test_any_frame_reads_in_the_vocabulary_and_the_budget(
    template: Template, frame: pl.DataFrame
) -> None:
    texts = template.render(frame)
    assert texts.len() == frame.height
    assert texts.dtype == pl.String
    assert texts.null_count() == 0
    known = set(template.vocabulary())
    for text in texts:
        assert set(text.split()) <= known
        assert len(text.split()) <= template.budget
        assert text == " ".join(text.split())


@pytest.mark.slow
@every_template
@settings(max_examples=100, deadline=None)
@given(rows=st.lists(flow_rows, min_size=1, max_size=5))
def test_one_flow_reads_as_it_does_among_many(
    template: Template, rows: list[dict[str, Any]]
) -> None:
    frame = pl.DataFrame(rows, schema=SCHEMA)
    many = template.indices(frame)
    for row, expected in zip(rows, many, strict=True):
        assert template.pick(row).tolist() == [expected.tolist()]
    assert template.texts(many) == template.render(frame).to_list()


@every_template
def test_the_longest_phrases_fit_the_budget(template: Template) -> None:
    longest = sum(max(len(p.split()) for p in field.phrases) for field in template.fields)
    assert longest <= template.budget


@every_template
def test_the_vocabulary_is_fixed_and_has_no_twins(template: Template) -> None:
    words = template.vocabulary()
    assert words == template.vocabulary()
    assert len(set(words)) == len(words)
    assert not any(word.split() != [word] for word in words)


@every_template
@settings(max_examples=50, deadline=None)
@given(marker=st.from_regex(r"\AQ[0-9]{6}Z\Z"), ts=st.floats(1e9, 2e9))
def test_identity_and_time_never_show(template: Template, marker: str, ts: float) -> None:
    strings = [name for name, kind in FLOW_SCHEMA.items() if kind == pl.String]
    text = template.render(one_flow(**dict.fromkeys(strings, marker), ts=ts)).item()
    assert marker not in text
    assert f"{ts:.0f}" not in text


@every_template
def test_two_devices_in_the_same_situation_read_the_same(template: Template) -> None:
    twin = TELNET_SCAN.with_columns(
        ts=pl.lit(9e8), uid=pl.lit("C2"), orig_h=pl.lit("10.9.8.7"), resp_h=pl.lit("198.41.0.4")
    )
    assert template.render(twin).equals(template.render(TELNET_SCAN))


@pytest.mark.parametrize(("name", "words"), [("compact", 14), ("context", 19)])
@settings(max_examples=50, deadline=None)
@given(frame=frames)
def test_one_word_a_field(name: str, words: int, frame: pl.DataFrame) -> None:
    lengths = TEMPLATES[name].render(frame).str.split(" ").list.len()
    assert (lengths == words).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "length"), [("compact", 14), ("context", 19)])
@settings(max_examples=50, deadline=None)
@given(frame=frames)
def test_length_is_what_the_tokenizer_yields(name: str, length: int, frame: pl.DataFrame) -> None:
    template = TEMPLATES[name]
    assert template.length == length
    tokens = TOKENIZERS[name]([*template.render(frame), template.render(TELNET_SCAN).item()])
    assert {len(ids) for ids in tokens["input_ids"]} == {length}


def test_plain_has_no_one_length() -> None:
    assert TEMPLATES["plain"].length is None
    lengths = {len(TEMPLATES["plain"].render(flow).item().split()) for flow in (UNSET, TELNET_SCAN)}
    assert len(lengths) == 2


@pytest.mark.parametrize("name", ["compact", "context"])
def test_a_word_tells_its_field(name: str) -> None:
    phrases = [phrase for field in TEMPLATES[name].fields for phrase in field.phrases]
    assert len(set(phrases)) == len(phrases)


def test_compact_reads_as_written() -> None:
    assert TEMPLATES["compact"].render(TELNET_SCAN).item() == (
        "p:tcp s:- st:S0 dp:23 sp:ephemeral a:priv>pub h:S d:2.9 ob:0 rb:0 op:3 rp:0 oi:128 ri:0"
    )


def test_context_adds_the_host() -> None:
    compact = TEMPLATES["compact"].render(TELNET_SCAN).item()
    assert TEMPLATES["context"].render(TELNET_SCAN).item() == (
        f"{compact} cn:32 cr:4 cf:8/8 cw:4/8 cp:0/8"
    )


def test_plain_is_a_sentence() -> None:
    assert TEMPLATES["plain"].render(TELNET_SCAN).item() == (
        "A tcp connection of no known service from a private to a public address at port 23 "
        "got no answer (state S0) after 3 seconds. It sent 0 bytes in 3 packets and received "
        "0 bytes in 0 packets. History: S."
    )


def test_only_context_needs_context() -> None:
    assert [name for name, template in TEMPLATES.items() if template.needs_context] == ["context"]


def test_get_template() -> None:
    assert get_template("plain") == TEMPLATES["plain"]
    with pytest.raises(InputError, match="compact, plain, context"):
        get_template("verbose")
