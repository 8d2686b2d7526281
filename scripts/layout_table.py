"""Layout rules at equal parameters: ``python -m scripts.layout_table``.

Runs every rule on every task with every seed, each run into a folder of its own below ``--out``; a
run that is there already is not made again, so the command may be stopped and given again. All
devices hold the whole model (nothing is compressed, so nothing but the layout differs), and every
block but one has LoRA; a split needs one in the middle. Every layout has as many parameters as the
uniform one of ``--rank``, with the sensitivity rule in its last rounds. The rule channel_aware is
not among them: its parameters follow the channel.

Writes ``layout_table.json`` and ``layout_ranks.png``: mean ranks over seeds, block by block. The
table's last column says how much of the error uniform LoRA leaves a rule takes away, mean over
tasks: the error is 1 - accuracy, or the logarithm of the perplexity. Data and models must lie below
DEFT_ASSETS (or ``--assets DIR``); tasks whose data are not there are left out, and named.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fl_app.result import RunResult
from scripts.layout_picture import draw
from scripts.runs import finished, made

Row = dict[str, Any]

RULES: dict[str, tuple[str, ...]] = {
    "uniform": ("peft=lora",),
    "linear_up": ("peft=lora_linear_up",),
    "linear_down": ("peft=lora_linear_down",),
    "u_shape": ("peft=lora_u_shape",),
    "top_n": ("peft=lora_top_n", "peft.layout.num_tuned=2"),
    "sensitivity": ("peft=lora_sensitivity",),
    "cost_aware": ("peft=lora_cost_aware",),
}
"""Rule to overrides; all are priced in parameters alone."""
ADAPTIVE = ("sensitivity", "cost_aware")

_MINILM = ("strategy.emulator.left=2", "strategy.emulator.middle=-1", "strategy.emulator.right=3")
_DECODER = ("strategy.emulator.left=5", "strategy.emulator.middle=-1", "strategy.emulator.right=6")
TASKS: dict[str, tuple[str, ...]] = {
    "sst2": ("experiment=sst2_emulator", *_MINILM),
    "activities_isic4": (
        "experiment=sst2_emulator",
        "data.path=${assets}/activities_isic4",
        "data.label_column=section",
        *_MINILM,
    ),
    "t0_tasks": ("experiment=t0_emulator", *_DECODER),
}
"""Task to overrides; the name is that of its folder among the assets."""


def words_of(
    task: str, rule: str, seed: int, options: argparse.Namespace, tasks: Mapping[str, Sequence[str]]
) -> list[str]:
    """Returns the overrides of one run; ``--overrides`` come last and win."""
    steps = [f"finetune.max_steps={n}" for n in _steps_of(task, options)]
    # What goes with a rule must be chosen before its options; the group comes first in any order.
    return [
        *tasks[task],
        *RULES[rule],
        *([f"assets={options.assets}"] if options.assets else []),
        f"peft.rank={options.rank}",
        f"strategy.num_rounds={options.rounds}",
        *steps,
        "strategy.round_test_rows=1",
        "strategy.references=[]",
        f"seed={seed}",
        *options.overrides,
    ]


def _steps_of(task: str, options: argparse.Namespace) -> list[int]:
    """Returns the local steps of a task, or nothing where they are the task's own."""
    match options.steps:
        case [] | [_] as alike:
            return list(alike)
        case _:
            return [options.steps[options.tasks.index(task)]]


def row_of(task: str, rule: str, seed: int, result: RunResult) -> Row:
    """Returns the figures of one run."""
    layout = result.layout or {}
    return {
        "task": task,
        "rule": rule,
        "seed": seed,
        "metric": result.metric.name,
        "higher_is_better": result.metric.higher_is_better,
        "plug_in": result.final["plug_in"],
        "ranks": layout["server"],
        "params": layout["params"],
        "uplink_bytes": result.ledger["uplink_bytes"],
        "score_bytes": result.ledger["score_bytes"],
        "seconds": result.seconds,
    }


