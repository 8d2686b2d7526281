"""The report's bars of a prompt ensemble."""

import numpy as np
from matplotlib.figure import Figure

from fl_app.report import canvas
from fl_app.report.canvas import COLOURS, FAINT, INK
from fl_app.report.text import direction, format_score
from fl_app.result import RunResult


def draw_ensemble(result: RunResult) -> Figure | None:
    """Bars of every member and of the ensemble, the mean member as a line; None without one."""
    ensemble = result.ensemble
    if ensemble is None:
        return None
    values = [member["measure"] for member in ensemble["members"]] + [ensemble["ensemble"]]
    drawn = np.array([canvas.finite(value) or 0.0 for value in values])
    if drawn.max() <= 0:
        return None
    figure, (axes,) = canvas.blank(3.4)
    num = len(values) - 1
    colours = [COLOURS["frozen"]] * num + [COLOURS["plug_in"]]
    axes.bar(range(num + 1), drawn, color=colours, width=0.65)
    few = num <= 12  # more figures would run into each other
    for place, value in enumerate(values):
        if few or place == num:
            axes.annotate(
                format_score(result.metric, value),
                (place, drawn[place]),
                xytext=(0, -16),  # inside the bar, away from the line
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color="white",
                weight="bold" if place == num else "normal",
            )
    if (mean := canvas.finite(ensemble["member_mean"])) is not None:
        axes.axhline(mean, color=FAINT, linewidth=1.2, linestyle="--")
        axes.annotate(
            "mean member",
            (1.0, mean),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=FAINT,
            annotation_clip=False,
        )
    names = [str(member["index"]) for member in ensemble["members"]]
    axes.set_xticks(range(num + 1), [*(names if few else [""] * num), "ensemble"])
    axes.set_xlabel("member", color=INK, fontsize=9)
    axes.set_ylim(0, 1.15 * float(drawn.max()))
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    words = f"{result.metric.name} ({direction(result.metric)})"
    canvas.title(axes, f"Members alone and together: {words}")
    return figure
