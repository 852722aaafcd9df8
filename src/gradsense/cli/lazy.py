"""Groups of commands that import a command's module only when they need it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

Function = TypeVar("Function", bound=Callable[..., None])

_PLAIN: dict[str, Any] = {"pretty_exceptions_enable": False, "add_completion": False}


def command(
    example: str, *, settings: bool = False, hidden: str = ""
) -> Callable[[Function], Function]:
    """Mark a function as a command.

    Args:
        example: a whole command line, the last line of the command's help.
        settings: the command takes ``RunSettings`` as its parameter ``run``, and each of their
            fields as an option (``cli.options``).
        hidden: a setting that is no option of this command.
    """

    def mark(function: Function) -> Function:
        vars(function).update(example=example, settings=settings, hidden=hidden)
        return function

    return mark


class LazyGroup(TyperGroup):
    """A group that knows where its commands are, and reads a module when it is asked for it.

    The group's help and completion read the first line of each command's docstring; only a
    command that is about to run, or whose own help is shown, gets its options. Nothing heavy is
    imported as long as the modules in ``cli`` import what is heavy inside their functions.
    """

    #: Command to ``module:function`` in ``cli``, or to an app with commands of its own.
    places: Mapping[str, str | typer.Typer] = {}

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.commands = {name: TyperCommand(name) for name in self.places}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command with its help but without options, which ``resolve_command`` adds."""
        place = self.places.get(cmd_name)
        if isinstance(place, typer.Typer):
            return typer.main.get_command(place)
        return place and TyperCommand(cmd_name, help=_function(place).__doc__)

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)
        for param in params:
            # Typer imports pydantic to make a bool of None, for every command: 0.1 s of CPU.
            param.default = False if param.default is None else param.default
        return params

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, found, rest = super().resolve_command(ctx, args)
        place = self.places.get(name or "")
        return name, _command(name, place) if isinstance(place, str) else found, rest


def group(places: Mapping[str, str | typer.Typer], **attrs: Any) -> typer.Typer:
    """An app of lazy commands; ``attrs`` are those of ``typer.Typer``."""
    cls = type("Group", (LazyGroup,), {"places": places})
    app = typer.Typer(**_PLAIN | {"cls": cls, "no_args_is_help": True} | attrs)
    app.callback()(lambda: None)
    return app


def _function(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"gradsense.cli.{module}"), name)


def _command(name: str | None, place: str) -> Any:
    function = _function(place)
    example = function.example
    if function.settings:
        from gradsense.cli.options import with_settings

        function = with_settings(function, function.hidden)
    app = typer.Typer(**_PLAIN)
    app.command(name, epilog=f"Example: {example}")(function)
    return typer.main.get_command(app)
