"""Pictures and table of a transfer matrix."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

_WORDS = {
    "mean_cosine": "mean embedding",
    "flat_cosine": "whole prompt",
    "euclid": "distance",
    "bits": "active neurons",
    "probe_loss": "probe loss",
    "untuned": "untuned",
    "early": "own, early",
    "chosen": "chosen source",
    "own": "own, at the end",
    "mean": "any source",
    "best_on_test_rows": "best source\n(hindsight)",
}


def matrix_of(result: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns accuracies [source, target], means over seeds; the diagonal is each domain's own."""
    names = list(result["domains"])
    total, count = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    for entry in result["entries"]:
        source, target = names.index(entry["source"]), names.index(entry["target"])
        for place, score in (((source, target), "score"), ((target, target), "own_score")):
            total[place] += entry[score]
            count[place] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def draw_matrix(result: Mapping[str, Any], target: Path) -> None:
    """Draws the heat map; columns are targets, a ring marks the source that was tuned further."""
    names, scores = list(result["domains"]), 100 * matrix_of(result)
    size = 2.6 + 0.62 * len(names)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(scores, cmap="viridis")
    middle = (np.nanmin(scores) + np.nanmax(scores)) / 2
    for (row, column), score in np.ndenumerate(scores):
        colour = "white" if score < middle else "black"
        weight = "bold" if row == column else "normal"
        axes.text(
            column, row, f"{score:.1f}", ha="center", va="center",
            color=colour, fontsize=8, fontweight=weight,
        )  # fmt: skip
    chosen = {(e["source"], e["target"]) for e in result["entries"] if e["is_chosen"]}
    for source, domain in chosen:
        place = names.index(domain), names.index(source)
        axes.plot(*place, "o", ms=26, mfc="none", mec="#c25100", mew=1.5)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title(
        "bold: tuned on the target itself; ring: lowest probe loss there, tuned on from it",
        loc="left",
        fontsize=9,
    )
    axes.set_xlabel("used on")
    axes.set_ylabel("tuned on")
    figure.colorbar(image, ax=axes, label="test accuracy in %", shrink=0.8)
    figure.savefig(target, dpi=150)


def draw_bars(result: Mapping[str, Any], target: Path) -> None:
    """Draws what transfers are worth, and what tells beforehand: one panel for each part."""
    summary, steps = result["summary"], result["summary"]["steps"]
    figure = Figure(figsize=(11.0, 6.6), layout="constrained")
    (score, kept, ranks), (harm, times, sizes) = figure.subplots(2, 3)
    accuracy = {_WORDS[name]: 100 * value for name, value in summary["accuracy"].items()}
    _bars(score, accuracy, "test accuracy in %, mean over targets")
    retained = {_WORDS[name]: 100 * value for name, value in summary["retention"].items()}
    _bars(kept, retained, "retention: accuracy in % of the own prompt's")
    given = {_WORDS[name]: value for name, value in summary["spearman"].items()}
    _bars(ranks, given, "rank correlation (Spearman) of each descriptor\nwith the accuracy brought")
    ranks.set_ylim(-1, 1)
    ranks.axhline(0, color="0.4", lw=0.8)
    rates = summary["negative_rate"]
    let_in = f"gate on ({summary['let_in']:.0%} pass)"
    _bars(
        harm,
        {"gate off": rates["gate_off"], let_in: rates["gate_on"]},
        "share of transfers whose test loss is above\nthat of the requester's early prompt",
    )
    harm.set_ylim(0, 1)
    _bars(
        times,
        {"random": steps["random"], "chosen": steps["chosen"]},
        "median steps to the random start's best loss\n"
        f"({steps['censored']} of {steps['targets']} targets never do from the chosen prompt)",
        missing="never",
    )
    kib = {name: value / 1024 for name, value in summary["bytes"].items()}
    _bars(sizes, kib, "KiB: a transfer, tuning a prompt of one's own")
    sizes.set_yscale("log")
    figure.savefig(target, dpi=150)


def _bars(axes: Any, values: Mapping[str, float | None], title: str, missing: str = "none") -> None:
    shown = [0.0 if value is None else value for value in values.values()]
    bars = axes.bar(range(len(values)), shown, color="#0068a8", width=0.6)
    words = [missing if value is None else _figure(value) for value in values.values()]
    axes.bar_label(bars, words, padding=2, fontsize=8)
    axes.set_xticks(range(len(values)), list(values), rotation=20, ha="right", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def show(result: Mapping[str, Any]) -> None:
    """Prints the table and the summary."""
    names, scores = list(result["domains"]), 100 * matrix_of(result)
    table = Table(title="test accuracy in %: tuned on (rows), used on (columns)")
    table.add_column("")
    for name in names:
        table.add_column(name[:8], justify="right")
    for name, row in zip(names, scores, strict=True):
        table.add_row(name, *(f"{score:.1f}" for score in row))
    console = Console()
    console.print(table)
    console.print(_summary_table(result["summary"]))


def _summary_table(summary: Mapping[str, Any]) -> Table:
    table = Table(title="means over targets and seeds; steps: medians", show_header=False)
    table.add_column("")
    table.add_column("")
    scales = {"accuracy": 100, "retention": 100, "negative_rate": 100, "bytes": 1 / 1024}
    titles = {
        "accuracy": "test accuracy in %",
        "retention": "retention in %",
        "negative_rate": "transfers that do harm, in %",
        "spearman": "rank correlation with the accuracy",
        "steps": "steps to the random start's best loss",
        "bytes": "KiB",
    }
    for part, title in titles.items():
        scale = scales.get(part, 1)
        words = [
            f"{_WORDS.get(name, name)} {'none' if value is None else _figure(scale * value)}"
            for name, value in summary[part].items()
        ]
        table.add_row(title, "; ".join(words).replace("\n", " "))
    table.add_row("transfers that pass the gate, in %", _figure(100 * summary["let_in"]))
    return table
