from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gradsense.data.datasets.leakage import Leakage
from gradsense.errors import InputError
from gradsense.experiments.results import Point, load, save, write_text
from tests.support.report_rows import federated, reference


def test_rows_survive_the_file(tmp_path: Path) -> None:
    seen = Leakage(text=0.0, compact=0.25, host=1.0, capture=1.0)
    rows = [federated(seed=0), federated("gsfs", 1, leakage=seen), reference("forest")]
    save(rows, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == rows


@settings(max_examples=50, deadline=None)
@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(min_value=0, max_value=2**53),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_number_and_name_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, value: float, count: int, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "property.json"
    rows = [federated(algorithm=name, energy_j=value, uplink_bytes=count)]
    save(rows, path)
    assert load(path) == rows


def test_contract_of_the_design_holds(tmp_path: Path) -> None:
    save([federated()], tmp_path / "results.json")
    (row,) = json.loads((tmp_path / "results.json").read_text())
    promised = (
        "algorithm seed rounds central clients central_latency_s client_latency_s requests_per_min "
        "energy_j uplink_bytes downlink_bytes uploads aggregations virtual_s wall_s curve"
    )
    assert set(promised.split()) <= set(row)
    five = {"accuracy", "precision", "recall", "f1_weighted", "f1_macro"}
    assert set(row["central"]) == set(row["clients"]) == five
    point = {"aggregation", "virtual_s", "uplink_bytes", "accuracy", "f1_macro", "loss", "epochs"}
    assert set(row["curve"][0]) == point


def test_what_a_reference_lacks_is_null(tmp_path: Path) -> None:
    save([reference("forest")], tmp_path / "results.json")
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert row["uplink_bytes"] is None
    assert row["central_latency_s"] is None
    assert row["clients"] is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_diverged_loss_is_null(loss: float) -> None:
    point = Point(
        aggregation=1, virtual_s=1.0, uplink_bytes=1, accuracy=0.1, f1_macro=0.1, loss=loss
    )
    assert point.loss is None


def test_other_values_must_be_finite() -> None:
    with pytest.raises(ValidationError):
        Point(
            aggregation=1, virtual_s=math.nan, uplink_bytes=1, accuracy=0.1, f1_macro=0.1, loss=1.0
        )


def test_numpy_numbers_are_taken() -> None:
    point = Point.model_validate(
        {
            "aggregation": np.int64(1),
            "virtual_s": np.float64(1.5),
            "uplink_bytes": np.int64(7),
            "accuracy": np.float32(0.5),
            "f1_macro": np.float64(0.5),
            "loss": np.float64(math.nan),
        }
    )
    assert (point.uplink_bytes, point.accuracy, point.loss) == (7, 0.5, None)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"", None),
        (b"\x00\xff\xfe", None),
        (b"{}", None),
        (b'[{"algorithm": "fedavg"}]', "0.kind"),
        (b'[{"surprise": 1}]', "0.algorithm"),
    ],
)
def test_a_bad_file_is_an_input_error(tmp_path: Path, content: bytes, field: str | None) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(path)
    assert caught.value.field == field
    assert caught.value.file == path
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "none.json")


def test_an_unknown_field_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    save([federated()], path)
    rows = json.loads(path.read_text())
    rows[0]["surprise"] = 1
    path.write_text(json.dumps(rows))
    with pytest.raises(InputError, match="surprise"):
        load(path)


def test_an_unwritable_path_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save([federated()], tmp_path / "file" / "results.json")
    with pytest.raises(InputError, match="cannot be written"):
        save([federated()], tmp_path / "no-such-folder" / "results.json")


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(InputError):
        write_text(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
