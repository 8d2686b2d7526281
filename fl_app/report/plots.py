"""The report's plots: ladder, curves, traffic, devices, ranks and schedule, each as PNG bytes.

Importing this module imports matplotlib, which takes a second; only the end of a run does so.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fl_app.report import canvas
from fl_app.report.canvas import COLOURS, FAINT, INK
from fl_app.report.gantt import draw_schedule
from fl_app.report.grid import draw_grid
from fl_app.report.ranks import draw_ranks
from fl_app.report.text import (
    compare,
    direction,
    format_score,
    gap_words,
    human_bytes,
)
from fl_app.report.wording import Wording, wording_of
from fl_app.result import Metric, RunResult

_LINE_STYLES = {"frozen": ":", "federated_full": "--", "centralised": "-."}
_MARKERS = {"plug_in": "o", "emulator": "s"}


def draw_plots(result: RunResult) -> dict[str, bytes]:
    """Returns file name to PNG bytes; a plot without data is left out.

    Args:
        result: an ok or a failed result.

    Returns:
        Any of ``ladder.png``, ``curves.png``, ``traffic.png``, ``devices.png``, ``ranks.png`` and
        ``schedule.png``, in this order.
    """
    figures = {
        "ladder.png": _ladder(result),
        "curves.png": _curves(result),
        "traffic.png": _traffic(result),
        "devices.png": draw_grid(result),
        "ranks.png": draw_ranks(result),
        "schedule.png": draw_schedule(result),
    }
    return {name: canvas.png(figure) for name, figure in figures.items() if figure is not None}


def _ladder(result: RunResult) -> Figure | None:
    """Horizontal bars of the final figures, what plugging in gains and what gap is left."""
    metric, wording = result.metric, wording_of(result)
    ladder = wording.ladder
    values = [canvas.finite(result.final[rung.key]) for rung in ladder]
    top = max((value for value in values if value is not None), default=0.0)
    if top <= 0:
        return None
    figure, (axes,) = canvas.blank(0.8 + 0.5 * len(ladder))
    axes.barh(
        range(len(ladder)),
        [value or 0.0 for value in values],
        color=[COLOURS[rung.key] for rung in ladder],
        height=0.6,
    )
    for row, (rung, value) in enumerate(zip(ladder, values, strict=True)):
        axes.annotate(
            format_score(metric, result.final[rung.key]),
            (value or 0.0, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=FAINT if value is None else INK,
            style="italic" if value is None else "normal",
            weight="bold" if rung.key == "plug_in" else "normal",
        )
    by_key = {rung.key: value for rung, value in zip(ladder, values, strict=True)}
    own = [rung.key for rung in ladder].index("plug_in")
    gain = compare(metric, by_key.get("emulator"), by_key["plug_in"])
    gap = gap_words(metric, by_key["plug_in"], by_key["federated_full"])
    if gain is not None:
        _bracket(axes, 1.28 * top, own - 1, f"plugging in:\n{gain.removesuffix(' than')}")
    if gap is not None:
        _bracket(axes, 1.28 * top, own, f"{wording.gap}:\n{gap}")
    axes.set_yticks(range(len(ladder)), [rung.label for rung in ladder])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.9 * top)
    axes.xaxis.set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    figure.suptitle(
        canvas.literal(f"What each step is worth: {_words(metric)}"),
        x=0.01,
        ha="left",
        fontsize=11,
        fontweight="bold",
        color=INK,
    )
    return figure


def _bracket(axes: Axes, left: float, upper_row: int, words: str) -> None:
    """Ties a bar to the one below it, right of their values, and says how they differ."""
    right = 1.015 * left
    first, last = upper_row + 0.12, upper_row + 0.88
    axes.plot([left, right, right, left], [first, first, last, last], color=FAINT, linewidth=1)
    axes.annotate(
        words,
        (right, upper_row + 0.5),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color=INK,
        fontsize=9,
    )


def _curves(result: RunResult) -> Figure | None:
    """The metric per round, plugged in and on the emulator, beside the reference runs."""
    metric = result.metric
    rounds = [record.round for record in result.rounds]
    curves = {
        key: np.array([_number(record.metrics.get(key)) for record in result.rounds])
        for key in _MARKERS
    }
    curves = {key: line for key, line in curves.items() if np.isfinite(line).any()}
    if not curves:
        return None
    references = {key: canvas.finite(result.final[key]) for key in _LINE_STYLES}
    figure, (axes,) = canvas.blank(3.9)
    canvas.number_rounds(axes, rounds)
    if rows := result.config.get("strategy", {}).get("round_test_rows"):
        # The lines are measured on all rows; a sample's curve may end beside them.
        axes.set_xlabel(f"round (curves: a sample of {rows} test rows; lines: all test rows)")
    ends: dict[str, tuple[float, float]] = {}  # where each line ends: round, value
    for key, value in references.items():
        if value is not None:
            axes.axhline(value, color=COLOURS[key], linestyle=_LINE_STYLES[key], linewidth=1.5)
            ends[key] = (axes.get_xlim()[1], value)
    for key, line in curves.items():
        axes.plot(rounds, line, color=COLOURS[key], marker=_MARKERS[key], markersize=5, linewidth=2)
        last = int(np.flatnonzero(np.isfinite(line))[-1])
        ends[key] = (rounds[last], float(line[last]))
    shown = np.concatenate([*curves.values(), [value for _, value in ends.values()]])
    lowest, highest = float(np.nanmin(shown)), float(np.nanmax(shown))
    if not metric.higher_is_better and 0 < 4 * lowest < highest:
        axes.set_yscale("log")  # a start far off would flatten what matters
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(metric, value)))
    axes.margins(y=0.08)
    _label_ends(axes, metric, ends, wording_of(result))
    canvas.title(axes, f"Round by round: {_words(metric)}")
    return figure


def _label_ends(
    axes: Axes, metric: Metric, ends: Mapping[str, tuple[float, float]], wording: Wording
) -> None:
    """Names every line right of the axes, moved apart where lines end close together."""
    axes.get_ylim()  # settles the limits that the transform below reads
    to_axes = axes.transData + axes.transAxes.inverted()
    keys = sorted(ends, key=lambda key: ends[key][1])
    points = to_axes.transform([ends[key] for key in keys])  # [num_lines, 2]
    heights = canvas.spread(points[:, 1].tolist(), 0.075)
    for key, point, height in zip(keys, points.tolist(), heights, strict=True):
        axes.annotate(
            f"{wording.names[key]}  {format_score(metric, ends[key][1])}",
            point,
            xytext=(1.05, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=COLOURS[key],
            weight="bold" if key == "plug_in" else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": COLOURS[key],
                "linewidth": 0.8,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def _traffic(result: RunResult) -> Figure | None:
    """Bytes per round, stacked; a second panel magnifies what the one-time download dwarfs."""
    wording = wording_of(result)
    rows = result.ledger.get("per_round", [])
    rounds = [row["round"] for row in rows]
    emulator = np.array([row.get("emulator_bytes", 0) for row in rows], dtype=np.float64)
    adapters = np.array([row["downlink_bytes"] for row in rows], dtype=np.float64) - emulator
    uplink = np.array([row["uplink_bytes"] for row in rows], dtype=np.float64)
    usual = float((adapters + uplink).max(initial=0.0))
    spike = float(emulator.max(initial=0.0))
    if usual + spike == 0:
        return None
    is_dwarfed = 0 < 4 * usual < spike
    figure, panels = canvas.blank(5.4 if is_dwarfed else 3.6, 2 if is_dwarfed else 1)
    parts = [
        (f"uplink: {wording.uplink}", uplink, COLOURS["federated_full"]),
        (f"downlink: {wording.downlink}", adapters, COLOURS["plug_in"]),
        (f"downlink: {wording.piece} (once per device)", emulator, COLOURS["emulator"]),
    ]
    for axes, shown in zip(panels, (parts if spike else parts[:2], parts[:2]), strict=False):
        floor = np.zeros(len(rows))
        for _, heights, colour in shown:
            axes.bar(rounds, heights, bottom=floor, color=colour, width=0.7)
            floor += heights
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _byte_tick(value)))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    canvas.title(panels[0], "Bytes per round, all devices together")
    if is_dwarfed:
        canvas.title(panels[1], f"The same without the {wording.piece}")
    canvas.number_rounds(panels[-1], rounds)
    canvas.legend_below(figure, {words: colour for words, heights, colour in parts if any(heights)})
    return figure


def _words(metric: Metric) -> str:
    return f"{metric.name} ({direction(metric)})"


def _tick(metric: Metric, value: float) -> str:
    return f"{100 * value:.4g} %" if metric.name == "accuracy" else f"{value:g}"


def _byte_tick(value: float) -> str:
    return human_bytes(value).replace(".0 ", " ")


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
