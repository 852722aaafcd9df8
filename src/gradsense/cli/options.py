"""Options of train and compare, made from the fields of ``RunSettings``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import typer

_CONFIG = Path(__file__).parents[1] / "config.py"
#: What the types of settings are made of.
_NAMES = {"Literal": Literal, "Path": Path}


class Declared(NamedTuple):
    """One field of ``RunSettings``."""

    kind: Any
    default: Any
    description: str


def declared() -> dict[str, Declared]:
    """The fields of ``RunSettings``, out of the text of ``config.py``.

    Importing it imports pydantic, which takes a third of the CPU time that help may take.
    """
    tree = ast.parse(_CONFIG.read_text())
    [model] = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "RunSettings"]
    texts: dict[str, str] = {}
    values: dict[str, tuple[Any, str]] = {}
    for field in model.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.value, ast.Call):
            name, call = ast.unparse(field.target), field.value
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            texts[name] = ast.unparse(field.annotation)
            description = ast.literal_eval(given["description"])
            values[name] = ast.literal_eval(call.args[0]), description
    kinds = get_type_hints(type("Fields", (), {"__annotations__": texts}), _NAMES)
    return {name: Declared(kinds[name], *value) for name, value in values.items()}


def with_settings(command: Callable[..., None], hidden: str = "") -> Callable[..., None]:
    """The command with one option for each field of ``RunSettings`` but the hidden one.

    It takes the checked settings as its first parameter, ``run``.
    """
    hints = get_type_hints(command, localns={"RunSettings": Any}, include_extras=True)
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "run"]
    fields = {name: field for name, field in declared().items() if name != hidden}

    def wrapped(**values: Any) -> None:
        from gradsense.config import settings

        chosen = {name: values.pop(name) for name in fields}
        command(settings(**chosen), **values)

    parameters = [
        p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in own
    ]
    for name, field in fields.items():
        kind, default = field.kind, field.default
        if isinstance(default, tuple):  # the settings take it apart
            kind, default = str, ",".join(default)
        option = typer.Option(help=field.description)
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[kind, option],  # a real type only at run time
            )
        )
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return wrapped
