"""The picture of ``scripts.layout_table``: ranks by rule and block, one panel a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

INK = "#22262b"


def draw(summary: Sequence[dict[str, Any]], target: Path) -> None:
    """Draws mean ranks over seeds, rules down and blocks across, darker for a higher rank.

    Args:
        summary: rows of ``scripts.layout_table.summarise``.
        target: PNG to write.
    """
    tasks = list(dict.fromkeys(task for entry in summary for task in entry["tasks"]))
    widths = [max(len(e["tasks"][t]["ranks"]) for e in summary if t in e["tasks"]) for t in tasks]
    figure = Figure(
        figsize=(1.6 + 0.5 * sum(widths) + 0.4 * len(tasks), 1.3 + 0.42 * len(summary)),
        layout="constrained",
    )
    panels = figure.subplots(1, len(tasks), squeeze=False, width_ratios=widths)[0]
    for place, (task, width, axes) in enumerate(zip(tasks, widths, panels, strict=True)):
        ranks = np.full((len(summary), width), np.nan)
        for row, entry in enumerate(summary):
            if task in entry["tasks"]:
                ranks[row] = entry["tasks"][task]["ranks"]
        most = max(float(np.nanmax(ranks)), 1.0)
        axes.imshow(ranks, cmap="Blues", vmin=0.0, vmax=1.25 * most, aspect="auto")
        for row, column in np.argwhere(np.isfinite(ranks)):
            value = float(ranks[row, column])
            colour = "white" if value > 0.75 * most else INK
            text = f"{value:.1f}".removesuffix(".0")
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        axes.hlines(np.arange(1, len(summary)) - 0.5, -0.5, width - 0.5, color="white", lw=2)
        axes.vlines(np.arange(1, width) - 0.5, -0.5, len(summary) - 0.5, color="white", lw=2)
        names = [entry["rule"].replace("_", " ") for entry in summary] if place == 0 else []
        axes.set_yticks(range(len(names)), names)
        axes.set_xticks(range(width))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(task.replace("_", " "), fontsize=10, color=INK)
        axes.set_xlabel("block (0: nearest to the input)", fontsize=8, color=INK)
    figure.suptitle("LoRA rank of every block, mean over seeds", fontsize=10, color=INK)
    figure.savefig(target, dpi=150)
