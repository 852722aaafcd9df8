"""Lines of every log format, plausible and mutated, for tests of what reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from gradsense.data.sources.lines import MAX_LINE_BYTES

FIELDS = (
    "ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto", "service",
    "duration", "orig_bytes", "resp_bytes", "conn_state", "missed_bytes", "history",
    "orig_pkts", "orig_ip_bytes", "resp_pkts", "resp_ip_bytes",
)  # fmt: skip


COMPOUND = "tunnel_parents   label   detailed-label"


Random = random.Random


Mutation = Callable[[bytes, Random], bytes]


def values(rng: Random) -> list[Any]:
    """One plausible flow in the order of ``FIELDS``."""
    return [
        round(rng.uniform(1e9, 2e9), 6), f"C{rng.getrandbits(60):x}", f"10.0.0.{rng.randrange(9)}",
        rng.randrange(65536), f"fe80::{rng.randrange(65536):x}", rng.choice((23, 53, 80, 443)),
        rng.choice(("tcp", "udp", "icmp")), rng.choice(("dns", "http", None)),
        round(rng.expovariate(1), 6), rng.randrange(5000), rng.randrange(5000),
        rng.choice(("S0", "SF", "REJ", "OTH")), 0, rng.choice(("S", "ShADadFf", "Dd")),
        rng.randrange(20), rng.randrange(5000), rng.randrange(20), rng.randrange(5000),
    ]  # fmt: skip


def tsv_line(rng: Random) -> bytes:
    cells = ["-" if value is None else str(value) for value in values(rng)]
    return "\t".join([*cells, rng.choice(("-   Malicious   C&C", "(empty)   Benign   -"))]).encode()


def json_line(rng: Random) -> bytes:
    return json.dumps(dict(zip(FIELDS, values(rng), strict=True))).encode()


def eve_line(rng: Random) -> bytes:
    second = rng.randrange(60)
    event = {
        "flow_id": rng.getrandbits(50),
        "event_type": rng.choice(("flow", "flow", "flow", "dns")),
        "src_ip": "10.0.0.1", "src_port": rng.randrange(65536),
        "dest_ip": "10.0.0.2", "dest_port": 443, "proto": rng.choice(("TCP", "UDP", "ICMP")),
        "icmp_type": 8, "icmp_code": 0, "app_proto": rng.choice(("tls", "failed")),
        "flow": {
            "pkts_toserver": rng.randrange(9), "pkts_toclient": rng.randrange(9),
            "bytes_toserver": rng.randrange(900), "bytes_toclient": rng.randrange(900),
            "start": "2026-11-22T10:00:00.000000+0100",
            "end": f"2026-11-22T10:00:{second:02d}.500000+0100",
        },
        "tcp": {"tcp_flags_ts": f"{rng.randrange(32):02x}", "tcp_flags_tc": "1b"},
    }  # fmt: skip
    return json.dumps(event).encode()


HEADS = {
    tsv_line: [b"#separator \\x09", "\t".join(["#fields", *FIELDS, COMPOUND]).encode()],
    json_line: [],
    eve_line: [],
}


def flip_bits(line: bytes, rng: Random) -> bytes:
    data = bytearray(line or b"x")
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def splice(pieces: tuple[bytes, ...]) -> Mutation:
    """Put one of the pieces over a few bytes of the line, mostly over a whole number."""

    def mutation(line: bytes, rng: Random) -> bytes:
        begin = rng.randrange(len(line) + 1)
        end = min(len(line), begin + rng.choice((0, 1, 3, 10)))
        return line[:begin] + rng.choice(pieces) + line[end:]

    return mutation


def huge(line: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(line) + 1)
    return (
        line[:at]
        + rng.choice((b"9", b"x", b"\t", b"[", b"\\")) * rng.choice((500, 5000))
        + line[at:]
    )


def too_long(line: bytes, rng: Random) -> bytes:
    return line + b"x" * MAX_LINE_BYTES if rng.random() < 0.01 else line


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    splice((b"9" * 30, b"1e999", b"-1", b"NaN", b"Infinity", b"0x1", b"1_0", b" 7", b"+7", b"-")),
    splice((b"\0", b"\r", b"\xff\xfe", b"\xed\xa0\x80", "é\u2028\U0001f600".encode())),
    splice((b"\\ud800", b"\\u0000", b"\\x09", b"\\xff", b"\\", b'"', b"(empty)", b"   ", b"\t")),
    splice((b"{", b"}", b"[[[[", b"]", b":", b"null", b"true", b'{"a":[1,{}]}', b"#", b"\r\n")),
    splice((b"\n", b"\n{", b"\n#", b"\xef\xbb\xbf")),
    huge,
    too_long,
    lambda line, rng: b'{"ts":' + b"[" * rng.choice((100, 20_000)),
    lambda line, rng: line[: rng.randrange(len(line) + 1)],
    lambda line, rng: line + rng.choice((b"\r", b"\t", b" ", line)),
    lambda line, rng: line.replace(b"\t", rng.choice((b" ", b",", b"\t\t"))),
    lambda line, rng: rng.randbytes(rng.randrange(200)),
    lambda line, rng: rng.choice((b"", b"#close\t2", b"#unset_field\tx", b"#empty_field", b"{}")),
)  # fmt: skip


#: Lines that change how the lines after them are read; rare, so that most are read as they are.
HEADERS = (
    b"#fields\tts\tuid",
    b"#fields\t" + b"\t".join([b"ts"] * 600),
    b"#separator ab",
    b"#separator \\x2c",
    b"#separator",
    "\t".join(["#fields", *FIELDS]).encode(),
    b'{"event_type":1}',
    b'{"ts":1}',
)


def mutated(line: bytes, rng: Random) -> bytes:
    if rng.random() < 0.002:
        return rng.choice(HEADERS)
    if rng.random() < 0.5:
        return line
    line = rng.choice(MUTATIONS)(line, rng)
    # Spaces alone are blank in JSON, but a cell in TSV.
    return b"\n".join(part if part.strip() else b"" for part in line.split(b"\n"))
