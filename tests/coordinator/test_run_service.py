"""One run: what it pools, what it refuses and by which name, and that a restart changes nothing."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradsense.coordinator import snapshots
from gradsense.coordinator.journal import RunJournal
from gradsense.coordinator.run import Run
from gradsense.errors import InputError
from gradsense.federation.algorithm import get_algorithm
from gradsense.federation.contributions import Remembered
from gradsense.federation.coordinator import Coordinator
from gradsense.federation.events import Arrived, Joined, Ticked
from gradsense.learning.statistics import HEAD_BIAS, HEAD_WEIGHT, STATISTICS
from gradsense.storage.sqlite import StorageFull
from gradsense.transport import payloads
from gradsense.transport.chunks import Quota
from gradsense.transport.messages import Message, messages, read, sign, unsealed
from gradsense.transport.protocol import describe
from tests.support.toy_fleet import (
    RUN,
    acks,
    key_of,
    missing,
    models,
    new_run,
    open_run,
    resume_request,
    same,
    seal_key,
    seed_of,
    sent,
    signed_update,
    signing_key,
    status,
)
from tests.support.toy_fleet import (
    job as toy_job,
)
from tests.support.toys import factor_of, tensor, update

#: Every update is aggregated by itself.
ALONE = "fedbuff:updates=1"
ONE, TWO = tensor(1.0, 2.0), tensor(4.0, 6.0)


def speak(run: Run, *arrivals: Message, now: float = 0.0, wall: float = 0.0) -> list[Message]:
    return run.take(arrivals, now=now, wall=wall)


def begin(folder: Path, *devices: str, **fields: Any) -> tuple[Run, str]:
    """A run that these devices have joined, and the hash of its version 0."""
    run = new_run(folder, **fields)
    speak(run, *(status(device) for device in devices))
    return run, run.status().hash


def reopened(run: Run, folder: Path, **options: Any) -> Run:
    run.close()
    return open_run(folder, **options)


# What it is for ---------------------------------------------------------------------------------


def test_fedavg_by_hand_through_signed_messages(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b")
    first = speak(run, *sent(update("a", samples=1, delta={"w": ONE}), base), now=1.0)
    assert acks(first) == {("a", 1): ""}
    assert models(first) == []
    assert run.status().pool.needed == 2
    second = speak(run, *sent(update("b", samples=2, delta={"w": TWO}), base), now=2.0)
    assert acks(second) == {("b", 1): ""}
    (model,) = models(second)
    np.testing.assert_allclose(model.tensors["w"], [(1 + 2 * 4) / 3, (2 + 2 * 6) / 3], rtol=1e-6)
    told = run.status()
    assert (told.version, told.hash) == (1, payloads.model_hash(model.tensors))
    assert (told.updates, told.pooled, told.aggregations) == (2, 0, 1)
    assert told.last is not None
    assert (told.last.contributors, told.last.at) == (("a", "b"), 2.0)
    json.dumps(asdict(told))


def test_a_restart_finds_everything_as_it_was(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b", "c")
    speak(run, *sent(update("a"), base, raw=b"no zstd frame"), now=3.0)
    speak(run, *sent(update("b", delta={"w": ONE}), base), now=4.0)
    speak(run, status("c", online=False), now=5.0)
    before = run.status()
    run = reopened(run, tmp_path)
    told = run.status()
    assert replace(told, journal_bytes=0) == replace(before, journal_bytes=0)
    assert run.now == 5.0
    assert told.refused == {"bad-body": 1}
    assert told.devices["c"].online is False


def test_announce_is_the_same_model_after_a_restart(tmp_path: Path) -> None:
    run, _ = begin(tmp_path, "a")
    (before,) = run.announce()
    (after,) = reopened(run, tmp_path).announce()
    assert after.payload == before.payload
    epochs = [dict(one.pairs)["gs-epoch"] for one in (before, after)]
    assert epochs == ["1", "2"], "all that differs, but for the signature"


def test_an_epoch_is_later_than_all_before_and_not_before_the_wall_clock(tmp_path: Path) -> None:
    begin(tmp_path, "a")[0].close()
    epochs = []
    for wall in (50.5, 50.9, 10.0, 90.0):
        run = open_run(tmp_path, wall=wall)
        epochs.append(int(dict(run.announce()[0].pairs)["gs-epoch"]))
        run.close()
    assert epochs == [50, 51, 52, 90]


def test_surplus_chunks_of_a_larger_model_are_cleared(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    run = new_run(tmp_path, {"w": noise})
    large = [one.topic for one in speak(run, status("a"))]
    assert len(large) == 3
    # With w = 0 all of the next model compresses into one chunk.
    (chunks,) = [sent(update("a", delta={"w": -noise}), run.status().hash)]
    heard = speak(run, *chunks)
    published = [one for one in heard if "/down/" in one.topic]
    assert [one.topic for one in published] == [large[1], large[2], large[0]]
    assert [one.retain for one in published] == [True] * 3
    assert [bool(one.payload) for one in published] == [False, False, True]
    assert [one.topic for one in reopened(run, tmp_path).announce()] == [*large[1:], large[0]]


def test_bodies_go_once_they_are_aggregated(tmp_path: Path) -> None:
    for keep in (False, True):
        folder = tmp_path / str(keep)
        run, base = begin(folder, "a", "b", keep_updates=keep)
        speak(run, *sent(update("a", delta={"w": ONE}), base))
        speak(run, *sent(update("b", delta={"w": ONE}), base))
        run.close()
        ledger = RunJournal(folder)
        bodies = [event.body for event in ledger.events(0) if event.kind == "update"]
        assert [one is not None for one in bodies] == [keep, keep]
        ledger.close()


def test_sealed_bodies_both_ways(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", sealed=True)
    heard = speak(run, *sent(update("a", delta={"w": ONE}), base, sealed=True))
    assert acks(heard) == {("a", 1): ""}
    got = read(heard[-1], lambda topic: signing_key("coordinator").public_key())
    assert got.properties.header.sealed
    assert got.chunk is not None
    clear = unsealed(got.chunk.piece, got.properties, seal_key("fleet"))
    assert payloads.open_model(clear, got.properties.header, 1 << 30).tensors["w"].tolist() == [
        1.0,
        2.0,
    ]


# Rules of the run -------------------------------------------------------------------------------


def test_version_0_waits_for_enough_devices(tmp_path: Path) -> None:
    run = new_run(tmp_path, min_devices=2)
    assert speak(run, status("a"), status("a"), status("a", online=False)) == []
    assert run.announce() == []
    assert not run.status().started
    early = speak(run, *sent(update("a"), run.status().hash))
    assert acks(early) == {("a", 1): "unknown-base"}
    run = reopened(run, tmp_path)
    assert [model.version for model in models(speak(run, status("b")))] == [0]
    assert run.status().started
    assert len(reopened(run, tmp_path).announce()) == 1


def test_a_run_ends_after_its_rounds(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", rounds=1)
    heard = speak(run, *sent(update("a", delta={"w": ONE}), base))
    assert models(heard)[0].version == 1
    late = update("a", sequence=2, base_version=1, delta={"w": ONE})
    assert acks(speak(run, *sent(late, run.status().hash))) == {("a", 2): "run-finished"}
    run = reopened(run, tmp_path)
    assert run.status().finished
    assert run.announce()


def test_a_device_that_leaves_is_not_waited_for(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b")
    speak(run, *sent(update("a", delta={"w": ONE}), base))
    assert models(speak(run, status("b", online=False)))[0].version == 1


def test_a_refused_device_is_not_waited_for(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b")
    speak(run, *sent(update("a", delta={"w": ONE}), base))
    heard = speak(run, *sent(update("b", delta={"w": tensor(np.nan, 0.0)}), base))
    assert acks(heard) == {("b", 1): "not-finite"}
    assert models(heard)[0].version == 1


def test_an_update_before_its_sign_of_life_counts(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a")
    heard = speak(run, *sent(update("late", delta={"w": ONE}), base))
    assert acks(heard) == {("late", 1): ""}
    assert run.status().online == 2


def test_the_deadline_closes_a_pool_also_after_restarts(tmp_path: Path) -> None:
    slow = "gsfs-tune:share=1.0:deadline_s=30"
    run, base = begin(tmp_path, "a", "b", algorithm=slow)
    assert run.deadline() is None
    for version in (1, 2):
        now = 100.0 * version
        mine = update("a", sequence=version, base_version=version - 1, delta={"w": ONE})
        assert models(speak(run, *sent(mine, base), now=now)) == []
        run = reopened(run, tmp_path)
        assert run.deadline() == now + 30.0
        assert run.tick(now + 29.9) == []
        run = reopened(run, tmp_path)
        (model,) = models(run.tick(now + 30.0))
        assert model.version == version
        assert run.deadline() is None
        base = run.status().hash
    assert run.now == 230.0


def test_time_never_falls(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b")
    speak(run, *sent(update("a", delta={"w": ONE}), base), now=50.0)
    speak(run, status("b", online=False), now=10.0)
    assert run.status().last.at == 50.0  # type: ignore[union-attr]


def test_the_model_that_a_device_holds(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b")
    assert run.status().devices["a"].held is None
    speak(run, status("a", version=0, held=base), status("b", version=0, held="f" * 64))
    told = run.status()
    assert (told.devices["a"].held, told.devices["b"].held, told.current) == (0, None, 1)


# Again ------------------------------------------------------------------------------------------


def test_a_duplicate_is_acknowledged_again_and_counted_once(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b")
    mine = sent(update("a", delta={"w": ONE}), base)
    assert acks(speak(run, *mine, *mine)) == {("a", 1): ""}
    run = reopened(run, tmp_path)
    assert acks(speak(run, *mine)) == {("a", 1): ""}
    told = run.status()
    assert (told.updates, told.duplicates, told.pooled, told.refused) == (1, 2, 1, {})


def test_a_refusal_is_said_again(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b")
    bad = sent(update("a", samples=0, delta={"w": ONE}), base)
    assert acks(speak(run, *bad)) == {("a", 1): "bad-sample-count"}
    run = reopened(run, tmp_path)
    assert acks(speak(run, *bad)) == {("a", 1): "bad-sample-count"}
    assert run.status().refused == {"bad-sample-count": 1}


def test_another_body_under_a_used_number_is_a_replay(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b")
    speak(run, *sent(update("a", delta={"w": ONE}), base))
    assert acks(speak(run, *sent(update("a", delta={"w": TWO}), base))) == {("a", 1): "replay"}
    assert run.status().refused == {"replay": 1}


def test_what_a_restored_coordinator_missed_may_come_behind_what_is_newer(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b")
    speak(run, *sent(update("b", sequence=5, delta={"w": ONE}), base))
    run = reopened(run, tmp_path)
    late = sent(update("b", sequence=4, delta={"w": ONE}), base)
    assert acks(speak(run, *late)) == {("b", 4): ""}
    run = reopened(run, tmp_path)
    assert acks(speak(run, *late)) == {("b", 4): ""}
    told = run.status()
    assert (told.updates, told.duplicates, told.pool.invited) == (2, 1, 2)


def test_an_older_update_than_those_that_are_remembered_is_a_replay(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b")
    speak(run, *sent(update("b", sequence=500, delta={"w": ONE}), base))
    heard = speak(run, *sent(update("b", sequence=371, delta={"w": ONE}), base))
    assert acks(heard) == {("b", 371): "replay"}, "500 - 128 is the last that is"
    assert run.status().pool.invited == 2


# Chunks -----------------------------------------------------------------------------------------


def long_update(device: str = "a") -> Any:
    """An update of three chunks."""
    noise = np.random.default_rng(1).standard_normal(190_000).astype(np.float32)
    return update(device, delta={"w": noise})


def long_run(folder: Path, **options: Any) -> tuple[Run, str]:
    run = new_run(folder, {"w": np.zeros(190_000, dtype=np.float32)}, options=options)
    speak(run, status("a"), status("b"))
    return run, run.status().hash


def test_a_slow_upload_goes_on_where_it_was_after_a_restart(tmp_path: Path) -> None:
    run, base = long_run(tmp_path)
    signed = signed_update(long_update(), base)
    chunks = messages(signed)
    assert len(chunks) == 3
    assert missing(speak(run, resume_request(signed))) == (0, 1, 2)
    speak(run, chunks[2], chunks[0])
    assert run.status().waiting_bytes > 400_000
    run = reopened(run, tmp_path)
    assert missing(speak(run, resume_request(signed))) == (1,)
    assert acks(speak(run, chunks[1])) == {("a", 1): ""}
    assert run.status().waiting_bytes == 0
    run = reopened(run, tmp_path)
    assert acks(speak(run, resume_request(signed))) == {("a", 1): ""}
    assert acks(speak(run, *chunks)) == {("a", 1): ""}
    assert run.status().duplicates == 1


def test_an_upload_without_an_end_is_given_up(tmp_path: Path) -> None:
    run, base = long_run(tmp_path, quota=Quota(age_s=10.0))
    signed = signed_update(long_update(), base)
    speak(run, messages(signed)[0], now=1.0)
    run.tick(12.0)
    assert run.status().given_up == {"expired": 1}
    run = reopened(run, tmp_path, quota=Quota(age_s=10.0))
    assert (run.status().given_up, run.status().waiting_bytes) == ({"expired": 1}, 0)
    assert missing(speak(run, resume_request(signed))) == (0, 1, 2)


def test_a_full_assembler_is_counted_and_leaves_the_update_open(tmp_path: Path) -> None:
    run, base = long_run(tmp_path, quota=Quota(total_bytes=300_000))
    chunks = sent(long_update(), base)
    assert speak(run, *chunks) == []
    assert run.status().devices["a"].refused == {"assembler-full": 2}
    run = reopened(run, tmp_path)
    assert acks(speak(run, *chunks)) == {("a", 1): ""}


def test_half_uploads_of_nine_devices_stop_nobody(tmp_path: Path) -> None:
    quota = Quota(device_bytes=3_000_000, total_bytes=5_000_000)
    nine = [f"d{number}" for number in range(9)]
    run, base = long_run(tmp_path, quota=quota)
    for device in nine:
        speak(run, *sent(long_update(device), base)[:2])
    for sequence in (2, 3):
        for device in nine:
            speak(run, *sent(replace(long_update(device), sequence=sequence), base)[:2])
    assert acks(speak(run, *sent(long_update("honest"), base))) == {("honest", 1): ""}
    before = run.status()
    assert before.given_up["evicted"] > 0
    assert "assembler-full" not in before.devices["honest"].refused
    assert 0 < before.waiting_bytes <= quota.total_bytes
    run = reopened(run, tmp_path, quota=quota)
    assert replace(run.status(), journal_bytes=0) == replace(before, journal_bytes=0)


def test_more_than_a_device_may_have_is_refused_for_good(tmp_path: Path) -> None:
    run, base = long_run(tmp_path, quota=Quota(device_bytes=300_000))
    assert acks(speak(run, *sent(long_update(), base))) == {("a", 1): "device-quota"}


def test_an_upload_that_the_end_of_the_run_overtakes_is_dropped(tmp_path: Path) -> None:
    run = new_run(tmp_path, {"w": np.zeros(190_000, np.float32)}, rounds=1, algorithm=ALONE)
    speak(run, status("a"), status("b"))
    base = run.status().hash
    chunks = sent(long_update("b"), base)
    speak(run, chunks[0])
    speak(run, *sent(long_update("a"), base))
    assert run.status().waiting_bytes > 0
    assert acks(speak(run, chunks[1])) == {("b", 1): "run-finished"}
    assert run.status().waiting_bytes == 0
    assert reopened(run, tmp_path).status().waiting_bytes == 0


# Refusals ---------------------------------------------------------------------------------------


def refusal_of(run: Run, arrivals: list[Message]) -> str:
    """The name in the acknowledgement of a's first update."""
    return acks(speak(run, *arrivals))["a", 1]


