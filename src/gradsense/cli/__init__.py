"""The commands: parse, call, show. No logic."""

from __future__ import annotations

import sys

from gradsense.errors import GradsenseError, InputError

#: Modules that only an extra of the package brings, by their first names.
_EXTRAS = {
    "train": (
        *("torch", "transformers", "peft", "sklearn", "scipy", "huggingface_hub", "threadpoolctl"),
        *("matplotlib", "jinja2", "onnx", "onnxscript"),
    ),
    "edge": ("onnxruntime", "tokenizers", "paho", "prometheus_client", "httpx"),
    "serve": ("fastapi", "uvicorn"),
    "fleet": ("cryptography",),
}

__all__ = ["main"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main() -> None:
    """The entry point: errors meant for people become one line and an exit code."""
    from gradsense.cli.app import app

    try:
        app(prog_name="gradsense")
    except GradsenseError as error:
        text = " ".join(str(error).splitlines())  # file names may hold anything
        print(f"gradsense: {text}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        extra = next((name for name, modules in _EXTRAS.items() if module in modules), None)
        if extra is None:
            raise
        print(
            f"gradsense: this command needs {module}; pip install 'gradsense[{extra}]'",
            file=sys.stderr,
        )
        sys.exit(InputError.exit_code)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # what typer makes of Ctrl-C
            print("gradsense: interrupted; --resume continues a run", file=sys.stderr)
        raise
    except BrokenPipeError:  # the reader of our output, such as head, has had enough
        sys.stderr.close()
        sys.exit(0)
