"""Allocation to layouts: those of the whole run, or those that change from round to round."""

from fl_app.allocation import Allocation
from fl_app.schema import Config, LoraConfig
from strategies.channel_aware import ChannelLayouts
from strategies.layouts import Layouts
from strategies.round_start import Continued, RoundStart, Stacking
from strategies.scoring import Scoring, SensitivityLayouts, Unscored


def build_start(config: Config, layouts: Layouts) -> tuple[Layouts, RoundStart]:
    """Returns the run's layouts as the server grows them, and what devices begin rounds with.

    Args:
        config: the run's configuration.
        layouts: which device tunes which units.
    """
    match config.peft:
        case LoraConfig(combine="stack"):
            stacking = Stacking(layouts, config.seed)
            return stacking, stacking
        case _:
            return layouts, Continued()


def build_layouts(allocation: Allocation, *, is_a_sent: bool) -> tuple[Layouts, Scoring]:
    """Returns which device tunes which units, and what becomes of units between rounds.

    Args:
        allocation: the run's layouts at the start.
        is_a_sent: whether LoRA's A is tuned and sent.
    """
    if allocation.schedule is not None:
        adaptive = SensitivityLayouts(allocation.server, allocation.schedule, is_a_sent=is_a_sent)
        return adaptive, adaptive
    if allocation.price_of is not None:
        server, price_of = allocation.server, allocation.price_of
        by_rate = ChannelLayouts(server, price_of, allocation.deadline_s, is_a_sent=is_a_sent)
        return by_rate, by_rate
    return allocation, Unscored()
