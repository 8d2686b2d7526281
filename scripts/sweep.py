"""Hydra multirun over the main job: ``python -m scripts.sweep -m peft.rank=2,4 seed=0,1``.

Jobs run one after the other on the in-process grid (no start-up cost); ``--flwr`` makes each a real
``flwr run``. The verdict of a job is read from its ``result.json``. A table and ``sweep.json`` with
mean and standard deviation over seeds close the sweep. ``--json FILE`` copies that file.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from fl_app.config import CONF, closed, opened, register_schemas
from fl_app.errors import DeftError
from fl_app.result import FINAL_KEYS, read_result
from scripts.simulate import simulate

_FLWR = "DEFT_SWEEP_FLWR"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(_config: DictConfig) -> None:
    """Runs one job; its overrides are Hydra's, its folder is the job's own."""
    chosen = HydraConfig.get()
    task = [closed(word) for word in chosen.overrides.task]
    words = [*task, f"output.dir={chosen.runtime.output_dir}"]
    if os.environ.get(_FLWR):
        from scripts.run_main import main as run_main

        run_main(words)
        return
    simulate(shlex.join(words))


def collect(folder: Path) -> list[dict[str, Any]]:
    """Returns one row per job: overrides, verdict, figures, seconds.

    A job without ``result.json`` counts as failed.
    """
    rows = []
    for place in sorted(
        (p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)
    ):
        overrides = (place / ".hydra" / "overrides.yaml").read_text().replace("\n", " ")
        row: dict[str, Any] = {"job": int(place.name), "overrides": overrides.replace("- ", "")}
        try:
            result = read_result(place)
        except DeftError as error:
            rows.append({**row, "verdict": "failed", "reason": str(error), "final": {}})
            continue
        final = {key: result.final[key] for key in FINAL_KEYS}
        rows.append(
            {
                **row,
                "verdict": result.verdict,
                "reason": result.reason,
                "seed": result.seed,
                "final": final,
                "seconds": result.seconds,
                "uplink_bytes": result.ledger.get("uplink_bytes"),
                "emulator_bytes": result.ledger.get("emulator_bytes"),
            }
        )
    return rows


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns mean and sample standard deviation over seeds for each other setting."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["verdict"] == "ok":
            words = [word for word in shlex.split(row["overrides"]) if not word.startswith("seed=")]
            groups.setdefault(" ".join(words), []).append(row)
    summary = []
    for setting, members in groups.items():
        figures: dict[str, Any] = {}
        for key in FINAL_KEYS:
            values = [m["final"][key] for m in members if m["final"].get(key) is not None]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                figures[key] = {"mean": statistics.fmean(values), "std": spread, "n": len(values)}
        summary.append({"setting": setting, "seeds": len(members), "final": figures})
    return summary


def show(rows: list[dict[str, Any]], summary: list[dict[str, Any]]) -> None:
    """Prints one line per job and one per setting."""
    console = Console(width=max(100, shutil.get_terminal_size().columns))
    jobs = Table(title="jobs")
    for column in ("job", "overrides", "verdict", *FINAL_KEYS, "seconds"):
        jobs.add_column(column, overflow="fold")
    for row in rows:
        figures = [_number(row["final"].get(key)) for key in FINAL_KEYS]
        seconds = f"{row.get('seconds', 0.0):.0f}"
        jobs.add_row(str(row["job"]), row["overrides"], row["verdict"], *figures, seconds)
    console.print(jobs)
    table = Table(title="mean +- standard deviation over seeds")
    for column in ("setting", "seeds", *FINAL_KEYS):
        table.add_column(column, overflow="fold")
    for entry in summary:
        cells = []
        for key in FINAL_KEYS:
            figure = entry["final"].get(key)
            spread = figure and figure["std"]
            cells.append(
                _number(figure and figure["mean"]) + (f" +- {spread:.4f}" if spread else "")
            )
        table.add_row(entry["setting"] or "(default)", str(entry["seeds"]), *cells)
    console.print(table)


def main() -> int:
    """Command line; returns the number of failed jobs, capped at 1."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there as well")
    parser.add_argument("--flwr", action="store_true", help="make each job a real flwr run")
    options, words = parser.parse_known_args()  # the rest is Hydra's
    if options.flwr:
        os.environ[_FLWR] = "1"
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = Path.cwd() / "outputs" / f"sweep-{stamp}"
    if "-m" not in words and "--multirun" not in words:
        words.insert(0, "-m")
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    places = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=${hydra.job.num}"]
    sys.argv = [sys.argv[0], *map(opened, words), *places, *quiet]
    register_schemas()
    job()
    rows = collect(folder)
    summary = summarise(rows)
    show(rows, summary)
    text = json.dumps({"jobs": rows, "summary": summary}, indent=2)
    (folder / "sweep.json").write_text(text)
    if options.json:
        options.json.write_text(text)
    failed = [row["job"] for row in rows if row["verdict"] != "ok"]
    if failed or not rows:
        sys.stderr.write(f"failed jobs: {failed or 'all'}\n")
        return 1
    return 0


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
