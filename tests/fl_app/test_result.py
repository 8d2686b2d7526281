"""``result.json``: one schema, no NaN, written whole or not at all."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fl_app
from fl_app.errors import RunError
from fl_app.ledger import Ledger
from fl_app.result import (
    FINAL_KEYS,
    Metric,
    RoundRecord,
    RunResult,
    failed_result,
    package_versions,
    read_result,
    write_result,
)

_SCHEMA = json.loads((Path(__file__).parents[2] / "docs/result.schema.json").read_text())
_VALIDATOR = jsonschema.Draft202012Validator(_SCHEMA)
_ACCURACY = Metric(name="accuracy", higher_is_better=True)


def _ok(**changes: Any) -> RunResult:
    ledger = Ledger()
    ledger.book(round=1, device=0, link="downlink", what="emulator", num_bytes=1000)
    ledger.book(round=1, device=0, link="uplink", what="update", num_bytes=10)
    values: dict[str, Any] = {
        "verdict": "ok",
        "reason": None,
        "metric": _ACCURACY,
        "final": dict.fromkeys(FINAL_KEYS, 0.5) | {"centralised": None},
        "rounds": [
            RoundRecord(
                round=1,
                metrics={"plug_in": 0.5, "emulator": 0.4, "train_loss": 1.25},
                devices=[0, 2],
                dropped={"late": [1], "not-finite": [3, 4]},
                seconds=1.5,
            )
        ],
        "ledger": ledger.as_dict(),
        "seconds": 12.5,
        "seed": 7,
        "versions": package_versions(),
        "config": {"peft": {"rank": 4}, "seed": 7, "list": [1, 2], "none": None},
        "adapter_sha256": "0123456789abcdef" * 4,
        "model": {
            "name": "minilm",
            "num_parameters": 22_000_000,
            "num_blocks": 6,
            "split": "2-1-2",
            "emulator_blocks": [3],
        },
        "timings": {"fit": 8.0, "references": 4.0},
    }
    return RunResult(**(values | changes))


def _failed() -> RunResult:
    return failed_result(
        reason="no round was aggregated", metric=_ACCURACY, seed=7, config={}, seconds=0.5
    )


def _written(folder: Path, result: RunResult) -> Any:
    return json.loads(write_result(folder, result).read_text(encoding="utf-8"))


def test_the_schema_itself_is_valid_and_describes_every_field() -> None:
    """Dataclasses, ledger and schema name the same fields."""
    jsonschema.Draft202012Validator.check_schema(_SCHEMA)
    for properties, kind in (
        (_SCHEMA["properties"], RunResult),
        (_SCHEMA["properties"]["metric"]["properties"], Metric),
        (_SCHEMA["$defs"]["round"]["properties"], RoundRecord),
    ):
        assert set(properties) == {field.name for field in dataclasses.fields(kind)}
        assert all(part.get("description") or "$ref" in part for part in properties.values())
    assert set(_SCHEMA["properties"]["ledger"]["properties"]) == set(Ledger().as_dict())
    assert set(_SCHEMA["properties"]["final"]["required"]) == set(FINAL_KEYS)


@pytest.mark.parametrize("result", [_ok(), _failed()], ids=["ok", "failed"])
def test_a_result_fits_the_schema_and_comes_back_equal(tmp_path: Path, result: RunResult) -> None:
    """Writing and reading lose nothing."""
    _VALIDATOR.validate(_written(tmp_path / "new" / "folder", result))
    assert read_result(tmp_path / "new" / "folder") == result


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "maybe"},
        {"verdict": "failed"},
        {"reason": "a reason although it is ok"},
        {"final": {"frozen": 0.5}},
        {"final": dict.fromkeys(FINAL_KEYS, "high")},
        {"rounds": [{"round": 1}]},
        {"ledger": {"uplink_bytes": 1}},
        {"ledger": {"uplink_bytes": -1, "downlink_bytes": 0}},
        {"seconds": -1},
        {"seed": 1.5},
        {"adapter_sha256": "abc"},
        {"model": {"split": "2/1/2"}},
        {"metric": {"name": "accuracy"}},
        {"surprise": 1},
    ],
    ids=lambda change: json.dumps(change)[:40],
)
def test_the_schema_rejects_a_wrong_result(tmp_path: Path, change: dict[str, Any]) -> None:
    """One wrong field is enough to be rejected."""
    content = _written(tmp_path, _ok())
    _VALIDATOR.validate(content)
    assert not _VALIDATOR.is_valid(content | change)


@pytest.mark.parametrize("field", sorted(_SCHEMA["required"]))
def test_the_schema_rejects_a_missing_field(tmp_path: Path, field: str) -> None:
    """Every top-level field is required."""
    content = _written(tmp_path, _ok())
    del content[field]
    assert not _VALIDATOR.is_valid(content)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(value=st.floats(allow_nan=True, allow_infinity=True))
def test_what_is_not_finite_is_written_as_null(
    tmp_path_factory: pytest.TempPathFactory, value: float
) -> None:
    """NaN and infinities become null; every finite float comes back as it was."""
    record = dataclasses.replace(_ok().rounds[0], metrics={"plug_in": value})
    result = _ok(final=dict.fromkeys(FINAL_KEYS, value), rounds=[record])
    content = _written(tmp_path_factory.getbasetemp() / "floats", result)
    expected = value if math.isfinite(value) else None
    assert content["final"] == dict.fromkeys(FINAL_KEYS, expected)
    assert content["rounds"][0]["metrics"] == {"plug_in": expected}
    _VALIDATOR.validate(content)


def test_numpy_values_paths_and_tuples_become_plain(tmp_path: Path) -> None:
    """The usual relatives of plain values are converted."""
    config = {"a": np.float32(0.5), "b": np.int64(3), "c": (1, 2), "d": Path("x/y"), "e": np.nan}
    content = _written(tmp_path, _ok(config=config))
    assert content["config"] == {"a": 0.5, "b": 3, "c": [1, 2], "d": "x/y", "e": None}


def test_a_value_without_json_form_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    """The error names the place, and the last good file is untouched."""
    old = _ok()
    write_result(tmp_path, old)
    with pytest.raises(RunError, match=r"result\.config\.x\.y"):
        write_result(tmp_path, _ok(config={"x": {"y": object()}}))
    assert read_result(tmp_path) == old
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk costs neither the old file nor leaves a temporary one."""
    old = _ok()
    write_result(tmp_path, old)

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("fl_app.result.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_result(tmp_path, _ok(seed=8))
    assert read_result(tmp_path) == old
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("{", "is not a result"),
        ("[]", "is not a result"),
        ('{"metric": {}, "rounds": []}', "is not a result"),
    ],
)
def test_an_unreadable_file_is_a_clear_error(
    tmp_path: Path, content: str | None, words: str
) -> None:
    """A missing, broken or foreign file is a typed error."""
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(RunError, match=words):
        read_result(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"verdict": "maybe"}, "verdict='maybe'"),
        ({"verdict": "failed"}, "contradictory"),
        ({"verdict": "failed", "reason": ""}, "contradictory"),
        ({"reason": "but why"}, "contradictory"),
        ({"final": {"frozen": 1.0}}, "plug_in"),
    ],
)
def test_a_contradictory_result_is_refused(changes: dict[str, Any], words: str) -> None:
    """Verdict, reason and the keys of the final figures must agree."""
    with pytest.raises(RunError, match=words):
        _ok(**changes)


def test_a_failed_result_keeps_what_is_known() -> None:
    """Figures and rounds reached before the failure are kept."""
    result = failed_result(
        reason="stopped",
        metric=_ACCURACY,
        seed=1,
        config={"seed": 1},
        seconds=2.0,
        final={"frozen": 0.25},
        rounds=_ok().rounds,
        ledger=_ok().ledger,
    )
    assert result.final == dict.fromkeys(FINAL_KEYS) | {"frozen": 0.25}
    assert result.rounds == _ok().rounds
    assert result.ledger == _ok().ledger


def test_versions_name_the_packages_a_result_depends_on() -> None:
    """Python, this project and its numerical packages are listed."""
    versions = package_versions()
    assert set(versions) == {
        *("python", "deft", "flwr", "torch", "transformers", "peft", "ray", "hydra-core", "numpy")
    }
    assert versions["numpy"] == np.__version__
    assert versions["deft"] == fl_app.__version__


def test_an_absent_package_is_listed_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without the simulator can report too."""
    monkeypatch.setattr("fl_app.result._DISTRIBUTIONS", ("no-such-distribution",))
    assert package_versions()["no-such-distribution"] == "absent"
