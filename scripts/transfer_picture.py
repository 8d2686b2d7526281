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
    axes.set_xlabel("used on")
    axes.set_ylabel("tuned on")
    figure.colorbar(image, ax=axes, label="test accuracy in %", shrink=0.8)
    figure.savefig(target, dpi=150)


def draw_bars(result: Mapping[str, Any], target: Path) -> None:
    """Draws rank correlations, negative transfer, and steps until the random start's best loss."""
    summary = result["summary"]
    figure = Figure(figsize=(10.4, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
    ranks = {_WORDS[name]: value for name, value in summary["spearman"].items()}
    _bars(left, ranks, "Spearman correlation with\nthe transfer's accuracy")
    left.set_ylim(-1, 1)
    left.axhline(0, color="0.4", lw=0.8)
    rates = {
        "gate off": summary["negative_rate"]["gate_off"],
        "gate on": summary["negative_rate"]["gate_on"],
    }
    _bars(middle, rates, "share of transfers that do harm")
    middle.set_ylim(0, 1)
    steps = {"random": summary["steps"]["random"], "chosen": summary["steps"]["chosen"]}
    censored, targets = summary["steps"]["censored"], summary["steps"]["targets"]
    title = (
        f"median steps to the random start's\nbest loss ({censored} of {targets} never reach it)"
    )
    _bars(right, steps, title, missing="never")
    figure.savefig(target, dpi=150)


def _bars(axes: Any, values: Mapping[str, float | None], title: str, missing: str = "none") -> None:
    shown = [0.0 if value is None else value for value in values.values()]
    bars = axes.bar(range(len(values)), shown, color="#0068a8", width=0.6)
    words = [missing if value is None else f"{value:.3g}" for value in values.values()]
    axes.bar_label(bars, words, padding=2, fontsize=8)
    axes.set_xticks(range(len(values)), list(values), rotation=20, ha="right", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def show(result: Mapping[str, Any]) -> None:
    """Prints the table and the summary."""
    names, scores = list(result["domains"]), 100 * matrix_of(result)
    table = Table(title="test accuracy in %: tuned on (rows), used on (columns)")
    table.add_column("")
    for name in names:
        table.add_column(name[:8], justify="right")
    for name, row in zip(names, scores, strict=True):
        table.add_row(name, *(f"{score:.1f}" for score in row))
    console, summary = Console(), result["summary"]
    console.print(table)
    for name, part in summary.items():
        console.print(f"{name}: {part}", highlight=False)
