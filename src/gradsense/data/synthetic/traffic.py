"""Synthetic fleets: genuine labelled Zeek logs of networks that never existed.

The demo and the tests train on them, so that nobody needs data to begin. Folder names, a header
line of every log and every message about them say that the traffic is synthetic. Addresses come
from private, documentation (RFC 5737) and benchmarking (RFC 2544) ranges only.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from gradsense.data.synthetic.profiles import (
    DEVICES,
    INFECTIONS,
    SITES,
    Behaviour,
    Ending,
    Rhythm,
    SiteProfile,
    Spread,
    Target,
)
from gradsense.errors import InputError

NOTICE = "gradsense synthetic fleet: generated traffic, not a capture"

_LAST = "tunnel_parents   label   detailed-label"  # IoT-23 joins three columns with spaces
_COLUMNS = {
    "ts": "time", "uid": "string", "id.orig_h": "addr", "id.orig_p": "port", "id.resp_h": "addr",
    "id.resp_p": "port", "proto": "enum", "service": "string", "duration": "interval",
    "orig_bytes": "count", "resp_bytes": "count", "conn_state": "string", "local_orig": "bool",
    "local_resp": "bool", "missed_bytes": "count", "history": "string", "orig_pkts": "count",
    "orig_ip_bytes": "count", "resp_pkts": "count", "resp_ip_bytes": "count",
}  # fmt: skip
_FIXED_TARGETS = {"ssdp": "239.255.255.250", "mdns": "224.0.0.251"}
_SEGMENT = 1400  # payload bytes of a full packet
_ALPHABET = np.array(list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"))

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


def write_fleet(
    out: Path, *, sites: int = 6, flows: int = 2000, seed: int = 0, start: float = 1_700_000_000.0
) -> list[Path]:
    """Writes one labelled log a site, as ``<out>/<site>/bro/conn.log.labeled``, and lists them.

    Sites differ in devices, infections, ports and volume. The same arguments give the same bytes.

    Args:
        sites: how many sites.
        flows: flows of an average site; a site has 0.6 to 1.3 times that, roughly.
        start: when the logs begin, in seconds since the epoch.

    Raises:
        InputError: ``sites`` or ``flows`` is too small, or ``out`` cannot be written.
    """
    _check(sites >= 1, "sites", "at least 1")
    _check(flows >= 50, "flows", "at least 50")
    paths = []
    for number in range(sites):
        site = SITES[number % len(SITES)]
        rng = np.random.default_rng([seed, number])
        frame = _site_flows(site, number, round(flows * site.volume), start, rng)
        path = out / f"synthetic-{number + 1:02d}-{site.name}" / "bro" / "conn.log.labeled"
        labels = pl.format("-   {}   {}", "label", "detail").alias(_LAST)
        _write(path, frame.select(*_COLUMNS, labels), start)
        paths.append(path)
    return paths


def write_sample(
    path: Path, *, flows: int = 500, seed: int = 0, start: float = 1_700_000_000.0
) -> pl.DataFrame:
    """Writes a plain conn.log without labels, of a network with every infection.

    Returns the truth, a row per flow in the order of the log: ``uid``, ``label``, ``detail``.

    Raises:
        InputError: ``flows`` is too small, or ``path`` cannot be written.
    """
    _check(flows >= 50, "flows", "at least 50")
    site = SiteProfile("sample", dict.fromkeys(DEVICES, 2), dict.fromkeys(INFECTIONS, 0.08))
    # A stream of its own, so that a sample never repeats a site of the fleet of the same seed.
    frame = _site_flows(site, 250, flows, start, np.random.default_rng([seed, 1 << 32]))
    unlabelled = frame.select(*_COLUMNS, tunnel_parents=pl.lit(None, dtype=pl.String))
    _write(path, unlabelled, start)
    return frame.select("uid", "label", "detail")


def _check(good: bool, field: str, least: str) -> None:
    if not good:
        raise InputError(f"too few {field}", hint=f"give {least}", field=field)


def _site_flows(
    site: SiteProfile, number: int, flows: int, start: float, rng: np.random.Generator
) -> pl.DataFrame:
    """All flows of a site in time order: Zeek's columns, ``label`` and ``detail``."""
    hosts = [model for model, count in site.devices.items() for _ in range(count)]
    rate = sum(1 / behaviour.every for model in hosts for behaviour in DEVICES[model])
    span = flows * (1 - sum(site.infections.values())) / rate  # seconds
    network = _Network(number % 256, len(hosts), rng)

    parts = []
    for host, model in enumerate(hosts):
        for behaviour in DEVICES[model]:
            count = int(rng.poisson(span / behaviour.every))
            times = _times(behaviour.rhythm, count, 0.0, span, rng)
            parts.append(_connections(behaviour, host, times, network, rng))
    for name, share in site.infections.items():
        host, count = int(rng.integers(len(hosts))), round(flows * share)
        begin, length = span * rng.uniform(0.1, 0.4), span * rng.uniform(0.35, 0.6)
        times = _times(INFECTIONS[name].rhythm, count, begin, length, rng)
        parts.append(_connections(INFECTIONS[name], host, times, network, rng))

    frame = pl.concat(parts).sort("ts", maintain_order=True)
    return frame.with_columns(pl.col("ts") + start, uid=_uids(frame.height, rng))


