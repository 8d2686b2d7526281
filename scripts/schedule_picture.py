"""The picture of schedules: rounds of all cells, and who did what in one of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fl_app.report import canvas
from fl_app.report.canvas import FAINT, GRID, INK
from fl_app.report.gantt import COMPUTE, UPLINK, Bar, draw_bars
from fl_app.scheduling.joint import Cell, Schedule

Floats = NDArray[np.float64]

_STYLES = (
    ("#5c6068", "-"),
    ("#c25100", "--"),
    ("#9c4a80", "-."),
    ("#0068a8", "-"),
    ("#00795a", ":"),
)


def draw(
    rounds: Mapping[str, Floats],
    cell: Cell,
    classes: Sequence[str],
    found: Mapping[str, Schedule],
) -> bytes:
    """Returns a PNG file: distributions above, Gantt charts of one cell below.

    Args:
        rounds: [num_cells] seconds of a round by way.
        cell: the cell of the charts.
        classes: class of every device.
        found: the cell's schedules by way; the first and ``joint`` are drawn.
    """
    figure = Figure(figsize=(8.4, 7.2), facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.0, 1.2))
    top = _axes(figure.add_subplot(grid[0, :]))
    canvas.title(top, f"Length of a round in {len(next(iter(rounds.values())))} random cells")
    for (way, seconds), (colour, line) in zip(rounds.items(), _STYLES, strict=True):
        heights = np.arange(1, len(seconds) + 1) / len(seconds)
        width = 3.0 if line == ":" else 1.8
        top.step(
            np.sort(seconds), heights, where="post", color=colour, ls=line, lw=width, label=way
        )
    top.set_xscale("log")
    top.set_xlabel("seconds of a round", color=INK, fontsize=9)
    top.set_ylabel("share of cells", color=INK, fontsize=9)
    top.set_ylim(0.0, 1.0)
    top.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    top.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    top.tick_params(axis="x", which="minor", labelsize=9, labelcolor=INK)
    top.legend(frameon=False, fontsize=9, loc="lower right")
    baseline = next(iter(found))
    last = max(found[way].round_s for way in (baseline, "joint"))
    for column, way in enumerate((baseline, "joint")):
        axes = _axes(figure.add_subplot(grid[1, column]))
        canvas.title(axes, f"One cell: {way}")
        _gantt(axes, cell, classes, found[way])
        axes.set_xlim(0.0, 1.04 * last)
        if column == 0:
            axes.set_ylabel("block by depth from the loss, and its device", color=INK, fontsize=9)
    canvas.legend_below(figure, {"computing": COMPUTE, "uplink": UPLINK})
    return canvas.png(figure)


def _gantt(axes: Axes, cell: Cell, classes: Sequence[str], schedule: Schedule) -> None:
    blocks = np.arange(len(cell.bits))
    compute_s = cell.compute_s[schedule.assignment, blocks]
    airtime = schedule.split.finish_s - compute_s
    bars = [
        Bar(f"{block + 1}: {classes[device]} {device}", float(busy), float(sends))
        for block, device, busy, sends in zip(
            blocks, schedule.assignment, compute_s, airtime, strict=True
        )
    ]
    draw_bars(axes, bars, schedule.round_s)
    axes.set_xlabel("seconds", color=INK, fontsize=9)


def _axes(axes: Axes) -> Axes:
    """Gives axes the report's style."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes
