"""The picture of a plan: sizes, seconds and kept activations, block by block."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from fl_app.report import canvas
from fl_app.report.canvas import FAINT, INK
from fl_app.resources.tally import Tally

_FORWARD, _BACKWARD, _SIZE, _KEPT = "#8a9099", "#c25100", "#0068a8", "#00795a"


def draw(
    title: str,
    sizes: Sequence[int],
    tallies: Sequence[Tally],
    *,
    num_encoder_blocks: int,
    flops_per_s: float,
    activation_bytes: float,
) -> bytes:
    """Returns a PNG file with three panels over the blocks in forward order.

    Args:
        title: what was planned.
        sizes: size of every block.
        tallies: account of every block.
        num_encoder_blocks: blocks before the dashed line; 0 for none.
        flops_per_s: the device's speed.
        activation_bytes: bytes of an activation.
    """
    figure, (top, middle, bottom) = canvas.blank(6.6, 3)
    blocks = np.arange(len(sizes))
    canvas.title(top, title)
    top.bar(blocks, sizes, color=_SIZE, width=0.8)
    top.set_ylabel("size", color=INK, fontsize=9)
    top.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    top.set_ylim(0.0, max(sizes) * 1.15)
    forward = np.array([1e3 * each.forward_flops / flops_per_s for each in tallies])
    backward = np.array([1e3 * each.backward_flops / flops_per_s for each in tallies])
    middle.bar(blocks, forward, color=_FORWARD, width=0.8)
    middle.bar(blocks, backward, bottom=forward, color=_BACKWARD, width=0.8, hatch="//", ec="white")
    middle.set_ylabel("ms of a step", color=INK, fontsize=9)
    kept = np.array([each.saved_reals * activation_bytes / 1e6 for each in tallies])
    bottom.bar(blocks, kept, color=_KEPT, width=0.8)
    bottom.set_ylabel("activations kept (MB)", color=INK, fontsize=9)
    bottom.set_xlabel("block, the loss is behind the last", color=INK, fontsize=9)
    every = -(-len(sizes) // 24)
    bottom.set_xticks([int(block) for block in blocks if block % every == 0])
    bottom.set_xlim(-0.7, len(sizes) - 0.3)
    if num_encoder_blocks:
        for axes in (top, middle, bottom):
            axes.axvline(num_encoder_blocks - 0.5, color=FAINT, linewidth=1.0, linestyle="--")
        for place, words, side in ((-0.25, "encoder ", "right"), (0.25, " decoder", "left")):
            top.text(
                num_encoder_blocks - 0.5 + place,
                max(sizes) * 1.13,
                words,
                ha=side,
                va="top",
                fontsize=9,
                color=FAINT,
            )
    canvas.legend_below(
        figure,
        {"size": _SIZE, "forward": _FORWARD, "backward (hatched)": _BACKWARD, "kept": _KEPT},
    )
    return canvas.png(figure)