def _times(
    rhythm: Rhythm, count: int, begin: float, length: float, rng: np.random.Generator
) -> _Floats:
    """``count`` start times (seconds, unordered) in ``begin`` to ``begin + length``."""
    match rhythm:
        case "periodic":
            place = (np.arange(count) + rng.normal(0, 0.05, count) + rng.random()) / max(count, 1)
        case "steady":
            place = rng.random(count)
        case "bursts":
            centres = rng.random(max(1, count // 60))
            place = rng.choice(centres, count) + rng.exponential(0.004, count)
    times: _Floats = begin + length * np.clip(place, 0.0, 1.0)
    return times


class _Network:
    """The addresses of one site, and its own mix of destination ports for each behaviour."""

    def __init__(self, number: int, hosts: int, rng: np.random.Generator) -> None:
        self._prefix = f"192.168.{number}."
        self._hosts = hosts
        self._cloud = [f"203.0.113.{n}" for n in rng.integers(1, 255, 12)]
        self._victims = [f"198.51.100.{n}" for n in rng.integers(1, 255, 3)]
        self._ports: dict[tuple[str, Target, str, tuple[int, ...]], _Floats] = {}

    def host(self, index: int) -> str:
        return f"{self._prefix}{10 + index % 240}"

    def targets(self, target: Target, host: int, count: int, rng: np.random.Generator) -> list[str]:
        match target:
            case "cloud":
                return list(rng.choice(self._cloud, count))
            case "victim":
                return list(rng.choice(self._victims, count))
            case "neighbour":
                steps = rng.integers(1, max(self._hosts, 2), count)
                return [self.host(int(n)) for n in (host + steps) % self._hosts]
            case "anyone":
                bits = rng.integers(1 << 17, size=count)
                return [f"198.{18 + (b >> 16)}.{b >> 8 & 255}.{b & 255}" for b in bits.tolist()]
            case _:
                return [_FIXED_TARGETS.get(target, f"{self._prefix}1")] * count

    def ports(self, behaviour: Behaviour, count: int, rng: np.random.Generator) -> _Ints:
        """Destination ports; the site's own weights scatter around the behaviour's."""
        numbers = tuple(behaviour.ports)
        key = (behaviour.proto, behaviour.target, behaviour.detail, numbers)
        if key not in self._ports:
            self._ports[key] = rng.dirichlet(np.array(list(behaviour.ports.values())) * 2)
        chosen: _Ints = rng.choice(np.array(numbers), count, p=self._ports[key])
        return chosen


def _connections(
    behaviour: Behaviour, host: int, times: _Floats, network: _Network, rng: np.random.Generator
) -> pl.DataFrame:
    """Connections of one behaviour of one host, one a start time."""
    count = len(times)
    weights = np.array([outcome.weight for outcome in behaviour.outcomes])
    which = rng.choice(len(weights), count, p=weights / weights.sum())
    parts = [
        _ends(outcome, behaviour.service, times[which == index], rng)
        for index, outcome in enumerate(behaviour.outcomes)
    ]
    sources = rng.integers(32_768, 61_000, count)
    if behaviour.source_port is not None:
        sources = np.full(count, behaviour.source_port)
    return pl.concat(parts).with_columns(
        pl.lit(network.host(host)).alias("id.orig_h"),
        pl.Series("id.orig_p", sources, dtype=pl.Int64),
        pl.Series(
            "id.resp_h", network.targets(behaviour.target, host, count, rng), dtype=pl.String
        ),
        pl.Series("id.resp_p", network.ports(behaviour, count, rng), dtype=pl.Int64),
        proto=pl.lit(behaviour.proto),
        local_orig=pl.lit(None, dtype=pl.String),
        local_resp=pl.lit(None, dtype=pl.String),
        missed_bytes=pl.lit(0, dtype=pl.Int64),
        label=pl.lit(behaviour.label),
        detail=pl.lit(behaviour.detail),
    )


def _ends(
    outcome: Ending, service: str | None, times: _Floats, rng: np.random.Generator
) -> pl.DataFrame:
    """What both ends did in connections of one outcome: state, sizes, packets, duration."""
    count = len(times)
    service = service if outcome.service is None else outcome.service or None

    def packets(extra: tuple[int, int], payload: _Floats | None) -> _Ints:
        control = rng.integers(extra[0], extra[1] + 1, count)
        if payload is None:
            return control
        filled: _Ints = control + np.ceil(payload / _SEGMENT).astype(np.int64)
        return filled

    def ip_bytes(number: _Ints, payload: _Floats | None) -> pl.Series:
        carried = 0 if payload is None else payload.astype(np.int64)
        return pl.Series(number * outcome.header + carried, dtype=pl.Int64)

    sent, received = _draw(outcome.sent, count, rng), _draw(outcome.received, count, rng)
    sent, received = (None if x is None else np.round(x) for x in (sent, received))
    orig, resp = packets(outcome.packets, sent), packets(outcome.replies, received)
    return pl.DataFrame(
        {
            "ts": times,
            "service": _column(None if service is None else [service] * count, pl.String, count),
            "duration": _column(_draw(outcome.seconds, count, rng), pl.Float64, count),
            "orig_bytes": _column(sent, pl.Int64, count),
            "resp_bytes": _column(received, pl.Int64, count),
            "conn_state": pl.Series([outcome.state] * count, dtype=pl.String),
            "history": pl.Series(rng.choice(outcome.histories, count).tolist(), dtype=pl.String),
            "orig_pkts": pl.Series(orig, dtype=pl.Int64),
            "orig_ip_bytes": ip_bytes(orig, sent),
            "resp_pkts": pl.Series(resp, dtype=pl.Int64),
            "resp_ip_bytes": ip_bytes(resp, received),
        }
    )


def _draw(spread: Spread | None, count: int, rng: np.random.Generator) -> _Floats | None:
    if spread is None:
        return None
    drawn: _Floats = spread.median * np.exp(rng.normal(0.0, spread.sigma, count))
    return drawn


def _column(values: _Floats | list[str] | None, dtype: type[pl.DataType], count: int) -> pl.Series:
    return pl.Series([None] * count if values is None else values).cast(dtype)


def _uids(count: int, rng: np.random.Generator) -> pl.Series:
    letters = _ALPHABET[rng.integers(len(_ALPHABET), size=(count, 17))]
    names = np.char.add("C", letters.view("U17").ravel())
    return pl.Series(names.tolist(), dtype=pl.String)


def _header(last: str, start: float) -> str:
    opened = datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%d-%H-%M-%S")
    last_type = "   ".join(["set[string]", "string", "string"][: len(last.split())])
    return "\n".join(
        (
            "#separator \\x09",
            "#set_separator\t,",
            "#empty_field\t(empty)",
            "#unset_field\t-",
            "#path\tconn",
            f"#synthetic\t{NOTICE}",
            f"#open\t{opened}",
            "\t".join(("#fields", *_COLUMNS, last)),
            "\t".join(("#types", *_COLUMNS.values(), last_type)),
            "",
        )
    )


def _write(path: Path, frame: pl.DataFrame, start: float) -> None:
    """Writes Zeek columns and a last one (named by the frame) as a Zeek log."""
    rows = frame.write_csv(
        include_header=False, separator="\t", null_value="-", float_precision=6, quote_style="never"
    )
    closed = datetime.fromtimestamp(float(frame["ts"][-1]), UTC).strftime("%Y-%m-%d-%H-%M-%S")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = _header(frame.columns[-1], start) + rows + f"#close\t{closed}\n"
        path.write_text(text, encoding="ascii", newline="\n")
    except OSError as fault:
        raise InputError(
            f"cannot be written ({fault.strerror})", hint="choose another folder", file=path
        ) from fault
