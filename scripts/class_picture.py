"""The picture of ``scripts.class_table``: bars of accuracy and bytes, one pair of panels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

INK, FAINT = "#22262b", "#8a9099"
_ACCURACY, _UPLINK, _DOWNLINK = "#0068a8", "#c25100", "#e8b48c"


def draw(summary: Sequence[dict[str, Any]], target: Path) -> None:
    """Draws accuracy with its deviation over seeds, and beside it the bytes of both links.

    Args:
        summary: rows of ``scripts.class_table.summarise``.
        target: PNG to write.
    """
    figure = Figure(figsize=(9.0, 1.4 + 0.36 * len(summary)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(summary))
    values = np.array([100.0 * entry["accuracy"] for entry in summary])
    spread = np.array([100.0 * (entry["std"] or 0.0) for entry in summary])
    left.barh(places, values, xerr=spread, color=_ACCURACY, ecolor=INK, height=0.7, capsize=2)
    for place, value, off in zip(places, values, spread, strict=True):
        left.text(value + off + 1.0, place, f"{value:.1f}", va="center", fontsize=8, color=INK)
    left.set_xlim(0.0, 112.0)
    left.set_xlabel("accuracy after plug-in (%)", fontsize=9, color=INK)
    left.set_yticks(places, [entry["run"].replace("_", " ") for entry in summary])
    left.invert_yaxis()
    up, down = (
        np.array([entry[name] / 1e6 for entry in summary])
        for name in ("uplink_bytes", "downlink_bytes")
    )
    right.barh(places, up, color=_UPLINK, height=0.7, label="uplink")
    right.barh(places, down, left=up, color=_DOWNLINK, height=0.7, label="downlink")
    right.set_xlabel("bytes of all devices and rounds (MB)", fontsize=9, color=INK)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, frameon=False, fontsize=8)
    for axes in (left, right):
        axes.tick_params(length=0, labelsize=8, colors=INK)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
    figure.savefig(target, dpi=150)
