"""The result of a run and its file ``result.json`` (JSON schema: ``docs/result.schema.json``).

Verdicts are taken from this file and never from an exit status: a Flower run can end with success
although its application failed. The file is therefore written in one step (temporary file, then
rename), holds only valid JSON (no NaN), and a failed run writes one as well.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

import fl_app
from fl_app.errors import RunError

FILE_NAME = "result.json"
FINAL_KEYS = ("frozen", "emulator", "plug_in", "federated_full", "centralised")
_DISTRIBUTIONS = ("flwr", "torch", "transformers", "peft", "ray", "hydra-core", "numpy")


@dataclasses.dataclass(frozen=True)
class Metric:
    """What the figures of a run measure.

    Attributes:
        name: "accuracy" (a share in [0, 1]), "perplexity" (>= 1) or another name.
        higher_is_better: True for accuracy, False for perplexity and losses.
    """

    name: str
    higher_is_better: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """What happened in one round.

    Attributes:
        round: server round; 0 is the state before the first aggregation.
        metrics: values after the round by name. ``plug_in`` and ``emulator`` are the run's metric
            and are drawn as curves; others are listed. None where a value was not finite.
        devices: devices whose update was aggregated.
        dropped: reason to the devices whose answer was not used for that reason.
        seconds: wall-clock seconds of the round, >= 0.
    """

    round: int
    metrics: Mapping[str, float | None]
    devices: Sequence[int]
    dropped: Mapping[str, Sequence[int]]
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """Everything a run reports.

    Attributes:
        verdict: "ok", or "failed" with a ``reason``.
        reason: why the run failed in one sentence; None exactly when the verdict is "ok".
        metric: what ``final`` and the curves measure.
        final: value of the metric for each of ``FINAL_KEYS``; None where it was not run.
        rounds: one record per round, ascending.
        ledger: ``Ledger.as_dict()``; at least ``uplink_bytes`` and ``downlink_bytes``.
        seconds: wall-clock seconds of the whole run, >= 0.
        seed: the run's seed, >= 0.
        versions: package name to version, see ``package_versions``.
        config: the resolved configuration as plain containers.
        adapter_sha256: hexadecimal hash of the saved adapter; None where none was saved.
        model: facts such as ``name``, ``num_parameters``, ``num_blocks``, ``split``.
        timings: wall-clock seconds per phase.
        layout: sizes of blocks: ``size`` (what it is called), ``rule``, ``combine``, ``server`` (of
            every block, 0 where nothing is tuned), ``params`` (tuned parameters, the head's
            included), ``late_units`` (cut only after the last round) and, by name, ``classes`` of
            devices with ``ranks``, ``params`` and ``devices``; None where nothing has a size.
        ensemble: what members of a prompt ensemble reach alone and together, see
            ``fl_app.ensemble.Ensemble.entry``; None without one.
        transfer: what became of prompts from device to device, see
            ``strategies.transfer_book.transfer_result``; None without ``prompt=transfer``.
        schedule: ``way`` and, for every round, its predicted ``seconds`` and the ``turns`` of its
            devices, see ``strategies.schedule.Turn``; None without a schedule.

    Raises:
        RunError: verdict and reason contradict each other, or ``final`` has other keys.
    """

    verdict: Literal["ok", "failed"]
    reason: str | None
    metric: Metric
    final: Mapping[str, float | None]
    rounds: Sequence[RoundRecord]
    ledger: Mapping[str, Any]
    seconds: float
    seed: int
    versions: Mapping[str, str]
    config: Mapping[str, Any]
    adapter_sha256: str | None
    model: Mapping[str, Any]
    timings: Mapping[str, float]
    layout: Mapping[str, Any] | None = None
    ensemble: Mapping[str, Any] | None = None
    transfer: Mapping[str, Any] | None = None
    schedule: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuses a result that would say two things at once."""
        if self.verdict not in ("ok", "failed"):
            raise RunError(f"result verdict={self.verdict!r} is unknown; use 'ok' or 'failed'")
        if (self.verdict == "failed") != bool(self.reason):
            raise RunError(
                f"result verdict={self.verdict!r} with reason={self.reason!r} is contradictory; "
                "give a reason exactly when the verdict is 'failed'"
            )
        if set(self.final) != set(FINAL_KEYS):
            raise RunError(
                f"result final has the keys {sorted(self.final)}; give exactly "
                f"{', '.join(FINAL_KEYS)} (None where a figure was not run)"
            )


