"""Devices that sign as real ones do, in one process, and a coordinator's folder to talk to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from gradsense.coordinator.inbox import KeyOf
from gradsense.coordinator.run import Run
from gradsense.federation.update import GlobalModel, Update
from gradsense.fleet.jobs import Job
from gradsense.transport import payloads
from gradsense.transport.chunks import Resume, ResumeRequest
from gradsense.transport.identity import Identity
from gradsense.transport.messages import Message, SignedMessage, messages, read, sign_message
from gradsense.transport.protocol import COORDINATOR, MessageHeader
from tests.support.toys import tensor

RUN = "porch"
NO_HASH = 64 * "0"


def seed_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def signing_key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seed_of(name))


def seal_key(name: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(seed_of(name))


def identity() -> Identity:
    nowhere = Path("nowhere.pem")
    return Identity(
        name=COORDINATOR,
        host="localhost",
        port=8883,
        ca=nowhere,
        cert=nowhere,
        key=nowhere,
        signing_key=signing_key(COORDINATOR),
        coordinator_key=signing_key(COORDINATOR).public_key(),
        own_seal_key=seal_key(COORDINATOR),
        peer_seal_key=seal_key("fleet").public_key(),
    )


def key_of(device: str, wall: float) -> bytes | None:
    """Everybody is enrolled but those whose name begins so, and until second 1000."""
    if device.startswith("stranger") or wall >= 1000:
        return None
    return signing_key(device).public_key().public_bytes_raw()


def job(**fields: Any) -> Job:
    """A run without bounds on time: toy devices upload as fast as they can."""
    free = {"interval_s": 0.0, "upload_gap_s": 0.0}
    return Job(**{"run": RUN, "algorithm": "fedavg", "labels": ("no", "yes")} | free | fields)


def open_run(folder: Path, *, keys: KeyOf = key_of, **options: Any) -> Run:
    return Run(folder, key_of=keys, identity=identity(), **options)


def new_run(folder: Path, tensors: Any = None, *, options: Any = None, **fields: Any) -> Run:
    Run.create(folder, job(**fields), tensors or {"w": tensor(0.0, 0.0)})
    return open_run(folder, **(options or {}))


# What devices say -------------------------------------------------------------------------------


def signed_update(
    update: Update,
    base_hash: str,
    *,
    raw: bytes | None = None,
    key: Ed25519PrivateKey | None = None,
    sealed: bool = False,
    **header: Any,
) -> SignedMessage:
    """An update as it travels; ``raw`` takes the place of its body."""
    place = {
        "kind": "update",
        "run": RUN,
        "device": update.client,
        "sequence": update.sequence,
        "base_version": update.base_version,
        "base_hash": base_hash,
    } | header
    return sign_message(
        MessageHeader(**place),
        payloads.pack_update(update) if raw is None else raw,
        key or signing_key(update.client),
        seal_for=seal_key(COORDINATOR).public_key() if sealed else None,
    )


def sent(update: Update, base_hash: str, **about: Any) -> list[Message]:
    return messages(signed_update(update, base_hash, **about))


def status(device: str, online: bool = True, version: int = 0, held: str = NO_HASH) -> Message:
    place = MessageHeader("presence", RUN, device, 0, version, held)
    said = payloads.ONLINE if online else payloads.OFFLINE
    (message,) = messages(sign_message(place, said, signing_key(device)), retain=True)
    return message


def resume_request(signed: SignedMessage) -> Message:
    properties, header = signed.properties, signed.properties.header
    body = ResumeRequest(properties.message_id, properties.chunk_count).pack()
    place = MessageHeader("resume-request", RUN, header.device, header.sequence)
    (message,) = messages(sign_message(place, body, signing_key(header.device)))
    return message


# What they hear ---------------------------------------------------------------------------------


def _verified(message: Message) -> Any:
    return read(message, lambda topic: signing_key(COORDINATOR).public_key())


def acks(heard: Iterable[Message]) -> dict[tuple[str, int], str]:
    """(device, sequence) to the refusal's name, or nothing."""
    found = {}
    for message in heard:
        if message.topic.endswith("/ack"):
            got = _verified(message)
            ack = payloads.Ack.open(got.body, got.properties.header)
            found[got.properties.header.device, ack.sequence] = ack.refusal
    return found


def missing(heard: Iterable[Message]) -> tuple[int, ...]:
    (message,) = [one for one in heard if one.topic.endswith("/resume")]
    return Resume.parse(_verified(message).body).missing


def models(heard: Iterable[Message]) -> list[GlobalModel]:
    """Every whole model in what was published, in order."""
    found, pieces = [], []
    for message in heard:
        if "/down/model" in message.topic and message.payload:
            assert message.retain
            got = _verified(message)
            pieces.append(got.chunk.piece)
            if len(pieces) == got.properties.chunk_count:
                found.append(payloads.open_model(b"".join(pieces), got.properties.header, 1 << 30))
                pieces = []
    return found


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and tensor.tobytes() == other[name].tobytes()
        for name, tensor in one.items()
    )
