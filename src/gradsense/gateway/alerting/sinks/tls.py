"""One way to make a TLS client's context, for all sinks."""

from __future__ import annotations

import ssl
from pathlib import Path

from gradsense.errors import InputError


def context(
    *, ca: Path | None, cert: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Checks the receiver's certificate and name; ``ca`` replaces the system's authorities.

    Raises:
        InputError: a file is missing or holds no certificate or key.
    """
    try:
        made = ssl.create_default_context(cafile=ca)
        if cert is not None:
            made.load_cert_chain(cert, key)
    except OSError as error:  # ssl.SSLError is one
        files = ", ".join(str(file) for file in (ca, cert, key) if file is not None)
        raise InputError(
            f"cannot be used for TLS ({error.strerror or error})",
            hint="give PEM files that this process may read",
            file=files,
        ) from error
    return made
