"""The public API: what gradsense and its packages export by name. Change ``PUBLIC`` on purpose.

A new name is a line here and in CHANGELOG.md; one that goes is a breaking change
(docs/compatibility.md). ``python -m tests.test_public_api`` prints the present list.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest

import gradsense
from gradsense import errors

PUBLIC = {
    "gradsense": """
        Algorithm Client Coordinator Detector GradsenseError InputError Learner Simulator Task
        Watch __version__
    """,
    "gradsense.agent": "Agent AgentPlan ResourceLimits",
    "gradsense.cli": "main",
    "gradsense.coordinator": "CoordinatorService Run open_run write_newest",
    "gradsense.data": """
        Capture ContextWindow Dataset LiveLog LogStream Networks RecordSource Tally read_log
        write_fleet write_sample
    """,
    "gradsense.detection": "Detector Manifest Reason Verdict",
    "gradsense.experiments": "Row",
    "gradsense.federation": """
        Algorithm AllInvited AnyOf Arrived Broadcast Client Codec Coordinator Count Decision
        DeltaRule EveryRound FedAvg GlobalModel Gradient Joined Left LocalState Outgoing
        Performance Plan Pool Pooled PooledUpdate Quorum Refuse Rule Send Sensed Silence Ticked
        Transform Trigger TurnedAway Unexplained Update WakeAt WeightedSum get_algorithm part
    """,
    "gradsense.fleet": "Enrolment Fleet Job Registry",
    "gradsense.gateway": """
        Alert GatewayStore Settings Sink SinkContext SinkError SinkSettings Watch WatchPlan
        open_watch
    """,
    "gradsense.learning": """
        Examples FleetStatistics FlowCost Learner LocalLearner Observed Scores Trained Trainer
        observed
    """,
    "gradsense.localfleet": "LocalFleet",
    "gradsense.models": "Card TextClassifier",
    "gradsense.prompts": "Template get_template",
    "gradsense.serving": "LargerModel create_app",
    "gradsense.simulation": "DeviceProfile Faults Meter Simulator assign",
    "gradsense.storage": "",
    "gradsense.tasks": "ClassAdvice Task Wording get_task",
    "gradsense.transport": "Arrival Identity Link Message MessageHeader Topic",
}


def packages() -> list[str]:
    """gradsense and the packages directly in it."""
    found = iter_modules(gradsense.__path__, "gradsense.")
    return ["gradsense", *(module.name for module in found if module.ispkg)]


def exported(package: str) -> list[str]:
    """What a package exports, sorted."""
    return sorted(getattr(import_module(package), "__all__", ()))


def test_every_package_is_listed() -> None:
    assert packages() == sorted(PUBLIC)


@pytest.mark.parametrize("package", PUBLIC)
def test_a_package_exports_what_is_listed(package: str) -> None:
    assert exported(package) == sorted(PUBLIC[package].split())


NAMES = [
    (package, name)
    for package, text in PUBLIC.items()
    for name in text.split()
    if name != "__version__"
]


@pytest.mark.parametrize(("package", "name"), NAMES, ids=map(".".join, NAMES))
def test_an_exported_name_is_there_and_says_what_it_is(package: str, name: str) -> None:
    value: Any = getattr(import_module(package), name)
    assert value is getattr(sys.modules[value.__module__], name)
    text = value.__doc__ or ""
    assert len(text.split()) >= 4, f"{package}.{name} has no docstring of its own"
    assert not text.startswith(f"{name}("), "that is the signature which dataclass wrote"
    assert name in dir(import_module(package))


@pytest.mark.parametrize("package", [name for name in PUBLIC if PUBLIC[name].strip()])
def test_type_checkers_see_the_same_names(package: str) -> None:
    module = import_module(package)
    tree = ast.parse(inspect.getsource(module))
    bound = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    bound |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert set(exported(package)) - {"__version__"} <= bound


def test_a_name_that_is_not_exported_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gradsense' has no attribute 'Nonsense'"):
        gradsense.Nonsense  # noqa: B018


def test_importing_every_package_imports_nothing_heavy() -> None:
    lines = [
        "import sys",
        *(f"import {package}" for package in PUBLIC),
        "heavy = {'numpy', 'polars', 'pydantic', 'torch', 'onnxruntime', 'typer', 'rich'}",
        "print(*(heavy & sys.modules.keys()))",
    ]
    code = "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    drawn = re.findall(r"^ *[│├└─ ]*(\w+)(?:  .*)?$", (errors.__doc__ or "").split("\n\n")[1], re.M)
    defined = [name for name, value in vars(errors).items() if inspect.isclass(value)]
    assert drawn == [name for name in defined if issubclass(getattr(errors, name), Exception)]


if __name__ == "__main__":
    for each in packages():
        print(f"{each}: {' '.join(exported(each))}")
