"""Finds what the modules of a package define: a new one is a new file and no other edit."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import TypeVar

from gradsense.errors import GradsenseError, InputError

T = TypeVar("T")


def names(package: str) -> list[str]:
    """The public modules directly in a package, sorted; none of them is imported.

    Raises:
        InputError: there is no such package.
    """
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise InputError(f"there is no package '{package}'", hint="make that folder")
    found = iter_modules(spec.submodule_search_locations)
    return sorted(module.name for module in found if not module.name.startswith("_"))


def defined(module: str, base: type[T]) -> list[type[T]]:
    """The public, concrete subclasses of ``base`` that a module defines, in the order of its text.

    Raises:
        ModuleNotFoundError: the module, or a library that it imports, is not installed.
    """
    return [
        value
        for name, value in vars(import_module(module)).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
        if value.__module__ == module and not name.startswith("_") and not inspect.isabstract(value)
    ]


def members(package: str, base: type[T], key: str = "name") -> dict[str, type[T]]:
    """The subclasses of ``base`` in all modules of a package, by their class attribute ``key``.

    A module that needs a library which is not installed is left out.

    Raises:
        GradsenseError: two have the same name.
    """
    found: dict[str, type[T]] = {}
    for name in names(package):
        try:
            classes = defined(f"{package}.{name}", base)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == package.partition(".")[0]:
                raise  # a defect of our own, not a missing extra
            continue
        for one in classes:
            add(found, str(getattr(one, key)), one, package)
    return found


def add(found: dict[str, T], name: str, one: T, place: str) -> None:
    """Add a member that ``place`` defines.

    Raises:
        GradsenseError: there is one of this name, which would be lost.
    """
    if name in found:
        raise GradsenseError(f"{place}: two are named '{name}'; give one of them another name")
    found[name] = one
