"""Every error that gradsense raises on purpose.

    GradsenseError              the work failed: exit code 1
    ├── InputError              something the user gave is wrong: exit code 2
    └── UpdateRefused           the coordinator does not take an update
        ├── UnknownBase
        ├── NotStarted
        ├── UnknownTensor
        ├── WrongShape
        ├── WrongDtype
        ├── NotFinite
        ├── NormTooLarge
        ├── InconsistentStatistics
        ├── RunFinished
        ├── Replay
        ├── NotInvited
        ├── TooOften
        ├── PoolFull
        └── BadSampleCount

These are the errors that users may see: the command line prints the text on one line and exits
with ``exit_code``. Any other exception that escapes is a defect and shows its traceback. Packages
derive their own from these three, such as the refusals of ``transport.protocol``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class GradsenseError(Exception):
    """Base of all errors meant for people. ``exit_code`` 1: the work failed."""

    exit_code = 1


class InputError(GradsenseError):
    """Something the user gave is wrong: a file, a field, an option. ``exit_code`` 2.

    The text says where the fault is, what is wrong and what to do about it.

    Args:
        what: what is wrong, in one clause.
        hint: what to do about it, in one clause.
        file, line, field: where the fault is, as far as known.

    >>> print(InputError("is no number", hint="give seconds", file="watch.toml", field="max_s"))
    watch.toml: field 'max_s': is no number; give seconds
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        hint: str,
        file: Path | str | None = None,
        line: int | None = None,
        field: str | None = None,
    ) -> None:
        self.what, self.hint, self.file, self.line, self.field = what, hint, file, line, field
        place = ":".join(str(part) for part in (file, line) if part is not None)
        if field is not None:
            place = f"{place}: field '{field}'" if place else f"field '{field}'"
        super().__init__(f"{place}: {what}; {hint}" if place else f"{what}; {hint}")


@contextmanager
def input_errors(what: str, *, hint: str, file: Path | str) -> Iterator[None]:
    """An ``OSError`` of the block as an ``InputError``: ``what``, and the system's reason."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} ({error.strerror or error})", hint=hint, file=file) from error


class UpdateRefused(GradsenseError):
    """The coordinator does not take an update.

    Attributes:
        reason: what it is counted and answered under; of ``WrongHash`` ``wrong-hash``.
    """

    reason = "refused"

    def __init_subclass__(cls) -> None:
        if "reason" not in vars(cls):
            cls.reason = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


class UnknownBase(UpdateRefused):
    """The update starts from a global model that was never published or is too old."""


class NotStarted(UpdateRefused):
    """Too few devices have come for the run's first model; the update may be sent again."""


class UnknownTensor(UpdateRefused):
    """The update names a tensor that the global model does not have, or is empty."""


class WrongShape(UpdateRefused):
    """A tensor's shape differs from the global model's."""


class WrongDtype(UpdateRefused):
    """A tensor's dtype is not the global model's."""


class NotFinite(UpdateRefused):
    """A tensor holds NaN or infinity."""


class NormTooLarge(UpdateRefused):
    """The update would move the model further, or weigh more, than one site may."""


class InconsistentStatistics(UpdateRefused):
    """Sufficient statistics that no flows can have."""


class RunFinished(UpdateRefused):
    """The run has made its last model."""


class Replay(UpdateRefused):
    """The update's sequence number was seen before."""


class NotInvited(UpdateRefused):
    """The client is not enrolled, or was not invited to this round."""


class TooOften(UpdateRefused):
    """The client has used up its allowance of uploads; it may send the same again later."""


class PoolFull(UpdateRefused):
    """No room in the pool for this client now; it may send the same again later."""


class BadSampleCount(UpdateRefused):
    """The update claims a sample count that is not positive."""

    reason = "bad-sample-count"


def first_line(error: BaseException) -> str:
    """The first line of a library's message, without its full stop; its kind where it is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
