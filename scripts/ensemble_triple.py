"""Mean member, best member, ensemble (Lester et al. 2021): ``python -m scripts.ensemble_triple``.

For every task and seed, members are tuned once (``scripts.ensemble_members``); an ensemble of k is
measured on windows of k members in a circle, so every member counts equally often at every k and
the mean member is the same throughout. Classification gives accuracy; the decoder gives perplexity,
and for ``vote`` the share of completions right to the letter. ``best`` is chosen on the test rows,
as in the paper, so it flatters members. Weights, attention and fusion are fitted on held-out public
rows, the latter two by the code and on the rows of a federation's server; fusion costs passes of
its own for every window, so it is measured on the first ones alone (``--fusion-windows``).
Writes ``triple.json`` and ``triple.png``; every finished task and seed is kept, and not made again.
Needs DEFT_ASSETS (or ``--assets DIR``) with sst2, trec, agnews, t0_tasks and models.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fl_app.prompts.batched import Tensors, log_probabilities, tensors_of
from scripts.ensemble_combine import Spoken, by_class, by_token
from scripts.ensemble_fitted import fusion_seconds
from scripts.ensemble_members import TASKS, Prepared, Setting, prepared, setting_of, tuned_members
from scripts.ensemble_picture import draw_triple

Row = dict[str, Any]
_QUERIES = 15


def run_cell(setting: Setting, ks: Sequence[int], folder: Path, fusion_windows: int = 3) -> Row:
    """Tunes and measures one task with one seed, or reads what an earlier run left.

    Args:
        setting: the task and the seed.
        ks: sizes of ensembles, each at most the setting's members.
        folder: where members and results are kept.
        fusion_windows: windows of each k > 1 that fusion is measured on, >= 1.

    Returns:
        ``rows`` (one per combiner and k), ``latency`` (one per k), ``members`` (each one's
        measure) and ``seconds``.
    """
    place = folder / f"cell-{setting.task}-seed{setting.seed}.json"
    facts = _facts(setting, ks, fusion_windows)
    if place.exists() and (known := json.loads(place.read_text())).get("facts") == facts:
        content: Row = known
        return content
    began = time.monotonic()
    held = prepared(setting)
    members = [tensors_of(m) for m in tuned_members(setting, held, folder / "members")]
    how = by_class if held.bench.task.higher_is_better else by_token
    rows, alone = how(Spoken(held, members, setting.seed, fusion_windows), ks)
    cell = {
        "facts": facts,
        "task": setting.task,
        "seed": setting.seed,
        "members": alone,
        "rows": [{"task": setting.task, "seed": setting.seed, **row} for row in rows],
        "latency": latency(held, members, ks),
        "bytes_per_member": 4 * sum(t.numel() for t in _tensors(members[0])),
        "seconds": time.monotonic() - began,
    }
    beside = place.with_suffix(".part")
    beside.write_text(json.dumps(cell, indent=1, allow_nan=False), encoding="utf-8")
    beside.replace(place)
    return cell


def _facts(setting: Setting, ks: Sequence[int], fusion_windows: int) -> Row:
    """Returns what a kept cell must have been made with to be taken for this one."""
    facts: Row = {"words": setting.words(), "steps": setting.steps, "ks": list(ks)}
    if "model.task=causal_lm" in setting.overrides:
        facts["weights"] = "summed over tokens"  # cells from before weighed mean losses
    else:  # cells from before fitted attention on all public rows, and had no fusion
        facts["fits"] = "as the server's"
        facts["fusion_windows"] = fusion_windows
    return facts


def latency(held: Prepared, members: Sequence[Tensors], ks: Sequence[int]) -> list[Row]:
    """Times one query of k members in one pass; medians in seconds, over the same few texts.

    ``fusion_seconds`` is that of fusion, which passes each text once; None where it is not for.
    """
    bench = held.bench
    queries = range(min(_QUERIES, len(bench.test)))
    found = []
    for k in ks:
        seconds = []
        with torch.inference_mode():
            for i in queries:
                batch = bench.task.batch(bench.test, [i])
                began = time.perf_counter()
                log_probabilities(bench.full.bare_model, members[:k], batch)
                seconds.append(time.perf_counter() - began)
        is_fused = k > 1 and bench.task.higher_is_better
        found.append(
            {
                "k": k,
                "seconds": statistics.median(seconds),
                "fusion_seconds": fusion_seconds(held, members[:k], queries) if is_fused else None,
                "queries": len(seconds),
            }
        )
    return found


def summarise(cells: Sequence[Row]) -> list[Row]:
    """Returns mean and sample standard deviation over seeds per task, metric, combiner and k."""
    groups: dict[tuple[str, str, str, int], list[Row]] = {}
    for row in (row for cell in cells for row in cell["rows"]):
        names = row["task"], row["metric"], row["combiner"], row["k"]
        groups.setdefault(names, []).append(row)
    summary = []
    for group, rows in groups.items():
        entry: Row = dict(zip(("task", "metric", "combiner", "k"), group, strict=True))
        for key in ("member_mean", "member_best", "ensemble"):
            entry[key] = statistics.fmean(row[key] for row in rows)
        gains = [_gain(row) for row in rows]
        entry["gain"] = statistics.fmean(gains)
        entry["gain_std"] = statistics.stdev(gains) if len(gains) > 1 else None
        entry["seeds"] = len(rows)
        entry["windows"] = sum(row["windows"] for row in rows)
        entry["failed"] = sum(row.get("failed", 0) for row in rows)
        summary.append(entry)
    return summary


def bars(summary: Sequence[Row], k: int) -> list[Row]:
    """Returns, per combiner, gain over mean and best member on the mean of tasks, in points.

    Shares alone (accuracy, completions right to the letter) have points; perplexity has not.
    """
    found = []
    shares = [e for e in summary if e["k"] == k and e["metric"] != "perplexity"]
    for combiner in dict.fromkeys(entry["combiner"] for entry in shares):
        own = [entry for entry in shares if entry["combiner"] == combiner]
        over = {
            key: 100 * statistics.fmean(entry["ensemble"] - entry[key] for entry in own)
            for key in ("member_mean", "member_best")
        }
        found.append(
            {
                "combiner": combiner,
                "k": k,
                "tasks": [entry["task"] for entry in own],
                "over_mean_points": over["member_mean"],
                "over_best_points": over["member_best"],
                "reached": over["member_best"] >= 0 and over["member_mean"] >= 0.8,
            }
        )
    return found


def show(summary: Sequence[Row], verdicts: Sequence[Row], latencies: Sequence[Row]) -> None:
    """Prints the tables."""
    console = Console(width=100)
    table = Table(title="Lester's triple; shares in %, mean over seeds and windows")
    for column in ("task", "metric", "combiner", "k", "mean member", "best", "ensemble", "gain"):
        table.add_column(column, justify="right")
    for e in summary:
        scale = 1 if e["metric"] == "perplexity" else 100
        spread = "" if e["gain_std"] is None else f" +- {e['gain_std']:.2f}"
        figures = [f"{scale * e[key]:.2f}" for key in ("member_mean", "member_best", "ensemble")]
        failed = f" (mean in {e['failed']}/{e['windows']})" if e["failed"] else ""
        names = (e["task"], e["metric"], e["combiner"] + failed, str(e["k"]))
        table.add_row(*names, *figures, f"{e['gain']:+.2f}{spread}")
    console.print(table)
    table = Table(title="mean of tasks, points")
    for column in ("combiner", "k", "over the mean member", "over the best", "bar reached"):
        table.add_column(column, justify="right")
    for v in verdicts:
        over = f"{v['over_mean_points']:+.2f}", f"{v['over_best_points']:+.2f}"
        table.add_row(v["combiner"], str(v["k"]), *over, "yes" if v["reached"] else "no")
    console.print(table)
    table = Table(title="one query, all members in one pass, one thread")
    for column in ("task", "k", "ms", "fusion, ms"):
        table.add_column(column, justify="right")
    for entry in latencies:
        times = entry["seconds"], entry["fusion_seconds"]
        words = ["" if time is None else f"{1000 * time:.1f}" for time in times]
        table.add_row(entry["task"], str(entry["k"]), *words)
    console.print(table)


def save(cells: Sequence[Row], output: Path, assets: str) -> tuple[list[Row], list[Row], list[Row]]:
    """Writes ``triple.json`` and ``triple.png``; returns summary, verdicts and latencies."""
    summary = summarise(cells)
    ks = sorted({entry["k"] for entry in summary})
    verdicts = [verdict for k in ks if k > 1 for verdict in bars(summary, k)]
    latencies = _latencies(cells)
    content = {"summary": summary, "bars": verdicts, "latency": latencies, "cells": list(cells)}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    # the folder of the data is of no interest to a reader
    (output / "triple.json").write_text(text.replace(assets, "$DEFT_ASSETS"), encoding="utf-8")
    draw_triple(summary, latencies, output / "triple.png")
    return summary, verdicts, latencies


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--assets", default=os.environ.get("DEFT_ASSETS", ""), metavar="DIR")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ks", default="1,3,5,9")
    parser.add_argument("--steps", type=int, default=200, help="of every member")
    parser.add_argument("--test-rows", type=int, default=800, help="of every task, at most")
    parser.add_argument(
        "--fusion-windows", type=int, default=3, help="windows of each k for fusion, at least 1"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/triple"))
    parser.add_argument("overrides", nargs="*", help="more, e.g. peft.num_tokens=10")
    chosen = parser.parse_intermixed_args(words)
    if chosen.fusion_windows < 1:
        parser.error(f"--fusion-windows={chosen.fusion_windows} must be at least 1")
    return chosen


def main(words: Sequence[str] | None = None) -> int:
    """Runs the grid; returns the exit code."""
    chosen = parse(words)
    tasks, ks = chosen.tasks.split(","), [int(k) for k in chosen.ks.split(",")]
    if unknown := set(tasks) - set(TASKS):
        print(f"--tasks: {', '.join(sorted(unknown))} unknown; choose of {', '.join(TASKS)}")
        return 2
    if not chosen.assets or not Path(chosen.assets).is_dir():
        print("skipped: set DEFT_ASSETS or --assets to a folder with data and models")
        return 0
    torch.set_num_threads(1)
    chosen.output.mkdir(parents=True, exist_ok=True)
    cells: list[Row] = []
    for seed in map(int, chosen.seeds.split(",")):
        for task in tasks:
            setting = setting_of(
                task,
                assets=Path(chosen.assets),
                seed=seed,
                num_members=max(ks),
                steps=chosen.steps,
                more=(f"data.limit_test={chosen.test_rows}", *chosen.overrides),
            )
            cells.append(run_cell(setting, ks, chosen.output, chosen.fusion_windows))
            print(f"{task} seed {seed}: {cells[-1]['seconds']:.0f} s", flush=True)
            tables = save(cells, chosen.output, str(chosen.assets))
    show(*tables)
    print(f"results in {chosen.output}")
    return 0


def _latencies(cells: Sequence[Row]) -> list[Row]:
    """Returns medians over seeds of the latencies of each task and k."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for cell in cells:
        for entry in cell["latency"]:
            groups.setdefault((cell["task"], entry["k"]), []).append(entry)
    found = []
    for (task, k), entries in groups.items():
        times: Row = {}
        for key in ("seconds", "fusion_seconds"):
            known = [e[key] for e in entries if e.get(key) is not None]
            times[key] = statistics.median(known) if known else None
        found.append({"task": task, "k": k, **times})
    return found


def _gain(row: Row) -> float:
    """Points for shares; per cent of perplexity taken off."""
    if row["metric"] == "perplexity":
        return float(100 * (1 - row["ensemble"] / row["member_mean"]))
    return float(100 * (row["ensemble"] - row["member_mean"]))


def _tensors(member: Tensors) -> list[torch.Tensor]:
    return [member.prompt, *member.head.values()]


if __name__ == "__main__":
    raise SystemExit(main())
