"""Groups of captures: what belongs together, grades, the cap of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsense.data.datasets.captures import discover
from gradsense.data.datasets.groups import IOT23, SCANS, UNGRADED, grades, group_of, load_groups
from gradsense.errors import InputError

HEAD = (
    "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n"
    "#fields\tts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tservice\tduration\t"
    "orig_bytes\tresp_bytes\tconn_state\tlocal_orig\tlocal_resp\tmissed_bytes\thistory\torig_pkts\t"
    "orig_ip_bytes\tresp_pkts\tresp_ip_bytes\ttunnel_parents\tlabel\tdetailed-label\n"
)


def write_capture(root: Path, name: str, kinds: list[tuple[str, str]]) -> None:
    """A capture whose n-th flow, a second after the one before, is of the n-th label and detail."""
    lines = [
        f"{second}.0\tC{second}\t192.168.1.{1 + second % 3}\t{4000 + second}\t198.51.100.7\t"
        f"{23 if label == 'Malicious' else 443}\ttcp\t-\t0.5\t{10 * second}\t20\t"
        f"{'S0' if label == 'Malicious' else 'SF'}\t-\t-\t0\tS\t2\t90\t1\t60\t-\t"
        f"{label}\t{detail}\n"
        for second, (label, detail) in enumerate(kinds, start=1)
    ]
    folder = root / name / "bro"
    folder.mkdir(parents=True)
    (folder / "conn.log.labeled").write_text(HEAD + "".join(lines))


BENIGN, SCAN, FLOOD = ("Benign", "-"), ("Malicious", "PortScan"), ("Malicious", "DDoS")


@pytest.mark.parametrize(
    ("capture", "group"),
    [
        ("elclab__scan", "elclab"),
        ("networks/elclab__scan", "elclab"),
        ("nmap-lab__mikel", SCANS),
        ("nmap-evilfingers__192.168.1", SCANS),
        ("scan-whitehat__TCPNullScanAttempt", SCANS),
        ("slips__vertical-scan", SCANS),
        ("vulnscan-xscan__evilfingers", SCANS),
        ("c2sim__slips-testcc-1", "c2sim"),
        ("CTU-IoT-Malware-Capture-34-1", IOT23),
        ("CTU-Honeypot-Capture-4-1", IOT23),
        ("my-gateway", "my-gateway"),
    ],
)
def test_groups(capture: str, group: str) -> None:
    assert group_of(capture) == group


@given(group=st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True), name=st.text(max_size=8))
def test_what_follows_the_two_lines_is_not_of_the_group(group: str, name: str) -> None:
    assert group_of(f"{group}__{name.replace('/', '')}") in {group, SCANS}


def test_grades_are_of_the_nearest_table(tmp_path: Path) -> None:
    for folder, name in (("a", "x__1"), ("b", "x__2"), ("b", "CTU-Honeypot-Capture-4-1")):
        write_capture(tmp_path / folder, name, [BENIGN])
    (tmp_path / "a" / "TABLE.csv").write_text("capture,flows,grade\nx__1,1,S\n")
    found = grades(discover(tmp_path), tmp_path)
    assert found == {"x__1": "S", "x__2": UNGRADED, "CTU-Honeypot-Capture-4-1": "A"}
    (tmp_path / "a" / "TABLE.csv").write_text("name,grade\nx__1,S\n")
    with pytest.raises(InputError, match=r"TABLE\.csv"):
        grades(discover(tmp_path), tmp_path)


def test_the_cap_is_of_each_kind_and_the_class_is_binary(tmp_path: Path) -> None:
    write_capture(tmp_path, "x__1", [BENIGN, SCAN, FLOOD, SCAN, FLOOD, FLOOD, ("-", "-")])
    write_capture(tmp_path, "y__1", [BENIGN] * 5)
    found = load_groups(tmp_path, cap=2, seed=0)
    counts = found.flows.group_by("capture", "kind", "class").len().sort("capture", "kind").rows()
    assert counts == [
        ("x__1", "Benign", "Benign", 1),
        ("x__1", "DDoS", "Malicious", 2),
        ("x__1", "PortScan", "Malicious", 2),
        ("y__1", "Benign", "Benign", 2),
    ]
    assert found.unlabelled == 1
    assert found.flows["group"].unique().sort().to_list() == ["x", "y"]


def test_one_group_cannot_be_left_out(tmp_path: Path) -> None:
    for name in ("x__1", "x__2"):
        write_capture(tmp_path, name, [BENIGN, SCAN])
    with pytest.raises(InputError, match="two groups"):
        load_groups(tmp_path, seed=0)
