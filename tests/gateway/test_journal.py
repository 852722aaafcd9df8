"""The gateway's memory: all of a batch or nothing, queues with bounds, feedback."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path

import pytest

from gradsense.errors import InputError
from gradsense.gateway import store as module
from gradsense.gateway.store import FILE, Feedback, GatewayStore, StoreBatch
from gradsense.storage.sqlite import StorageFull
from tests.support.sample_alarms import alarm, grouper
from tests.support.sample_alerts import sample


@pytest.fixture
def journal(tmp_path: Path) -> GatewayStore:
    return GatewayStore(tmp_path / "state")


def alert(number: int, **changes: object):
    return sample(id=f"{number:016x}", **changes)


def test_what_was_committed_is_there_for_the_next(tmp_path: Path) -> None:
    first = GatewayStore(tmp_path)
    group = grouper()
    messages = group.add([alarm(0), alarm(1, line=2)])
    first.commit(
        StoreBatch(
            places={"a": {"offset": 7}},
            counts={"flows": 2},
            messages=messages,
            groups=group.changed(),
            blobs={("baseline", "10.0.0.1"): b"\0\1"},
        )
    )
    first.commit(StoreBatch(places={"a": {"offset": 9}}, counts={"flows": 1}))
    first.close()
    again = GatewayStore(tmp_path)
    assert again.places() == {"a": {"offset": 9}}
    assert again.counters() == {"flows": 3}
    assert again.blobs("baseline") == {"10.0.0.1": b"\0\1"}
    assert [one.flows for one in again.open_groups()] == [2]
    assert again.open_alerts() == messages
    again.commit(StoreBatch(blobs={("baseline", "10.0.0.1"): None}))
    assert again.blobs("baseline") == {}


def test_a_batch_that_fails_leaves_nothing(journal: GatewayStore) -> None:
    journal.register(["s"])
    # SQLite's own way to a full disk.
    pages = journal._db.connection.execute("PRAGMA page_count").fetchone()[0]
    journal._db.connection.execute(f"PRAGMA max_page_count={pages + 2}")
    big = StoreBatch(places={"a": 1}, counts={"flows": 1}, messages=[alert(n) for n in range(200)])
    with pytest.raises(StorageFull, match="full"):
        journal.commit(big)
    assert (journal.places(), journal.counters(), journal.waiting("s", 10)) == ({}, {}, [])
    journal._db.connection.execute("PRAGMA max_page_count=1000000")
    journal.commit(big)
    assert len(journal.waiting("s", 1000)) == 200


def test_two_watches_do_not_share_a_state(tmp_path: Path) -> None:
    first = GatewayStore(tmp_path)
    with pytest.raises(InputError, match="another gradsense watch"):
        GatewayStore(tmp_path)
    GatewayStore(tmp_path, exclusive=False).close()  # feedback comes while a watch runs
    first.close()
    GatewayStore(tmp_path).close()


def test_a_file_that_is_no_journal_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"something else, and long enough to look like a page" * 100)
    with pytest.raises(InputError, match="no journal"):
        GatewayStore(tmp_path)
    assert (tmp_path / FILE).read_bytes().startswith(b"something else")


def test_a_journal_of_a_later_version_is_refused(tmp_path: Path) -> None:
    GatewayStore(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(InputError, match="version 99"):
        GatewayStore(tmp_path)


def test_every_sink_has_its_own_place_in_the_queue(journal: GatewayStore) -> None:
    journal.register(["fast", "slow"])
    journal.commit(StoreBatch(messages=[alert(n) for n in range(5)]))
    rows = journal.waiting("fast", 3)
    assert [one.id for _, one in rows] == [alert(n).id for n in range(3)]
    journal.delivered("fast", rows[-1][0], count=2, refused=1)
    assert [one.id for _, one in journal.waiting("fast", 9)] == [alert(3).id, alert(4).id]
    assert len(journal.waiting("slow", 9)) == 5
    assert {name: vars(b) for name, b in journal.backlogs().items()} == {
        "fast": {"waiting": 2, "delivered": 2, "dropped": 1},
        "slow": {"waiting": 5, "delivered": 0, "dropped": 0},
    }
    # What all have got is gone from the disk.
    journal.delivered("slow", rows[-1][0], count=3)
    assert journal._db.all("SELECT count(*) FROM messages") == [(2,)]


def test_a_new_sink_gets_what_is_still_to_come(journal: GatewayStore) -> None:
    journal.register(["a"])
    journal.commit(StoreBatch(messages=[alert(1)]))
    journal.register(["a", "b"])
    journal.commit(StoreBatch(messages=[alert(2)]))
    assert [len(journal.waiting(name, 9)) for name in "ab"] == [2, 1]
    journal.register(["b"])
    assert list(journal.backlogs()) == ["b"]


def test_without_sinks_no_message_is_kept(journal: GatewayStore) -> None:
    journal.register([])
    journal.commit(StoreBatch(messages=[alert(1)]))
    assert journal._db.all("SELECT count(*) FROM messages") == [(0,)]


def test_a_queue_over_its_bound_drops_the_oldest_and_counts(journal: GatewayStore) -> None:
    journal.register(["s"])
    messages = [alert(n) for n in range(10)]
    journal.commit(StoreBatch(messages=messages))
    size = len(messages[0].model_dump_json())
    assert journal.trim("s", 10 * size) == 0
    assert journal.trim("s", 4 * size) == 6
    assert [one.id for _, one in journal.waiting("s", 9)] == [one.id for one in messages[6:]]
    assert journal.backlogs()["s"].dropped == 6


def test_feedback_labels_the_prompts_of_an_alert(journal: GatewayStore) -> None:
    group = grouper()
    messages = group.add([alarm(i, prompt=bytes([0, i % 2])) for i in range(5)])
    journal.commit(StoreBatch(messages=messages, groups=group.changed()))
    found = journal.alert(messages[0].id[:6])
    assert journal.record_feedback(found, "Benign", 5.0) == 2
    assert journal.record_feedback(found, "Okiru", 6.0) == 2
    word = Feedback(found.id, "Okiru", found.device, 6.0)
    assert journal.feedback() == [word]
    assert journal.examples() == [(word, b"\0\0", 3), (word, b"\0\1", 2)]
    assert journal.silenced() == frozenset()
    journal.record_feedback(found, "Benign", 7.0)
    assert journal.silenced() == {(found.device, b"\0\0"), (found.device, b"\0\1")}
    with pytest.raises(InputError, match="no such alert"):
        journal.alert("zz")


def test_an_alert_of_one_batch_keeps_its_prompts(journal: GatewayStore) -> None:
    group = grouper()
    messages = group.add([alarm(0, prompt=b"\0\7")]) + group.close_all()
    journal.commit(StoreBatch(messages=messages, groups=group.changed()))
    journal.record_feedback(journal.alert(messages[0].id), "Benign", 1.0)
    assert [prompt for _, prompt, _ in journal.examples()] == [b"\0\7"]
    assert journal.open_groups() == []


def test_an_ambiguous_id_is_not_guessed(journal: GatewayStore) -> None:
    journal.commit(StoreBatch(messages=[alert(1), alert(2)]))
    with pytest.raises(InputError, match="more than one"):
        journal.alert("0000")


def test_old_closed_alerts_go_but_feedback_stays(
    journal: GatewayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_ALERTS", 3)
    group = grouper()
    ends = partial(group.tick, 1e9)
    for number in range(6):
        messages = group.add([alarm(number, device=f"10.0.0.{number}", line=number)]) + ends()
        journal.commit(StoreBatch(messages=messages, groups=group.changed()))
        if number == 0:
            journal.record_feedback(journal.alert(messages[0].id), "Benign", 1.0)
    assert [one.device for one in journal.alerts(9)] == ["10.0.0.5", "10.0.0.4", "10.0.0.3"]
    assert [word.device for word, _, _ in journal.examples()] == ["10.0.0.0"]
