"""What the registry finds in a package, and what does not stop it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradsense import discovery
from gradsense.errors import GradsenseError, InputError

PACKAGE = "registry_example"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text("class Base:\n    name = 'base'\n")
    (folder / "one.py").write_text(
        f"from {PACKAGE} import Base\n"
        "class Last(Base):\n    name = 'last'\n"
        "class First(Base):\n    name = 'first'\n"
        "class _Hidden(Base):\n    name = 'hidden'\n"
        "class Other:\n    name = 'other'\n"
    )
    (folder / "two.py").write_text(
        f"from {PACKAGE}.one import Last\nclass Later(Last):\n    name = 'later'\n"
    )
    (folder / "_private.py").write_text("raise RuntimeError('not to be imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [one for one in sys.modules if one.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def base() -> type:
    return __import__(PACKAGE).Base  # type: ignore[no-any-return]


def test_every_public_subclass_is_found_once_by_its_name(package: Path) -> None:
    found = discovery.members(PACKAGE, base())
    assert {name: one.__name__ for name, one in found.items()} == {
        "last": "Last",
        "first": "First",
        "later": "Later",
    }
    defined = discovery.defined(f"{PACKAGE}.one", base())
    assert [one.__name__ for one in defined] == ["Last", "First"]


def test_names_import_nothing(package: Path) -> None:
    (package / "broken.py").write_text("raise RuntimeError('not to be imported')\n")
    assert discovery.names(PACKAGE) == ["broken", "one", "two"]
    assert f"{PACKAGE}.one" not in sys.modules


def test_a_missing_library_leaves_out_its_module_only(package: Path) -> None:
    (package / "extra.py").write_text("import no_such_library.part\n")
    assert set(discovery.members(PACKAGE, base())) == {"first", "last", "later"}
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        discovery.defined(f"{PACKAGE}.extra", base())


def test_a_missing_module_of_the_package_is_a_defect(package: Path) -> None:
    (package / "wrong.py").write_text(f"import {PACKAGE}.missing\n")
    with pytest.raises(ModuleNotFoundError, match="missing"):
        discovery.members(PACKAGE, base())


def test_two_of_one_name_are_refused(package: Path) -> None:
    (package / "three.py").write_text(
        f"from {PACKAGE} import Base\nclass Other(Base):\n    name = 'last'\n"
    )
    with pytest.raises(GradsenseError, match="two are named 'last'"):
        discovery.members(PACKAGE, base())


def test_no_such_package(package: Path) -> None:
    with pytest.raises(InputError, match="no package"):
        discovery.names(f"{PACKAGE}.templates")