def error_of(row: Row) -> float:
    """Returns the error of a run: 1 - accuracy, or the logarithm of the perplexity."""
    value = float(row["plug_in"])
    return 1.0 - value if row["higher_is_better"] else math.log(value)


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Returns one row per rule: mean and sample deviation per task, and the gain over uniform.

    ``gain`` is the mean over tasks of the mean over seeds of 1 - error / error of uniform with the
    same seed; ``gain_std`` its deviation over the seeds that all tasks have, None below two.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    found = {(row["task"], row["rule"], row["seed"]): row for row in rows}
    summary = []
    for rule in dict.fromkeys(row["rule"] for row in rows):
        entry: Row = {"rule": rule, "tasks": {}}
        shares: dict[str, list[float]] = {}
        by_seed: dict[int, list[float]] = {}
        for task in tasks:
            own = [row for row in rows if (row["task"], row["rule"]) == (task, rule)]
            if not own:
                continue
            values = [row["plug_in"] for row in own]
            entry["tasks"][task] = {
                "metric": own[0]["metric"],
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "seeds": len(values),
                "params": sorted({row["params"] for row in own}),
                "ranks": np.mean([row["ranks"] for row in own], axis=0).tolist(),
                "uplink_bytes": statistics.fmean(row["uplink_bytes"] for row in own),
            }
            pairs = [(row, found.get((task, "uniform", row["seed"]))) for row in own]
            for row, other in pairs:
                if other is not None:
                    share = 1.0 - error_of(row) / error_of(other)
                    shares.setdefault(task, []).append(share)
                    by_seed.setdefault(row["seed"], []).append(share)
        whole = [statistics.fmean(own) for own in by_seed.values() if len(own) == len(tasks)]
        complete = len(shares) == len(tasks)
        means = [statistics.fmean(own) for own in shares.values()]
        entry["gain"] = statistics.fmean(means) if complete else None
        entry["gain_std"] = statistics.stdev(whole) if len(whole) > 1 else None
        summary.append(entry)
    return summary


def show(summary: Sequence[Row], console: Console) -> None:
    """Prints the table, and whether an adaptive rule beats uniform on the mean of tasks."""
    tasks = list(dict.fromkeys(task for entry in summary for task in entry["tasks"]))
    table = Table(title="after plug-in, mean +- standard deviation over seeds, equal parameters")
    for column in ("rule", *tasks, "parameters", "error less than uniform by"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for entry in summary:
        cells = [_cell(entry["tasks"].get(task)) for task in tasks]
        sizes = [" ".join(map(str, one["params"])) for one in entry["tasks"].values()]
        gain = "" if entry["gain"] is None else f"{100 * entry['gain']:+.1f} %"
        if entry["gain_std"] is not None:
            gain += f" +- {100 * entry['gain_std']:.1f}"
        table.add_row(entry["rule"], *cells, " / ".join(sizes), gain)
    console.print(table)
    known = [e for e in summary if e["rule"] in ADAPTIVE and e["gain"] is not None]
    if known:
        best = max(known, key=lambda entry: float(entry["gain"]))
        verb = "beats" if best["gain"] > 0 else "does not beat"
        console.print(
            f"the best adaptive rule, {best['rule']}, {verb} uniform on the mean of tasks"
        )


def _cell(one: Row | None) -> str:
    if one is None:
        return "-"
    scale = 100.0 if one["metric"] == "accuracy" else 1.0
    spread = "" if one["std"] is None else f" +- {scale * one['std']:.2f}"
    return f"{scale * one['mean']:.2f}{spread}" + (" %" if scale > 1.0 else "")


def main(arguments: list[str] | None = None, tasks: Mapping[str, Sequence[str]] = TASKS) -> int:
    """Runs the grid; returns the number of failed runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--assets", default=os.environ.get("DEFT_ASSETS", ""), metavar="DIR")
    parser.add_argument("--tasks", nargs="+", choices=list(tasks), default=list(tasks))
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--steps",
        nargs="+",
        type=int,
        default=[],
        help="local steps a round, one number or one for each of --tasks; default: the task's own",
    )
    parser.add_argument("--rank", type=int, default=4, help="of the uniform layout")
    parser.add_argument("--out", type=Path, default=Path("outputs/layout_table"))
    parser.add_argument("--overrides", nargs="*", default=[], help="more overrides of the job")
    options = parser.parse_args(arguments)
    if len(options.steps) > 1 and len(options.steps) != len(options.tasks):
        parser.error(f"--steps {options.steps}: give one number, or one for each of --tasks")
    console = Console(width=max(120, shutil.get_terminal_size().columns))
    present = []
    for task in options.tasks:
        if tasks is TASKS and not (Path(options.assets) / task).is_dir():
            console.print(f"skipped: no {task} in '{options.assets}'; set DEFT_ASSETS or --assets")
        else:
            present.append(task)
    if not present:
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    failed = 0
    # Seed by seed, so that a grid that is stopped has whole tables of the first seeds.
    cells = [(t, r, s) for s in options.seeds for t in present for r in options.rules]
    for number, (task, rule, seed) in enumerate(cells, start=1):
        words = words_of(task, rule, seed, options, tasks)
        folder = (options.out / f"{task}-{rule}-{seed}").resolve()
        began = time.monotonic()
        result = finished(folder, words) or made(words, folder)
        spent = time.monotonic() - began
        console.print(f"{number}/{len(cells)} {task} {rule} seed {seed}: {spent:.0f} s")
        if result is None:
            failed += 1
            continue
        rows.append(row_of(task, rule, seed, result))
        content = {"summary": summarise(rows), "runs": rows}
        target = options.out / "layout_table.json"
        target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if rows:
        summary = summarise(rows)
        draw(summary, options.out / "layout_ranks.png")
        show(summary, console)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
