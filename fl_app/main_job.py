"""Runs the main job on any grid and writes its output folder, whatever happens."""

import logging
import os
import shlex
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from flwr.serverapp import Grid

from fl_app.config import load_config, to_dict, to_yaml
from fl_app.job import (
    adapter_sha256,
    federate,
    measure_emulator,
    measure_plug_in,
    prepare,
    require_progress,
)
from fl_app.references import run_references
from fl_app.report import final_table, write_report
from fl_app.result import (
    FINAL_KEYS,
    Metric,
    RunResult,
    failed_result,
    package_versions,
    write_result,
)
from fl_app.schema import Config, EdgeFederation, LoraConfig
from fl_app.variants import REFERENCES

log = logging.getLogger("deft")


def run_main_job(grid: Grid, overrides: str) -> RunResult:
    """Runs the configured federation and its comparison runs; writes and logs the results.

    Args:
        grid: the way to the devices.
        overrides: Hydra overrides in one string.

    Returns:
        The result, verdict "ok".

    Raises:
        DeftError: the run failed; ``result.json`` with verdict "failed" is written first, unless
            the configuration does not even say where to.
    """
    started = time.monotonic()
    folder = output_folder(overrides)
    metric, config = Metric("accuracy", higher_is_better=True), None
    try:
        config = load_config(overrides)
        (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        result = _run(grid, config, overrides, folder, started)
    except Exception as error:
        failed = failed_result(
            reason=f"{type(error).__name__}: {error}",
            metric=metric,
            seed=config.seed if config else 0,
            config=to_dict(config) if config else {"overrides": overrides},
            seconds=time.monotonic() - started,
        )
        write_result(folder, failed)
        log.exception("verdict: failed (%s)", failed.reason)
        raise
    log.info("\n%s", final_table(result))
    log.info("results in %s", folder)
    return result


def output_folder(overrides: str) -> Path:
    """Returns the run's own folder, made if needed.

    ``output.dir`` is looked up in the override words themselves, so that a configuration that does
    not compose still leaves its ``result.json`` where the caller looks for it. Without it the
    folder is outputs/<time> below the working directory, and outputs/latest points to it.
    """
    given = None
    try:
        words = shlex.split(overrides)
    except ValueError:
        words = []
    for word in words:
        if word.startswith("output.dir="):
            given = word.removeprefix("output.dir=").strip("'\"")
    if given:
        folder = Path(given).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    base = Path.cwd() / "outputs"
    if not os.access(Path.cwd(), os.W_OK):  # a SuperLink may have been started anywhere
        base = Path.home() / "deft-outputs"
    # to the microsecond: small runs of one process may follow each other within a second
    folder = base / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    folder.mkdir(parents=True, exist_ok=True)
    link = base / "latest"
    temporary = base / f".latest-{os.getpid()}"
    temporary.symlink_to(folder.name)
    temporary.replace(link)
    return folder


def _run(grid: Grid, config: Config, overrides: str, folder: Path, started: float) -> RunResult:
    bench = prepare(config)
    prepared = time.monotonic()
    outcome = federate(grid, bench)
    require_progress(outcome)
    final: dict[str, float | None] = dict.fromkeys(FINAL_KEYS)
    final["plug_in"] = measure_plug_in(bench, outcome.adapter, bench.test)
    final["emulator"] = measure_emulator(bench, outcome.adapter, bench.test)
    federated = time.monotonic()
    if isinstance(config.peft, LoraConfig):
        bench.full.write(outcome.adapter)
        bench.full.save(folder / "adapter")
    final |= run_references(_references(config), overrides)
    compared = time.monotonic()
    result = RunResult(
        verdict="ok",
        reason=None,
        metric=Metric(bench.task.metric, bench.task.higher_is_better),
        final=final,
        rounds=outcome.rounds,
        ledger=outcome.ledger.as_dict(),
        seconds=compared - started,
        seed=config.seed,
        versions=package_versions(),
        config=to_dict(config),
        adapter_sha256=adapter_sha256(outcome.adapter),
        model=bench.facts,
        timings={
            "prepare": prepared - started,
            "federation": federated - prepared,
            "references": compared - federated,
        },
    )
    write_result(folder, result)
    write_report(folder, result)
    return result


def _references(config: Config) -> Sequence[str]:
    """The comparison runs asked for; real devices' data are not at the server, so none there."""
    if config.strategy.references is not None:
        return config.strategy.references
    match config.federation:
        case EdgeFederation():
            return ()
        case _:
            return REFERENCES
