"""Runs the main job on any grid and writes its output folder, whatever happens."""

import json
import logging
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fl_app.bench import Bench, prepare
from fl_app.config import load_config, to_dict, to_yaml
from fl_app.fomo.lora_export import export_padded
from fl_app.job import Outcome, adapter_sha256, federate, require_progress
from fl_app.layout_facts import facts_of
from fl_app.measures import measure
from fl_app.references import run_references
from fl_app.report import final_table, schedule_table, write_report
from fl_app.result import (
    FINAL_KEYS,
    Metric,
    RunResult,
    failed_result,
    make_folder,
    package_versions,
    write_result,
)
from fl_app.schema import Config, EdgeFederation
from fl_app.settings import adapter_spec
from fl_app.tasks import KINDS
from fl_app.updates import Update
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
    known: dict[str, Any] = {
        "metric": Metric("accuracy", higher_is_better=True),
        "seed": 0,
        "config": {"overrides": overrides},
    }
    try:
        config = load_config(overrides)
        known |= {"seed": config.seed, "config": to_dict(config)}
        task = KINDS[config.model.task]
        known["metric"] = Metric(task.metric, task.higher_is_better)
        # Members of groups (model=local, say) leave no trace in the resolved values.
        text = f"# overrides: {' '.join(overrides.split())}\n{to_yaml(config)}"
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        adapter = _run(grid, config, overrides, folder, known)
    except Exception as error:
        # What was reached before the failure is kept: rounds, traffic, figures.
        reason = f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - started
        write_result(folder, failed_result(reason=reason, seconds=seconds, **known))
        log.exception("verdict: failed (%s)", reason)
        raise
    result = RunResult(
        verdict="ok",
        reason=None,
        seconds=time.monotonic() - started,
        versions=package_versions(),
        adapter_sha256=adapter_sha256(adapter),
        **known,
    )
    write_result(folder, result)
    write_report(folder, result)
    log.info("\n%s%s", final_table(result), schedule_table(result))
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
    if given and given != "null":
        return make_folder(given)
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


def _run(grid: Grid, config: Config, overrides: str, folder: Path, known: dict[str, Any]) -> Update:
    """Runs everything, noting in ``known`` what is reached; returns the final adapter."""
    started = time.monotonic()
    bench = prepare(config)
    prepared = time.monotonic()
    known["model"], known["layout"] = bench.facts, _layout(bench)
    known["timings"] = timings = {"prepare": prepared - started}
    outcome = Outcome()
    try:
        federate(grid, bench, outcome=outcome)
    finally:
        known["rounds"], known["ledger"] = outcome.rounds, outcome.ledger.as_dict()
        known |= outcome.results
    require_progress(outcome)
    known["layout"] = _layout(bench, outcome.late_units)  # as it is in the end
    bench.facts["adapter_parameters"] = sum(p.numel() for p in bench.full.parameters.values())
    known["final"] = final = dict.fromkeys(FINAL_KEYS)
    figures = measure(bench, outcome.adapter, bench.test)
    final |= {key: figures[key] for key in FINAL_KEYS if key in figures}
    federated = time.monotonic()
    timings["federation"] = federated - prepared
    if bench.ensemble is not None and bench.ensemble.latest is not None:
        found = bench.ensemble.latest
        known["ensemble"] = bench.ensemble.entry(outcome.adapter, bench.test, found)
        bench.ensemble.save(folder, outcome.adapter)
    elif adapter_spec(config.peft) is not None:
        bench.full.write(outcome.adapter)
        bench.full.save(folder / "adapter")
        saved = json.loads((folder / "adapter" / "adapter_config.json").read_text("utf-8"))
        if saved.get("rank_pattern"):
            export_padded(folder / "adapter", folder / "adapter_padded")
    final |= run_references(_references(config), overrides)
    timings["references"] = time.monotonic() - federated
    return outcome.adapter


def _layout(bench: Bench, late_units: int = 0) -> dict[str, Any] | None:
    blocks = bench.piece.split.total
    now = replace(bench.allocation, server=bench.full.layout)
    facts = facts_of(now, bench.config, bench.full.read(), blocks)
    return None if facts is None else facts | {"late_units": late_units}


def _references(config: Config) -> Sequence[str]:
    """The comparison runs asked for; real devices' data are not at the server, so none there."""
    if config.strategy.references is not None:
        return config.strategy.references
    match config.federation:
        case EdgeFederation():
            return ()
        case _:
            return REFERENCES
