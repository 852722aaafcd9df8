"""The synthetic fleet: real Zeek logs, reproducible, different at every site, never trivial."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import polars as pl
import pytest

from gradsense.data.flows import FLOW_SCHEMA
from gradsense.data.sources.lines import Tally
from gradsense.data.sources.stream import is_synthetic, read_log
from gradsense.data.synthetic import profiles
from gradsense.data.synthetic.traffic import NOTICE, write_fleet, write_sample
from gradsense.errors import InputError
from gradsense.prompts.templates import templates

MADE_UP = [  # RFC 1918, RFC 5737, RFC 2544 and multicast
    ipaddress.ip_network(text)
    for text in (
        *("192.168.0.0/16", "203.0.113.0/24", "198.51.100.0/24", "198.18.0.0/15"),
        "224.0.0.0/4",
    )
]


def read(path: Path) -> pl.DataFrame:
    tally = Tally()
    return pl.concat(list(read_log(path, tally=tally, strict=True)))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    paths = write_fleet(tmp_path_factory.mktemp("fleet"), flows=1500, seed=3)
    return {path.parents[1].name: read(path) for path in paths}


def classes(frame: pl.DataFrame) -> set[str]:
    return set(frame["detail"].fill_null("-")) - {"-"}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first = write_fleet(tmp_path / "a", sites=3, flows=200, seed=7)
    again = write_fleet(tmp_path / "b", sites=3, flows=200, seed=7)
    other = write_fleet(tmp_path / "c", sites=3, flows=200, seed=8)
    for one, two, three in zip(first, again, other, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert one.read_bytes() != three.read_bytes()


def test_a_fleet_grows_without_changing_its_first_sites(tmp_path: Path) -> None:
    small = write_fleet(tmp_path / "a", sites=2, flows=200)
    large = write_fleet(tmp_path / "b", sites=8, flows=200)
    assert [p.read_bytes() for p in small] == [p.read_bytes() for p in large[:2]]
    assert len({path.parents[1] for path in large}) == 8


def test_layout_and_header_say_that_it_is_synthetic(tmp_path: Path) -> None:
    (path,) = write_fleet(tmp_path, sites=1, flows=100)
    assert path == tmp_path / "synthetic-01-home" / "bro" / "conn.log.labeled"
    assert is_synthetic(path)
    lines = path.read_text().splitlines()
    assert lines[4:6] == ["#path\tconn", f"#synthetic\t{NOTICE}"]
    assert lines[7].endswith("tunnel_parents   label   detailed-label")
    assert lines[-1].startswith("#close\t")


def test_logs_are_in_time_order_and_near_the_size_asked_for(
    fleet: dict[str, pl.DataFrame],
) -> None:
    for name, frame in fleet.items():
        site = next(site for site in profiles.SITES if name.endswith(site.name))
        assert frame["ts"].is_sorted()
        assert frame.height == pytest.approx(1500 * site.volume, rel=0.1)
        assert frame["uid"].is_unique().all()
        assert frame.columns == list(FLOW_SCHEMA)


def test_sites_differ_some_clean_none_with_every_infection(
    fleet: dict[str, pl.DataFrame],
) -> None:
    per_site = [classes(frame) for frame in fleet.values()]
    everything = {behaviour.detail for behaviour in profiles.INFECTIONS.values()}
    assert set().union(*per_site) == everything
    assert set() in per_site
    assert everything not in per_site


def test_addresses_belong_to_nobody(fleet: dict[str, pl.DataFrame]) -> None:
    frame = pl.concat(fleet.values())
    for text in {*frame["orig_h"], *frame["resp_h"]}:
        assert any(ipaddress.ip_address(text) in network for network in MADE_UP)
    assert (frame["orig_h"] != frame["resp_h"]).all()


def test_records_are_consistent(fleet: dict[str, pl.DataFrame]) -> None:
    frame = pl.concat(fleet.values())
    sent, received = pl.col("orig_bytes").fill_null(0), pl.col("resp_bytes").fill_null(0)
    assert frame.filter(
        (pl.col("orig_ip_bytes") < sent)
        | (pl.col("resp_ip_bytes") < received)
        | (pl.col("orig_pkts") < 1)
        | (pl.col("duration") < 0)
        | ((pl.col("conn_state") == "S0") & (pl.col("resp_pkts") > 0))
        | (pl.col("duration").is_null() != pl.col("orig_bytes").is_null())
    ).is_empty()


def test_some_flows_cannot_be_told_apart_but_most_can(fleet: dict[str, pl.DataFrame]) -> None:
    frame = pl.concat(fleet.values())
    frame = frame.with_columns(text=templates()["compact"].render(frame))
    groups = frame.group_by("text", "detail").len().group_by("text")
    ceiling = groups.agg(pl.col("len").max())["len"].sum() / frame.height
    assert 0.95 < ceiling < 0.995


def test_every_service_state_and_history_has_a_word(fleet: dict[str, pl.DataFrame]) -> None:
    texts = templates()["compact"].render(pl.concat(fleet.values()))
    assert not texts.str.contains("other").any()


def test_sample_has_no_labels_but_returns_the_truth(tmp_path: Path) -> None:
    truth = write_sample(tmp_path / "conn.log", flows=400, seed=1)
    frame = read(tmp_path / "conn.log")
    assert frame["label"].null_count() == frame.height
    assert frame["uid"].to_list() == truth["uid"].to_list()
    assert len(set(truth["detail"])) == 1 + len(profiles.INFECTIONS)
    assert "Malicious" not in (tmp_path / "conn.log").read_text()


@pytest.mark.parametrize("wrong", [{"sites": 0}, {"flows": 10}])
def test_too_little_is_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="give at least"):
        write_fleet(tmp_path, **wrong)


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        write_fleet(tmp_path / "file", sites=1, flows=100)
