"""The picture of a layout: sizes of server and device classes, block by block."""

import numpy as np
from matplotlib.figure import Figure

from fl_app.report import canvas
from fl_app.report.canvas import INK
from fl_app.result import RunResult

_NAMES = {"rank": "LoRA rank", "width": "Bottleneck width", "length": "Virtual tokens"}
"""What a size is called in the title, by its name in ``result.json``."""
_MOST_NUMBERS = 40
"""Blocks beyond which the numbers in the cells would be finer than the print."""


def draw_ranks(result: RunResult) -> Figure | None:
    """Returns blocks across; server and classes down; darker for a larger size.

    None where all blocks and devices are alike, or nothing has a size.
    """
    layout = result.layout
    if layout is None or (layout["rule"] == "uniform" and not layout["classes"]):
        return None
    rows = {"server": layout["server"]}
    for name, one in layout["classes"].items():
        number = len(one["devices"])
        rows[f"{name} ({number} device{'s' * (number != 1)})"] = one["ranks"]
    ranks = np.array(list(rows.values()))  # [num_rows, num_blocks]
    figure, (axes,) = canvas.blank(1.5 + 0.42 * len(rows))
    most = max(int(ranks.max()), 1)
    image = axes.imshow(
        ranks, cmap="Blues", vmin=0, vmax=1.25 * most, aspect="auto", interpolation="nearest"
    )
    if ranks.shape[1] <= _MOST_NUMBERS:
        for row, column in np.ndindex(ranks.shape):
            rank = int(ranks[row, column])
            colour = "white" if rank > 0.75 * most else INK
            axes.text(column, row, str(rank), ha="center", va="center", fontsize=9, color=colour)
    else:
        figure.colorbar(image, ax=axes, shrink=0.8)
    edges = np.arange(len(rows) + 1) - 0.5
    axes.hlines(edges, -0.5, ranks.shape[1] - 0.5, color="white", linewidth=2)
    axes.vlines(
        np.arange(ranks.shape[1] + 1) - 0.5, edges[0], edges[-1], color="white", linewidth=2
    )
    axes.grid(visible=False)
    axes.set_yticks(range(len(rows)), [canvas.literal(name) for name in rows])
    step = -(-ranks.shape[1] // 25)
    axes.set_xticks(range(0, ranks.shape[1], step))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("block (0: nearest to the input)", color=INK, fontsize=9)
    canvas.title(axes, f"{_NAMES[layout['size']]} of every block, rule {layout['rule']}")
    return figure
