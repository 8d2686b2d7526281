"""Allocation to layouts: those of the whole run, or those that change from round to round."""

from fl_app.allocation import Allocation
from strategies.layouts import Layouts
from strategies.scoring import Scoring, SensitivityLayouts, Unscored


def build_layouts(allocation: Allocation, *, is_a_sent: bool) -> tuple[Layouts, Scoring]:
    """Returns which device tunes which units, and what becomes of units between rounds.

    Args:
        allocation: the run's layouts at the start.
        is_a_sent: whether LoRA's A is tuned and sent.
    """
    if allocation.schedule is not None:
        adaptive = SensitivityLayouts(allocation.server, allocation.schedule, is_a_sent=is_a_sent)
        return adaptive, adaptive
    return allocation, Unscored()