BAD_TENSORS = {
    "wrong-shape": {"w": tensor(1.0, 2.0, 3.0)},
    "wrong-dtype": {"w": np.ones(2, dtype=np.float16)},
    "not-finite": {"w": tensor(np.inf, 0.0)},
    "norm-too-large": {"w": tensor(1001.0, 0.0)},
    "unknown-tensor": {"v": ONE},
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_what_the_rules_refuse(tmp_path: Path, name: str) -> None:
    run, base = begin(tmp_path, "a", "b")
    assert refusal_of(run, sent(update("a", delta=BAD_TENSORS[name]), base)) == name
    told = reopened(run, tmp_path).status()
    assert told.refused == told.devices["a"].refused == {name: 1}
    assert (told.updates, told.devices["a"].sequence) == (0, 1)


def test_bodies_that_are_none(tmp_path: Path) -> None:
    bomb = payloads.pack_update(update("a", packed=bytes(1 << 20)))
    good = payloads.pack_update(update("a", delta={"w": ONE}))
    cases = {
        "too-large": [bomb, np.random.default_rng(0).bytes(5000)],
        "wrong-codec": [payloads.pack_update(update("a", codec="topk"))],
        "bad-body": [b"x", good[:-1], good + b"x", payloads.compress(b"GSU1")],
    }
    for name, bodies in cases.items():
        for number, raw in enumerate(bodies):
            folder = tmp_path / f"{name}{number}"
            run = new_run(folder)
            speak(run, status("a"), status("b"))
            arrivals = sent(update("a"), run.status().hash, raw=raw)
            assert refusal_of(run, arrivals) == name
            assert run.status().refused == {name: 1}
            assert run.status().pool.invited == 1
            run.close()


@pytest.mark.parametrize(
    "place",
    [
        "gradsense.transport.chunks.Assembler.add",
        "gradsense.transport.messages.unsealed",
        "gradsense.federation.transforms.transform.Plain.values",
        "gradsense.federation.transforms.transform._entries",
    ],
)
def test_no_memory_for_an_update_is_its_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*arguments: object) -> None:
        raise MemoryError

    run, base = begin(tmp_path, "a", "b")
    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        assert refusal_of(run, sent(update("a", delta={"w": ONE}), base)) == "out-of-memory"
    told = reopened(run, tmp_path).status()
    assert (told.refused, told.updates) == ({"out-of-memory": 1}, 0)


