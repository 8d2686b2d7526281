"""Metric against bytes of many runs: points, means over seeds, table and plot."""

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from fl_app.result import RunResult

Row = dict[str, Any]

_MARKS = "os^Dv<P>X"


def points_of(result: RunResult) -> list[Row]:
    """Returns one point per round: metric, and bytes of that round and of all so far.

    Round 0, before anything is sent, has 0 bytes. ``bytes`` counts both links, all devices, and
    what devices download once.
    """
    booked = {int(row["round"]): row for row in result.ledger["per_round"]}
    points, total = [], 0
    for record in result.rounds:
        row = booked.get(record.round, {})
        up, down = int(row.get("uplink_bytes", 0)), int(row.get("downlink_bytes", 0))
        total += up + down
        points.append(
            {
                "round": record.round,
                "metric": record.metrics.get("plug_in"),
                "uplink_bytes": up,
                "downlink_bytes": down,
                "bytes": total,
                "seconds": record.seconds,
            }
        )
    return points


def row_of(name: str, result: RunResult) -> Row:
    """Returns what is kept of one run."""
    return {
        "configuration": name,
        "seed": result.seed,
        "metric": result.metric.name,
        "higher_is_better": result.metric.higher_is_better,
        "final": result.final["plug_in"],
        "once_bytes": int(result.ledger["emulator_bytes"]),
        "dropped": sum(len(d) for record in result.rounds for d in record.dropped.values()),
        "points": points_of(result),
    }


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Returns means over seeds for every configuration, and for each of its rounds.

    ``at_equal_bytes`` is the metric after the last round that ends within ``budget_bytes``: all
    that emulator download sends in the same number of rounds, or without it the cheapest
    configuration; None where not even one round fits.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["configuration"], []).append(row)
    totals = {
        name: statistics.fmean(row["points"][-1]["bytes"] for row in members)
        for name, members in groups.items()
    }
    budget = totals.get("emulator", min(totals.values(), default=0.0))
    summary = []
    for name, members in groups.items():
        curve = [
            _mean_point([points[i] for points in (row["points"] for row in members)])
            for i in range(min(len(row["points"]) for row in members))
        ]
        finals = [row["final"] for row in members]
        within = [p["metric"] for p in curve if 0 < p["bytes"] <= budget]
        summary.append(
            {
                "configuration": name,
                "seeds": len(members),
                "final": statistics.fmean(finals),
                "std": statistics.stdev(finals) if len(finals) > 1 else None,
                "bytes": totals[name],
                "once_bytes": statistics.fmean(row["once_bytes"] for row in members),
                "dropped": sum(row["dropped"] for row in members),
                "at_equal_bytes": within[-1] if within else None,
                "budget_bytes": budget,
                "curve": curve,
            }
        )
    return summary


def _mean_point(points: Sequence[Row]) -> Row:
    """Returns the mean over seeds of one round's points, and the metric's deviation."""
    metrics = [p["metric"] for p in points if p["metric"] is not None]
    mean: Row = {
        key: statistics.fmean(p[key] for p in points)
        for key in ("round", "uplink_bytes", "downlink_bytes", "bytes", "seconds")
    }
    mean["metric"] = statistics.fmean(metrics) if metrics else None
    mean["std"] = statistics.stdev(metrics) if len(metrics) > 1 else None
    return mean


def show(summary: Sequence[Row], metric: str) -> None:
    """Prints the table: at equal rounds and at equal bytes."""
    table = Table(title=f"{metric} (plug-in) and bytes of all devices, means over seeds")
    for column in (
        "configuration",
        "all test rows",
        "last round",
        "at equal bytes",
        "once, MB",
        "up, MB a round",
        "down, MB a round",
        "total, MB",
        "s a round",
        "seeds",
    ):
        table.add_column(column, justify="right")
    for entry in summary:
        rounds = entry["curve"][1:]
        once = entry["once_bytes"] / len(rounds)
        up = statistics.fmean(p["uplink_bytes"] for p in rounds)
        down = statistics.fmean(p["downlink_bytes"] for p in rounds) - once
        spread = "" if entry["std"] is None else f" +- {entry['std']:.4f}"
        table.add_row(
            entry["configuration"],
            f"{entry['final']:.4f}{spread}",
            _number(rounds[-1]["metric"]),
            _number(entry["at_equal_bytes"]),
            *(f"{size / 1e6:,.3f}" for size in (entry["once_bytes"], up, down, entry["bytes"])),
            f"{statistics.fmean(p['seconds'] for p in rounds):.1f}",
            str(entry["seeds"]),
        )
    console = Console(width=max(120, shutil.get_terminal_size().columns))
    console.print(table)
    if summary:
        console.print(f"equal bytes: within {summary[0]['budget_bytes'] / 1e6:,.3f} MB")


def draw(summary: Sequence[Row], metric: str, target: Path) -> None:
    """Draws the metric against bytes so far, one line per configuration, a mark per round."""
    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for place, entry in enumerate(summary):
        curve = [p for p in entry["curve"] if p["bytes"] > 0 and p["metric"] is not None]
        axes.errorbar(
            [p["bytes"] / 1e6 for p in curve],
            [p["metric"] for p in curve],
            yerr=[p["std"] or 0.0 for p in curve],
            marker=_MARKS[place % len(_MARKS)],
            ms=5,
            lw=1.4,
            capsize=3,
            color="0.35" if entry["configuration"] == "emulator" else f"C{place}",
            ls="--" if entry["configuration"] == "emulator" else "-",
            label=entry["configuration"],
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("MB sent so far, up and down, all devices")
    axes.set_ylabel(f"{metric} of the plug-in after each round")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(target, dpi=150)


def save(rows: Sequence[Row], left_out: Mapping[str, str], target: Path) -> None:
    """Writes all runs, their summary, and what was left out for which reason."""
    content = {"summary": summarise(rows), "runs": list(rows), "left_out": dict(left_out)}
    target.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
