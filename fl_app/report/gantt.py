"""Gantt charts of rounds: who computes and sends how long, and when all have ended."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fl_app.report import canvas
from fl_app.report.canvas import GRID, INK
from fl_app.result import RunResult

COMPUTE, UPLINK = "#757b85", "#0068a8"
_MOST_NUMBERS = 40
"""Bars beyond which words inside them would be finer than the print."""


class Bar(NamedTuple):
    """One device's part of a round.

    Attributes:
        label: at the left end.
        compute_s: seconds of computing.
        uplink_s: seconds of the uplink, which follows.
        words: inside the bar.
    """

    label: str
    compute_s: float
    uplink_s: float
    words: str = ""


def draw_bars(axes: Axes, bars: Sequence[Bar], round_s: float, *, scale: float = 1.0) -> None:
    """Draws bars from top to bottom, and a line where the round ends.

    Args:
        axes: where.
        bars: at least one.
        round_s: end of the round in s.
        scale: units of the axis in a second.
    """
    places = range(len(bars))
    computing = [scale * bar.compute_s for bar in bars]
    sending = [scale * bar.uplink_s for bar in bars]
    axes.barh(places, computing, color=COMPUTE, height=0.7)
    axes.barh(places, sending, left=computing, color=UPLINK, height=0.7)
    axes.axvline(scale * round_s, color=INK, linewidth=1.0, linestyle="--")
    if len(bars) <= _MOST_NUMBERS:
        for place, bar, first, second in zip(places, bars, computing, sending, strict=True):
            middle = first / 2 if first > second else first + second / 2
            style: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "fontsize": 8,
                "color": "white",
            }
            axes.text(middle, place, canvas.literal(bar.words), fontweight="bold", **style)
    every = -(-len(bars) // _MOST_NUMBERS)
    axes.set_yticks(list(places)[::every], [canvas.literal(bar.label) for bar in bars][::every])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=GRID, linewidth=0.8)


def draw_schedule(result: RunResult) -> Figure | None:
    """Returns devices down, the seconds of the last round across, tuned blocks in the bars.

    None without a schedule.
    """
    schedule = result.schedule
    if schedule is None or not schedule["rounds"]:
        return None
    last = schedule["rounds"][-1]
    turns, round_s = last["turns"], last["seconds"]
    figure, (axes,) = canvas.blank(min(1.9 + 0.26 * len(turns), 9.0))
    bars = [
        Bar(
            str(turn["device"]),
            turn["compute_s"],
            turn["uplink_s"],
            " ".join(map(str, turn["blocks"])),
        )
        for turn in turns
    ]
    scale, unit = (1.0, "seconds") if round_s >= 1.0 else (1e3, "milliseconds")
    draw_bars(axes, bars, round_s, scale=scale)
    axes.set_xlim(0.0, 1.04 * scale * round_s)
    axes.set_xlabel(unit, color=INK, fontsize=9)
    axes.set_ylabel("device", color=INK, fontsize=9)
    canvas.title(
        axes, f"Round {last['round']} by schedule {schedule['way']}: who tunes which block"
    )
    canvas.legend_below(figure, {"computing": COMPUTE, "uplink": UPLINK})
    return figure
