"""Reads secrets from files that only their owner can read."""

from __future__ import annotations

import stat
from pathlib import Path

from gradsense.errors import InputError

_MAX_BYTES = 4096
#: Shorter tokens could be guessed.
_LEAST_LENGTH = 16


def read_secret(file: Path) -> str:
    """The token in ``file``, without white space around it.

    Raises:
        InputError: the file cannot be read, other users may read it, or it holds no token: 16 or
            more printable ASCII characters without spaces.
    """
    try:
        with file.open("rb") as stream:
            mode, body = file.stat().st_mode, stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror or error})",
            hint="make one: (umask 077; openssl rand -hex 32 > token)",
            file=file,
        ) from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise InputError(
            "other users may read or write the token", hint=f"chmod 600 {file}", file=file
        )
    return checked(body.decode("ascii", errors="replace").strip(), file)


def checked(token: str, source: Path | str) -> str:
    """``token``, if it fits a header and is long enough. ``source`` is named in the error.

    Raises:
        InputError: it is not.
    """
    printable = all("!" <= sign <= "~" for sign in token)
    if not printable or not _LEAST_LENGTH <= len(token) <= _MAX_BYTES:
        raise InputError(
            f"no token of {_LEAST_LENGTH} or more printable characters",
            hint="make one: (umask 077; openssl rand -hex 32 > token)",
            file=source,
        )
    return token
