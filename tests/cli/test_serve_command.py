"""``gradsense serve``: what it refuses before it listens, and how it listens."""

from __future__ import annotations

import datetime
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gradsense.detection.bundle import BundleThreshold, Manifest, TemplateName, Tokens
from gradsense.detection.detector import Detector

Command = Callable[..., object]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a token, and a key and certificate that belong together."""
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "service")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1)
    ).sign(key, hashes.SHA256())
    (tmp_path / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return tmp_path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[uvicorn.Config]:
    """The configurations that would have been served, around a model that nobody asks."""
    manifest = Manifest(
        labels=("Benign", "C&C"),
        template=TemplateName(name="context", version=1),
        tokens=Tokens(kind="words", max_tokens=19),
        alarm=BundleThreshold(value=0.5, share=0.0, flows=0, source="test"),
        files={},
    )
    detector = SimpleNamespace(manifest=manifest, judge_texts=lambda texts: [])
    configs: list[uvicorn.Config] = []
    monkeypatch.setattr(Detector, "load", lambda path, threads: detector)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self: configs.append(self.config))
    return configs


def tls(files: Path) -> tuple[object, ...]:
    return ("--cert", files / "cert.pem", "--key", files / "key.pem")


def token(files: Path) -> tuple[object, ...]:
    return ("--token-file", files / "token")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gateway.local"])
@pytest.mark.parametrize("given", [(), (tls,), (token,)])
def test_others_need_tls_and_a_token(
    gradsense: Command,
    files: Path,
    served: list[uvicorn.Config],
    host: str,
    given: tuple[Callable[[Path], tuple[object, ...]], ...],
) -> None:
    options = [option for part in given for option in part(files)]
    outcome = gradsense("serve", "--model", files, "--host", host, *options)
    outcome.complaint("--host", host, "--token-file")  # type: ignore[attr-defined]
    assert served == []


def test_with_both_it_listens_to_all_and_speaks_tls_1_2_or_later(
    gradsense: Command, files: Path, served: list[uvicorn.Config]
) -> None:
    outcome = gradsense("serve", "--model", files, "--host", "::", *tls(files), *token(files))
    assert outcome.code == 0, outcome.err  # type: ignore[attr-defined]
    (config,) = served
    assert config.host == "::"
    assert config.ssl is not None
    assert config.ssl.minimum_version == ssl.TLSVersion.TLSv1_2
    assert not config.access_log


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_alone_needs_neither(
    gradsense: Command, files: Path, served: list[uvicorn.Config], host: str
) -> None:
    gradsense("serve", "--model", files, "--host", host, "--port", 0)
    assert [(config.host, config.ssl) for config in served] == [(host, None)]


def test_files_that_do_not_do(
    gradsense: Command, files: Path, served: list[uvicorn.Config]
) -> None:
    def complain(*options: object, parts: tuple[str, ...]) -> None:
        outcome = gradsense("serve", "--model", files, *options)
        outcome.complaint(*parts)  # type: ignore[attr-defined]

    complain("--cert", files / "cert.pem", parts=("--key",))
    complain("--cert", files / "none", "--key", files / "key.pem", parts=("none", "no such file"))
    complain("--cert", files / "key.pem", "--key", files / "key.pem", parts=("PEM chain",))
    complain("--token-file", files / "none", parts=("none", "umask 077"))
    (files / "token").chmod(0o644)
    complain(*token(files), parts=("other users", "chmod 600"))
    assert served == []


def test_a_folder_that_is_no_bundle(gradsense: Command, tmp_path: Path) -> None:
    outcome = gradsense("serve", "--model", tmp_path)
    outcome.complaint("no edge bundle", "gradsense export")  # type: ignore[attr-defined]


def test_without_the_libraries_it_says_how_to_get_them(
    gradsense: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    outcome = gradsense("serve", "--model", tmp_path)
    outcome.complaint("uvicorn", "gradsense[serve]")  # type: ignore[attr-defined]
