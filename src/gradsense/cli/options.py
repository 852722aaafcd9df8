"""Options of train and compare, made from the fields of ``RunSettings``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from gradsense.config import RunSettings, settings


def with_settings(command: Callable[..., None], hidden: str = "") -> Callable[..., None]:
    """The command with one option for each field of ``RunSettings`` but the hidden one.

    It takes the checked settings as its first parameter, ``run``.
    """
    hints = get_type_hints(command, localns={"RunSettings": RunSettings}, include_extras=True)
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "run"]
    names = {name: field for name, field in RunSettings.model_fields.items() if name != hidden}
    fields = get_type_hints(RunSettings)

    def wrapped(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in names}
        command(settings(**chosen), **values)

    parameters = [
        p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in own
    ]
    for name, field in names.items():
        kind: Any = fields[name]
        default: Any = field.default
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
