"""The plot of devices and rounds.

Every reason for a dropped answer has a colour and a letter, so that colour alone tells nothing.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from fl_app.report import canvas
from fl_app.report.canvas import INK
from fl_app.result import RunResult

_ASIDE, _TOOK_PART = "#eceef0", "#8fbfe0"
_REASONS = ("#d55e00", "#cc79a7", "#f0c030", "#7a3b00", "#8a63c9", "#3c3f44")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def draw_grid(result: RunResult) -> Figure | None:
    """Returns rounds across, devices down: who took part, who was dropped and why.

    None where no device was ever asked.
    """
    records = result.rounds
    reasons = sorted({reason for record in records for reason in record.dropped})
    known = {device for record in records for device in record.devices}
    known |= {d for record in records for dropped in record.dropped.values() for d in dropped}
    devices = sorted(known)
    if not devices:
        return None
    row = {device: index for index, device in enumerate(devices)}
    state = np.zeros((len(devices), len(records)), dtype=np.int64)  # [num_devices, num_rounds]
    for column, record in enumerate(records):
        state[[row[device] for device in record.devices], column] = 1
        for reason, dropped in record.dropped.items():
            state[[row[device] for device in dropped], column] = 2 + reasons.index(reason)
    colours = [_ASIDE, _TOOK_PART]
    colours += [_REASONS[index % len(_REASONS)] for index in range(len(reasons))]
    figure, (axes,) = canvas.blank(min(1.6 + 0.24 * len(devices), 9.0))
    axes.imshow(
        state,
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        aspect="auto",
        interpolation="nearest",
    )
    if state.size <= 1200:  # beyond, letters and lines would be finer than the print
        _letter_cells(axes, state)
    axes.grid(visible=False)
    axes.set_yticks(*_ticks(devices))
    axes.set_xticks(*_ticks([record.round for record in records]))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("round", color=INK, fontsize=9)
    axes.set_ylabel("device", color=INK, fontsize=9)
    canvas.title(axes, "Which devices took part")
    words = ["not asked", "took part"]
    words += [f"{_letter(index)}  dropped: {reason}" for index, reason in enumerate(reasons)]
    canvas.legend_below(figure, dict(zip(words, colours, strict=True)))
    return figure


def _letter_cells(axes: Axes, state: np.ndarray) -> None:
    """Draws white lines between the cells and the letter of the reason into dropped ones."""
    num_rows, num_columns = state.shape
    axes.hlines(np.arange(num_rows + 1) - 0.5, -0.5, num_columns - 0.5, color="white", linewidth=2)
    axes.vlines(np.arange(num_columns + 1) - 0.5, -0.5, num_rows - 0.5, color="white", linewidth=2)
    for cell_row, column in np.argwhere(state >= 2).tolist():
        axes.text(
            column,
            cell_row,
            _letter(int(state[cell_row, column]) - 2),
            ha="center",
            va="center",
            fontsize=8,
            color=INK,
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none"},
        )


def _letter(index: int) -> str:
    return _LETTERS[index % len(_LETTERS)]


def _ticks(names: Sequence[int]) -> tuple[list[int], list[str]]:
    """Returns positions and labels of at most about 25 ticks."""
    step = -(-len(names) // 25)
    positions = list(range(0, len(names), step))
    return positions, [str(names[position]) for position in positions]
