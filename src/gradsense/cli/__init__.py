"""The commands: parse, call, show. No logic."""

from __future__ import annotations

import sys

from gradsense.errors import GradsenseError


def main() -> None:
    """The entry point: errors meant for people become one line and an exit code."""
    from gradsense.cli.app import app

    try:
        app()
    except GradsenseError as error:
        print(f"gradsense: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("gradsense: interrupted; --resume continues a run", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, such as head, has had enough
        sys.stderr.close()
        sys.exit(0)
