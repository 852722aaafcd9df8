"""What a package exports by name, imported when somebody asks for it (PEP 562).

A package's ``__init__`` lists the names in ``__all__`` and imports them under ``TYPE_CHECKING``,
where type checkers and readers look; ``export`` makes the same imports work at run time, one at a
time, so that importing a package costs next to nothing.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from importlib import import_module
from typing import Any

#: Type checkers take a condition of this name for true, wherever it is defined.
TYPE_CHECKING = False


@cache
def exported(package: str) -> dict[str, str]:
    """Name to the module that it is imported from, as the package's ``__init__`` says."""
    tree = ast.parse(inspect.getsource(sys.modules[package]))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def export(package: str) -> None:
    """Give a package the names in its ``TYPE_CHECKING`` block."""
    module = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name.startswith("_") or name not in exported(package):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = module[name] = getattr(import_module(exported(package)[name]), name)
        return value

    module["__getattr__"] = get
    module["__dir__"] = lambda: sorted({*module, *exported(package)})