def failed_result(
    *,
    reason: str,
    metric: Metric,
    seed: int,
    config: Mapping[str, Any],
    seconds: float,
    final: Mapping[str, float | None] | None = None,
    rounds: Sequence[RoundRecord] = (),
    ledger: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    timings: Mapping[str, float] | None = None,
    layout: Mapping[str, Any] | None = None,
    ensemble: Mapping[str, Any] | None = None,
    transfer: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
) -> RunResult:
    """Returns the result of a run that failed; pass what is known, the rest is left empty.

    Args:
        reason: why it failed, for a person to read; not empty.
        metric: what the run would have measured.
        seed: the run's seed.
        config: the resolved configuration.
        seconds: wall-clock seconds until the failure.
        final: figures reached before the failure; missing keys become None.
        rounds: records of the rounds before the failure.
        ledger: bytes booked before the failure (None: nothing was sent).
        model: facts of the model, if it was loaded.
        timings: seconds per phase, if any was finished.
        layout: sizes of blocks, if they were chosen.
        ensemble: of prompts, if it was measured.
        transfer: what became of prompts from device to device, if any was looked for.
        schedule: of the rounds before the failure.
    """
    return RunResult(
        verdict="failed",
        reason=reason,
        metric=metric,
        final={**dict.fromkeys(FINAL_KEYS), **(final or {})},
        rounds=list(rounds),
        ledger={"uplink_bytes": 0, "downlink_bytes": 0} if ledger is None else ledger,
        seconds=seconds,
        seed=seed,
        versions=package_versions(),
        config=config,
        adapter_sha256=None,
        model=model or {},
        timings=timings or {},
        layout=layout,
        ensemble=ensemble,
        transfer=transfer,
        schedule=schedule,
    )


def package_versions() -> dict[str, str]:
    """Returns the versions of Python, this project and the packages a result depends on.

    A package that is not installed (Ray on a real device, for example) is listed as "absent".
    """
    versions = {"python": platform.python_version(), "deft": fl_app.__version__}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def make_folder(name: str) -> Path:
    """Returns the folder ``output.dir`` names, absolute and made if needed.

    Raises:
        RunError: it cannot be made.
    """
    folder = Path(name).expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"output.dir={name}: {error}; choose a folder that can be made") from error
    return folder


def write_result(folder: Path, result: RunResult) -> Path:
    """Writes ``result.json`` so that a reader sees the old file or the new one, never a half.

    Args:
        folder: the run's output folder; created if it does not exist.
        result: what to write. Values that are not finite become null.

    Returns:
        Path of the file.

    Raises:
        RunError: a value has no JSON form; the text names it.
    """
    content = _plain(result, "result")
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    # The temporary file lies in the same folder, because a rename is atomic on one disk only.
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{FILE_NAME}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp keeps others out; a report is there to be read
        temporary.replace(folder / FILE_NAME)
    finally:
        temporary.unlink(missing_ok=True)
    return folder / FILE_NAME


def read_result(folder: Path) -> RunResult:
    """Reads ``result.json`` of an output folder.

    Raises:
        RunError: the file is missing, is no JSON or lacks fields.
    """
    path = folder / FILE_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        metric = Metric(**raw.pop("metric"))
        rounds = [RoundRecord(**record) for record in raw.pop("rounds")]
        return RunResult(metric=metric, rounds=rounds, **raw)
    except FileNotFoundError:
        raise RunError(f"result file {path} does not exist; let a run end there first") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"result file {path} is not a result ({error}); run again") from error


def _plain(value: object, where: str) -> object:
    """Returns ``value`` in JSON types, with None for numbers that are not finite."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return float(value) if math.isfinite(value) else None
        case np.generic():
            return _plain(value.item(), where)
        case os.PathLike():
            return os.fspath(value)
        case RunResult() | RoundRecord() | Metric():
            return _plain(vars(value), where)
        case Mapping():
            return {str(key): _plain(part, f"{where}.{key}") for key, part in value.items()}
        case list() | tuple():
            return [_plain(part, f"{where}[{index}]") for index, part in enumerate(value)]
    raise RunError(f"{where}={value!r} has no JSON form; convert it to a plain value first")