def test_bytes_that_were_altered_on_the_way(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b")
    (whole,) = sent(update("a", delta={"w": ONE}), base)
    flipped = bytearray(whole.payload)
    flipped[-1] ^= 1
    assert speak(run, replace(whole, payload=whole.payload[:-1])) == []  # truncated
    assert run.status().refused == {"bad-chunk": 1}
    assert speak(run, replace(whole, payload=bytes(flipped))) == []  # the sender may be honest
    assert run.status().refused == {"bad-chunk": 1, "wrong-hash": 1}
    assert refusal_of(run, [whole]) == ""


def test_sealed_for_somebody_else(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b")
    header = replace(signed_update(update("a"), base).properties.header, sealed=True)
    noise = seed_of("noise") * 8
    signed = sign(describe(header, noise), signing_key("a"))
    (chunk,) = messages(replace(signed_update(update("a"), base), properties=signed, body=noise))
    assert refusal_of(run, [chunk]) == "cannot-open"


def test_a_base_of_another_hash(tmp_path: Path) -> None:
    run, _ = begin(tmp_path, "a", "b")
    mine = update("a", delta={"w": ONE})
    assert refusal_of(run, sent(mine, "f" * 64)) == "unknown-base"


def test_who_may_not_speak_is_counted_and_not_answered(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a")
    mine = update("a", delta={"w": ONE})
    (good,) = sent(mine, base)
    unsigned = replace(good, pairs=(*good.pairs[:-1], ("gs-signature", "")))
    forged = sent(mine, base, key=signing_key("b"))
    as_b = replace(good, topic=good.topic.replace("/a/", "/b/"))
    elsewhere = replace(good, topic=good.topic.replace(RUN, "other"))
    stranger = sent(update("stranger", delta={"w": ONE}), base)
    downwards = run.announce()[0]
    assert speak(run, unsigned, *forged, as_b, elsewhere, *stranger, downwards) == []
    assert speak(run, Message("x"), replace(good, pairs=()), *stranger) == []
    assert speak(run, good, wall=1000.0) == []  # its certificate has ended
    told = reopened(run, tmp_path).status()
    assert told.refused == {**{"bad-signature": 6, "bad-topic": 3, "bad-properties": 1}}
    assert told.devices["a"].refused == {
        **{"bad-signature": 3, "bad-properties": 1, "bad-topic": 1}
    }
    assert told.strangers == {"bad-signature": 3, "bad-topic": 2}
    assert (told.updates, told.online) == (0, 0)


def test_a_revoked_device_is_not_waited_for(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a")
    revoked: set[str] = set()
    run = reopened(
        run, tmp_path, keys=lambda device, wall: key_of(device, 1e4 * (device in revoked))
    )
    speak(run, status("b"), *sent(update("a", delta={"w": ONE}), base))
    assert run.status().pool.needed == 2
    revoked.add("b")
    (model,) = models(speak(run, status("b", online=False)))
    assert model.version == 1
    assert run.status().devices["b"].refused == {"bad-signature": 1}


# No room ----------------------------------------------------------------------------------------


def test_a_full_disk_takes_nothing_in_and_passes(tmp_path: Path) -> None:
    run, base = begin(tmp_path, "a", "b")
    speak(run, *sent(update("a", delta={"w": ONE}), base))
    before = run.status()
    pages = run._journal._db.connection.execute("PRAGMA page_count").fetchone()[0]
    run._journal._db.connection.execute(f"PRAGMA max_page_count={pages}")
    crowd = [status(f"device-{number:064d}"[:60] + str(number)) for number in range(300)]
    other = sent(update("b", delta={"w": TWO}), base)
    with pytest.raises(StorageFull):
        speak(run, *crowd, *other)
    assert replace(run.status(), journal_bytes=0) == replace(before, journal_bytes=0)
    run._journal._db.connection.execute("PRAGMA max_page_count=1000000")
    assert acks(speak(run, *other)) == {("b", 1): ""}
    assert run.status().version == 1


def test_no_room_for_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, base = begin(tmp_path, "a")
    mine = sent(update("a", delta={"w": ONE}), base)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gradsense.storage.files.os.fsync", full)
        with pytest.raises(StorageFull, match="No space left"):
            speak(run, *mine)
    assert (run.status().version, run.status().updates) == (0, 0)
    assert models(speak(run, *mine))[0].version == 1


# The journal is the state -----------------------------------------------------------------------


def pure(algorithm: str, tensors: Any, devices: list[str]) -> Coordinator:
    coordinator = Coordinator(
        tensors,
        get_algorithm(algorithm),
        seed=0,
        bounds=toy_job().bounds,
        contributions=Remembered(),
    )
    for device in devices:
        coordinator.handle(Joined(device))
    return coordinator


#: (who speaks, seconds since the last one, whether a bad update, restart behind it)
TURNS = st.lists(
    st.tuples(st.sampled_from("abc"), st.floats(0.1, 3.0), st.booleans(), st.booleans()),
    min_size=1,
    max_size=12,
)


@given(turns=TURNS, rows=st.integers(1, 3), batch=st.integers(1, 4), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_statistics_through_the_journal_are_those_of_a_pure_coordinator(
    turns: list[tuple[str, float, bool, bool]], rows: int, batch: int, seed: int
) -> None:
    """Bit for bit, S in float64 too, whatever the order, the batches and the restarts."""
    rng = np.random.default_rng(seed)
    start = {HEAD_WEIGHT: np.zeros((2, 3), np.float32), HEAD_BIAS: np.zeros(2, np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        # All three must speak or be excused, so that pools are restored half full.
        algorithm = "gsfs:share=1.0"
        run = new_run(place, start, algorithm=algorithm)
        speak(run, *(status(device) for device in "abc"))
        base, other = run.status().hash, pure(algorithm, start, ["a", "b", "c"])
        sequences, now, waiting = dict.fromkeys("abc", 0), 0.0, []
        for turn, (device, pause, bad, restart) in enumerate(turns):
            sequences[device] += 1
            factor = factor_of(int(rng.integers(1 << 31)), rows, features=3)
            said = update(device, sequence=sequences[device], samples=0 if bad else 1000)
            signed = signed_update(replace(said, delta={STATISTICS: factor}, codec="uniform"), base)
            waiting += messages(signed)
            if len(waiting) < batch and turn < len(turns) - 1:
                continue
            now += pause
            run.tick(now)
            other.handle(Ticked(now))
            speak(run, *waiting, now=now)
            for message in waiting:
                feed(other, message, now)
            waiting = []
            if restart:
                run = reopened(run, place)
            assert same_state(run, other)
        run.close()


def feed(coordinator: Coordinator, message: Message, now: float) -> None:
    got = read(message, lambda topic: signing_key(topic.device).public_key())
    assert got.chunk is not None
    codec = coordinator.algorithm.codec
    said = payloads.open_update(
        got.chunk.piece, got.properties.header, codec, coordinator.shape_bounds
    )
    coordinator.handle(Arrived(said, now))


def same_state(run: Run, other: Coordinator) -> bool:
    (values, groups), (wanted, tensors) = (
        run._remember().coordinator.snapshot(),
        other.snapshot(),
    )
    return (
        values == wanted
        and groups.keys() == tensors.keys()
        and all(same(dict(groups[name]), dict(tensors[name])) for name in groups)
    )


@pytest.mark.parametrize("algorithm", ["scaffold", "fedadam", "fedbuff:updates=3", "fedavgm"])
def test_other_strategies_through_the_journal(tmp_path: Path, algorithm: str) -> None:
    rng = np.random.default_rng(0)
    run = new_run(tmp_path, {"w": tensor(0.0, 0.0)}, algorithm=algorithm)
    speak(run, *(status(device) for device in "abc"))
    other = pure(algorithm, {"w": tensor(0.0, 0.0)}, ["a", "b", "c"])
    for sequence in range(1, 5):
        told = run.status()
        for device in "cab":
            names = run._remember().coordinator.model.tensors
            delta = {name: rng.standard_normal(2).astype(np.float32) for name in names}
            mine = update(device, sequence=sequence, base_version=told.version, delta=delta)
            arrivals = sent(mine, told.hash)
            speak(run, *arrivals, now=float(sequence))
            feed(other, arrivals[0], float(sequence))
            run = reopened(run, tmp_path)
            assert same_state(run, other)
    assert run.status().version == 4


def test_invited_devices_are_drawn_alike(tmp_path: Path) -> None:
    run = new_run(tmp_path, participation=0.5)
    heard = speak(run, *(status(device) for device in "abcd"))
    # Version 0 goes out with the first device, which alone can be drawn.
    assert models(heard)[0].participants == {"a"}
    said = update("b", delta={"w": ONE})
    assert acks(speak(run, *sent(said, run.status().hash))) == {("b", 1): "not-invited"}
    (model,) = models(speak(run, *sent(update("a", delta={"w": ONE}), run.status().hash)))
    assert model.participants is not None
    assert len(model.participants) == 2
    run = reopened(run, tmp_path)
    assert models(run.announce())[0].participants == model.participants


# Files ------------------------------------------------------------------------------------------


def rounds(run: Run, count: int) -> None:
    for _ in range(count):
        told = run.status()
        number = told.version + 1
        mine = update("a", sequence=number, base_version=told.version, delta={"w": ONE})
        assert acks(speak(run, *sent(mine, told.hash))) == {("a", number): ""}


def test_old_snapshots_go_and_the_hashes_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "KEPT_MODELS", 5)
    run, _ = begin(tmp_path, "a", algorithm=ALONE)
    first = run.status().hash
    rounds(run, 8)
    names = {file.name for file in (tmp_path / "models").iterdir()}
    assert names == {f"version-{number}.safetensors" for number in (0, 4, 5, 6, 7, 8)}
    old = update("a", sequence=9, base_version=0, delta={"w": ONE})
    assert acks(speak(run, *sent(old, first))) == {("a", 9): ""}


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    run, _ = begin(tmp_path, "a")
    rounds(run, 1)
    folder = tmp_path / "models"
    for name in ("version-2.safetensors", ".version-2.safetensors.new"):
        (folder / name).write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    reopened(run, tmp_path)
    names = {file.name for file in folder.iterdir()}
    assert names == {"version-0.safetensors", "version-1.safetensors", "notes.txt"}


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    run, _ = begin(tmp_path, "a")
    rounds(run, 1)
    run.close()
    file = tmp_path / "models" / "version-1.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"version-1\.safetensors.*damaged"):
        open_run(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match=r"version-1\.safetensors.*cannot be read"):
        open_run(tmp_path)


def test_snapshots_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "KEPT_BYTES", 1)
    run, _ = begin(tmp_path, "a", algorithm=ALONE)
    rounds(run, 4)
    names = {file.name for file in (tmp_path / "models").iterdir()}
    assert names == {f"version-{number}.safetensors" for number in (0, 3, 4)}


def test_a_snapshot_of_a_sum_is_its_model_alone(tmp_path: Path) -> None:
    start = {HEAD_WEIGHT: np.zeros((2, 3), np.float32), HEAD_BIAS: np.zeros(2, np.float32)}
    new_run(tmp_path, start, algorithm="gsfs").close()
    ledger = RunJournal(tmp_path)
    newest = ledger.newest()
    groups = ledger.snapshots.load(newest.file or "", newest.file_sha256 or "")
    assert groups.keys() == {"model", "server"}
    assert not groups["server"]
    ledger.close()


def test_there_is_one_run_and_one_coordinator(tmp_path: Path) -> None:
    run, _ = begin(tmp_path, "a")
    with pytest.raises(InputError, match="another coordinator"):
        open_run(tmp_path)
    run.close()
    with pytest.raises(InputError, match="the run exists"):
        new_run(tmp_path)
    with pytest.raises(InputError, match="there is no run"):
        open_run(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
