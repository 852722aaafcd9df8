"""Following a log: on real files, every way in which logs are rotated, emptied and packed."""

from __future__ import annotations

import gzip
import os
import random
import shutil
from pathlib import Path

import pytest

from gradsense.data.sources.following import STDIN, Follower, Position
from gradsense.data.sources.lines import MAX_LINE_BYTES
from gradsense.data.sources.logfile import HEAD_BYTES
from gradsense.errors import InputError


class Writer:
    """A program that writes numbered lines to a log, and what rotates that log.

    Every write sets the file's time by a clock of its own, a minute a write, so that the order of
    files does not hang on the resolution of the file system's clock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.target = path
        self.minute = 0
        self.number = 0
        self.written = b""

    def raw(self, data: bytes) -> None:
        with self.target.open("ab") as file:
            file.write(data)
        self.written += data
        self._tick()

    def empty(self) -> None:
        os.truncate(self.path, 0)
        self._tick()

    def _tick(self) -> None:
        self.minute += 1
        os.utime(self.target, (1e9 + 60 * self.minute,) * 2)

    def lines(self, count: int = 1) -> None:
        for _ in range(count):
            self.number += 1
            self.raw(f"{self.number:06d} {'x' * 80}\n".encode())

    def rename(self, name: str) -> Path:
        """The writer still holds the file under its new name, until ``reopen``."""
        self.target = self.path.with_name(name)
        self.path.rename(self.target)
        return self.target

    def reopen(self) -> None:
        self.target = self.path

    def pack(self, path: Path, *, keep_time: bool = True) -> Path:
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        if keep_time:
            shutil.copystat(path, packed)
        path.unlink()
        return packed


@pytest.fixture
def log(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "conn.log")


def drain(follower: Follower, limit: int = 1000, *, final: bool = False) -> bytes:
    read = b""
    while (chunk := follower.read(limit, final=final)) is not None:
        assert chunk.data.endswith(b"\n")
        read += chunk.data
    return read


def part(follower: Follower, limit: int = 1000) -> tuple[bytes, Position]:
    chunk = follower.read(limit)
    assert chunk is not None
    return chunk.data, Position.model_validate_json(chunk.position.model_dump_json())


# --- one file --------------------------------------------------------------------------------


def test_a_file_that_appears_later_and_grows(log: Writer) -> None:
    follower = Follower(log.path)
    assert follower.read() is None
    log.lines(3)
    first = follower.read()
    assert first is not None
    assert (first.data, first.begins, first.position.offset) == (log.written, True, 88 * 3)
    assert follower.read() is None
    log.lines(2)
    second = follower.read()
    assert second is not None
    assert (first.data + second.data, second.begins) == (log.written, False)


def test_half_a_line_waits_for_its_end(log: Writer) -> None:
    follower = Follower(log.path)
    log.raw(b"one\ntw")
    data, position = part(follower)
    assert (data, position.offset) == (b"one\n", 4)
    assert follower.read() is None
    log.raw(b"o")
    assert follower.read() is None
    log.raw(b"\nthree")
    assert drain(follower) == b"two\n"
    assert drain(follower, final=True) == b"three\n"
    assert follower.read(final=True) is None


def test_chunks_end_at_lines_and_restarts_go_on_there(log: Writer) -> None:
    log.lines(50)
    read, position = b"", None
    for _ in range(100):
        chunk = Follower(log.path, position).read(limit=300)
        if chunk is None:
            break
        assert len(chunk.data) <= 300
        assert chunk.begins == (position is None)
        read, position = read + chunk.data, chunk.position
    assert read == log.written


def test_a_line_without_an_end_does_not_grow_the_memory(log: Writer) -> None:
    follower = Follower(log.path)
    log.raw(b"x" * (4 * MAX_LINE_BYTES))
    assert follower.read(1 << 16) is None
    log.raw(b"x\nshort\n")
    chunk = follower.read(1 << 16)
    assert chunk is not None
    long, short, _ = chunk.data.split(b"\n")
    assert MAX_LINE_BYTES < len(long) <= MAX_LINE_BYTES + 2 + (1 << 16)
    assert short == b"short"
    assert chunk.position.offset == 4 * MAX_LINE_BYTES + 8
    log.raw(b"more\n")
    assert drain(Follower(log.path, chunk.position)) == b"more\n"


def test_beyond_four_gibibytes(log: Writer) -> None:
    log.lines(20)
    _, position = part(Follower(log.path), 1 << 16)
    far = 5 << 30
    with log.path.open("r+b") as file:  # a hole takes no room on the disk
        file.seek(far)
        file.write(b"\nend\n")
    follower = Follower(log.path, position.model_copy(update={"offset": far + 1}))
    data, position = part(follower)
    assert (data, position.offset) == (b"end\n", far + 5)


def test_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        Follower(tmp_path)


def test_an_unreadable_file_is_tried_again(log: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    log.lines(2)
    follower = Follower(log.path)

    def denied(*_: object) -> int:
        raise PermissionError

    with monkeypatch.context() as patch:  # root may read everything, so modes would not do
        patch.setattr(os, "open", denied)
        assert [follower.read() for _ in range(3)] == [None] * 3
    assert follower.counts.unreadable == 1
    assert drain(follower) == log.written
    follower.close()
    log.lines(1)
    assert drain(follower) == log.written[-88:]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    source, sink = os.pipe()
    keep = os.dup(0)
    try:
        os.dup2(source, 0)
        follower = Follower(STDIN)
        assert follower.read() is None
        os.write(sink, b"one\ntwo\nthr")
        data, _ = part(follower)
        assert data == b"one\ntwo\n"
        assert follower.read() is None
        assert not follower.ended
        os.write(sink, b"ee")
        os.close(sink)
        assert drain(follower) == b"three\n"
        assert follower.ended
        assert follower.read() is None
    finally:
        os.dup2(keep, 0)
        os.close(keep)
        os.close(source)


# --- rotation while following ------------------------------------------------------------------


def test_rename_and_create(log: Writer) -> None:
    follower = Follower(log.path)
    log.lines(3)
    read = drain(follower)
    log.lines(2)
    log.rename("conn.2026-11-22-23-00-00.log")
    log.lines(1)
    read += drain(follower)  # by the descriptor, as the name is gone
    log.lines(2)
    log.path.touch()
    read += drain(follower)
    log.lines(1)  # still into the old file, while the new one is empty
    log.raw(b"no newline")
    log.reopen()
    log.lines(4)
    chunks = []
    while (chunk := follower.read()) is not None:
        chunks.append(chunk)
    assert read + b"".join(c.data for c in chunks) == log.written.replace(b"line", b"line\n")
    assert [chunk.begins for chunk in chunks] == [False, False, True]
    assert follower.counts.to_json() == {
        "rotations": 1,
        "truncations": 0,
        "unreadable": 0,
        "damaged": 0,
        "lost": 0,
    }


def test_several_rotations_between_two_reads(log: Writer) -> None:
    follower = Follower(log.path)
    log.lines(3)
    read, _ = part(follower, 100)
    for number in (3, 2, 1):
        log.lines(2)
        log.rename(f"conn.log.{number}")
        log.reopen()
    log.lines(1)
    log.pack(log.path.with_name("conn.log.3"))
    log.pack(log.path.with_name("conn.log.2"))
    assert read + drain(follower) == log.written
    assert follower.counts.rotations == 3


def test_a_packed_copy_of_the_file_in_hand_is_not_read_again(log: Writer) -> None:
    follower = Follower(log.path)
    log.lines(3)
    read = drain(follower)
    packed = log.pack(log.rename("conn.log.1"), keep_time=False)
    assert packed.stat().st_mtime > 1e9 + 60 * 100
    log.reopen()
    log.lines(3)
    assert read + drain(follower) == log.written


def test_other_logs_of_the_folder_are_left_alone(log: Writer) -> None:
    follower = Follower(log.path)
    log.lines(1)
    read = drain(follower)
    log.rename("conn.log.1")
    log.reopen()
    for name in ("conn-summary.log", "conn_long.log", "dns.log.1", "conn.log.gpg", "econn.1.log"):
        other = Writer(log.path.with_name(name))
        other.minute = 500
        other.lines(3)
    log.lines(1)
    assert read + drain(follower) == log.written


def test_a_log_replaced_by_another(log: Writer) -> None:
    follower = Follower(log.path)
    log.lines(3)
    read = drain(follower)
    other = Writer(log.path.with_name("new"))
    other.number = 100
    other.lines(1)
    other.path.rename(log.path)
    assert read + drain(follower) == log.written + other.written
    assert follower.counts.rotations == 1


def test_emptied_under_its_reader(log: Writer) -> None:
    follower = Follower(log.path)
    log.lines(5)
    assert drain(follower) == log.written
    log.empty()
    assert follower.read() is None
    log.lines(1)
    chunk = follower.read()
    assert chunk is not None
    assert (chunk.data, chunk.begins) == (log.written[-88:], True)
    assert follower.counts.truncations == 1


def test_written_anew_and_longer(log: Writer) -> None:
    follower = Follower(log.path)
    log.lines(3)
    drain(follower)
    log.empty()
    log.lines(30)
    assert drain(follower) == log.written[88 * 3 :]
    assert follower.counts.truncations == 1


def test_copied_and_emptied_with_a_rest_unread(log: Writer) -> None:
    follower = Follower(log.path)
    log.lines(20)
    read, _ = part(follower, 500)
    shutil.copyfile(log.path, log.path.with_name("conn.log.1"))
    log.empty()
    log.lines(2)
    assert read + drain(follower) == log.written
    assert (follower.counts.truncations, follower.counts.lost) == (1, 0)


# --- rotation while nobody watched ---------------------------------------------------------------


@pytest.mark.parametrize("packed", ["none", "first", "all", "without their times"])
def test_rotations_while_down(log: Writer, packed: str) -> None:
    log.lines(20)
    read, position = part(Follower(log.path), 500)
    for hour in range(12):
        log.lines(3)
        old = log.rename(f"conn.2026-11-22-{hour:02d}-00-00.log")
        if packed == "all" or (packed == "first" and hour == 0):
            log.pack(old)
        elif packed == "without their times":
            log.minute += 1
            os.utime(log.pack(old, keep_time=False), (1e9 + 60 * log.minute,) * 2)
        log.reopen()
    log.lines(1)
    restarted = 0
    follower = Follower(log.path, position)
    while (chunk := follower.read(200)) is not None:
        read += chunk.data
        restarted += 1
        follower = Follower(log.path, chunk.position)  # a restart after every chunk
    assert read == log.written
    assert restarted > 12
    assert follower.counts.lost == 0


def test_an_archive_in_dated_folders(log: Writer, tmp_path: Path) -> None:
    log.path = log.target = tmp_path / "current" / "conn.log"
    log.path.parent.mkdir()
    archive = tmp_path / "logs"
    for day in (21, 22):
        (archive / f"2026-11-{day}").mkdir(parents=True)
    log.lines(20)
    read, position = part(Follower(log.path), 500)
    for day, hour in ((21, 23), (22, 0)):
        log.lines(2)
        old = log.rename("conn-being-moved.log")
        shutil.move(old, archive / f"2026-11-{day}" / f"conn.{hour:02d}:00:00-{hour + 1}:00:00.log")
        log.reopen()
    log.pack(archive / "2026-11-21" / "conn.23:00:00-24:00:00.log")
    log.lines(1)
    assert read + drain(Follower(log.path, position, archive=archive)) == log.written


def test_the_renamed_file_is_read_before_the_new_one_exists(log: Writer) -> None:
    log.lines(20)
    read, position = part(Follower(log.path), 500)
    log.rename("conn.log.1")
    follower = Follower(log.path, position)
    read += drain(follower)
    assert read == log.written
    log.reopen()
    log.lines(1)
    assert read + drain(follower) == log.written


def test_the_file_read_last_is_gone(log: Writer) -> None:
    log.lines(20)
    _, position = part(Follower(log.path), 500)
    log.path.unlink()
    follower = Follower(log.path, position)
    assert follower.read() is None
    assert follower.counts.lost == 0  # it may come back
    rest = len(log.written)
    log.lines(3)
    chunk = follower.read()
    assert chunk is not None
    assert (chunk.data, chunk.begins) == (log.written[rest:], True)
    # A file system may give the new file the inode of the old one.
    assert follower.counts.lost + follower.counts.truncations == 1


def test_emptied_while_down(log: Writer) -> None:
    log.lines(20)
    _, position = part(Follower(log.path), 1 << 16)
    log.empty()
    log.lines(30)
    follower = Follower(log.path, position)
    assert drain(follower) == log.written[88 * 20 :]
    assert follower.counts.truncations == 1


# --- gzip ----------------------------------------------------------------------------------------


def test_a_packed_log_is_read_whole(log: Writer) -> None:
    log.lines(200)
    log.raw(b"no newline")
    packed = log.pack(log.path)
    packed = packed.rename(packed.with_name("whatever.log"))  # the first bytes say what it is
    read, position = part(Follower(packed), 1000)
    assert position.offset == len(read)
    assert read + drain(Follower(packed, position)) == log.written + b"\n"


@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_a_damaged_packed_log_ends_where_the_damage_is(log: Writer, harm: str) -> None:
    noise = random.Random(0)
    for _ in range(3):
        log.raw(b"".join(noise.randbytes(40).hex().encode() + b"\n" for _ in range(10_000)))
    packed = log.pack(log.path)
    data = bytearray(packed.read_bytes())
    middle = len(data) // 2
    if harm == "cut":
        del data[middle:]
    else:
        data[middle : middle + 40] = bytes(255 - byte for byte in data[middle : middle + 40])
    packed.write_bytes(data)
    follower = Follower(packed)
    read = drain(follower, 1 << 16)
    assert follower.counts.damaged == 1
    assert len(read) > len(log.written) // 4
    assert follower.read() is None
    if harm == "cut":
        assert log.written.startswith(read[:-100])


# --- everything at once ----------------------------------------------------------------------


class Driver:
    """Random appends, rotations, packings, emptyings, restarts and reads of one log."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.log = Writer(folder / "conn.log")
        self.random = random.Random(seed)
        self.follower = Follower(self.log.path)
        self.position: Position | None = None
        self.read = b""
        self.half = b""
        self.rotations = 0
        self.emptied = 0

    def append(self) -> None:
        self.end_line()
        self.log.lines(self.random.randint(1, 6))

    def append_half(self) -> None:
        self.end_line()
        self.log.number += 1
        line = f"{self.log.number:06d} {'y' * 80}\n".encode()
        cut = self.random.randint(1, len(line) - 1)
        self.log.raw(line[:cut])
        self.half = line[cut:]

    def end_line(self) -> None:
        if self.half:
            self.log.raw(self.half)
            self.half = b""

    def rotate(self) -> None:
        if not self.log.path.exists():
            return
        self.log.rename(f"conn.log-{self.rotations:08d}")
        self.rotations += 1
        if self.random.random() < 0.5:
            self.read_some()
        self.append()
        self.log.reopen()

    def rotate_and_pack(self) -> None:
        if self.log.path.exists():
            self.rotate()
            self.log.pack(self.log.path.with_name(f"conn.log-{self.rotations - 1:08d}"))

    def empty(self) -> None:
        """Only when all has been read, as otherwise the unread is lost."""
        self.end_line()
        self.read_all()
        if self.read == self.log.written and self.log.path.exists():
            self.emptied += 1
            self.log.empty()
            self.read_some()

    def copy_and_empty(self) -> None:
        """Only when the log itself is being read: its copy is known by what was read of it."""
        self.end_line()
        position = self.position
        if position is None or not self.log.path.exists():
            return
        with self.log.path.open("rb") as file:
            first = file.read(HEAD_BYTES)
        if position.head.begins(first) and position.inode == self.log.path.stat().st_ino:
            shutil.copy2(self.log.path, self.log.path.with_name(f"conn.log-{self.rotations:08d}"))
            self.rotations += 1
            self.emptied += 1
            self.log.empty()

    def restart(self) -> None:
        if self.position is not None:
            self.follower.close()
            stored = self.position.model_dump_json()
            self.follower = Follower(self.log.path, Position.model_validate_json(stored))

    def read_some(self) -> None:
        chunk = self.follower.read(self.random.choice((100, 400, 4000)))
        if chunk is not None:
            self.read += chunk.data
            self.position = chunk.position

    def read_all(self) -> None:
        while (chunk := self.follower.read()) is not None:
            self.read += chunk.data
            self.position = chunk.position

    def run(self, steps: int) -> None:
        self.append()
        self.read_some()  # a follower without a position begins with the present log
        actions = [self.append] * 6 + [self.append_half] * 3 + [self.read_some] * 8
        actions += [self.rotate, self.rotate_and_pack, self.empty, self.copy_and_empty]
        actions += [self.restart] * 3
        for _ in range(steps):
            self.random.choice(actions)()
            assert self.log.written.startswith(self.read)
        self.append()
        self.read_all()


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path, seed: int) -> None:
    driver = Driver(tmp_path, seed)
    driver.run(60)
    assert driver.read == driver.log.written
    assert driver.follower.counts.lost <= driver.emptied
