"""Blank figures in the report's style, and what all plots need of one.

Figures are objects drawn by the Agg canvas: no display, no global pyplot state. Colours are
darkened from the Okabe-Ito palette, whose hues stay apart for colour-blind readers; line styles,
markers and letters say the same once more.
"""

import io
import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

INK, FAINT, GRID = "#22262b", "#6b7078", "#e3e5e8"
COLOURS: Mapping[str, str] = {
    "frozen": "#5c6068",
    "emulator": "#c25100",
    "plug_in": "#0068a8",
    "federated_full": "#00795a",
    "centralised": "#9c4a80",
}
_WIDTH = 8.4  # inches; at _DPI about the width of the report's column on a dense display
_DPI = 150


def blank(height: float, num_panels: int = 1, num_columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Returns a figure of the report's width with panels one above the other.

    Args:
        height: inches.
        num_panels: number of axes in a column, which share their horizontal axis.
        num_columns: number of columns; panels come row by row. The axes of a row share their
            vertical axis.
    """
    figure = Figure(figsize=(_WIDTH, height), facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_panels, num_columns, sharex=True, sharey="row", squeeze=False)
    panels = list(grid.ravel())
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
        axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def title(axes: Axes, words: str) -> None:
    """Writes a panel's title, flush with the left end of the axes."""
    axes.set_title(literal(words), loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)


def number_rounds(axes: Axes, rounds: Sequence[int]) -> None:
    """Sets a horizontal axis to whole rounds, with room beside few and labels for some of many.

    Args:
        axes: the lowest panel.
        rounds: the rounds shown, ascending, at least one.
    """
    first, last = rounds[0], rounds[-1]
    beside = max(0.6, 2.5 - (last - first) / 2)
    every = -(-len(rounds) // 20)
    axes.set_xlim(first - beside, last + beside)
    axes.set_xticks([number for number in rounds if number % every == 0])
    axes.set_xlabel("round", color=INK, fontsize=9)


def legend_below(figure: Figure, marks: Mapping[str, str]) -> None:
    """Puts a legend under the panels, where it covers no data.

    Args:
        figure: the figure.
        marks: words to colour, in reading order.
    """
    figure.legend(
        handles=[Patch(color=colour) for colour in marks.values()],
        labels=[literal(words) for words in marks],
        loc="outside lower center",
        ncols=4 if len(marks) == 4 else 3,
        frameon=False,
        fontsize=9,
    )


def literal(text: str) -> str:
    """Returns ``text`` so that dollar signs are drawn and do not start a formula."""
    return text.replace("$", r"\$")


def png(figure: Figure) -> bytes:
    """Returns the figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def finite(value: float | None) -> float | None:
    """Returns ``value``, or None where it is missing or not finite."""
    return value if value is not None and math.isfinite(value) else None


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Returns heights moved as little as needed to lie at least ``gap`` apart.

    Args:
        heights: wanted positions, ascending.
        gap: smallest distance between neighbours, > 0.

    Returns:
        As many positions, ascending; the least-squares solution, in which every run of
        touching positions keeps its mean.
    """
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _start(groups[-1], gap) < _start(groups[-2], gap) + gap * len(
            groups[-2]
        ):
            last = groups.pop()
            groups[-1] += last
    return [_start(group, gap) + gap * index for group in groups for index in range(len(group))]


def _start(group: Sequence[float], gap: float) -> float:
    """Lowest position of a run of touching positions that keeps the mean of the wanted ones."""
    return math.fsum(group) / len(group) - gap * (len(group) - 1) / 2
