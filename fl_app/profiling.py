"""Who looks at the gradient before the first round, and how long: ``peft.layout.profile``."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import ConfigError
from fl_app.fomo.adapter import Adapter
from fl_app.gains import Gains, gradient_gains
from fl_app.schema import Config, LayoutConfig, SizedConfig
from fl_app.seeding import generator
from fl_app.settings import local_tuning
from fl_app.tasks import Encoded, Task


def server_gains(config: Config, adapter: Adapter, task: Task, public: Encoded) -> Gains | None:
    """Returns gains from the server's public rows; None where devices look, or no rule asks.

    Args:
        config: the run's configuration.
        adapter: of the full model, at its start.
        task: of the full model.
        public: prepared public rows, maybe none.

    Raises:
        ConfigError: the server is to look, and has no public rows.
    """
    match config.peft:
        case SizedConfig(layout=LayoutConfig(rule="cost_aware", profile=profile)):
            pass
        case _:
            return None
    if profile.by == "devices" or (profile.by == "auto" and not len(public)):
        return None
    if not len(public):
        raise ConfigError(
            "peft.layout.profile.by=server needs public rows; set data.public_fraction above 0, or "
            "peft.layout.profile.by=devices"
        )
    return gains_of(config, adapter, task, public, "server")


def gains_of(
    config: Config, adapter: Adapter, task: Task, encoded: Encoded, who: str
) -> dict[int, NDArray[np.float64]]:
    """Looks at the gradient, the same way on server and device; see ``gradient_gains``.

    Args:
        config: the run's configuration.
        adapter: of the full model or an emulator, at its start.
        task: of the same model.
        encoded: the rows, at least one.
        who: names the stream of random numbers.

    Raises:
        ConfigError: there are no units.
    """
    match config.peft:
        case SizedConfig() as peft:
            pass
        case _:
            raise ConfigError("gains are those of units; set peft=lora or peft=bottleneck")
    wanted = peft.layout.profile
    steps = wanted.head_steps
    passes = 1 + steps * config.finetune.batch_size // len(encoded)
    tuning = dataclasses.replace(local_tuning(config.finetune), max_steps=steps, epochs=passes)
    return gradient_gains(
        adapter,
        task,
        encoded,
        tuning,
        batches=wanted.batches,
        largest=most_units(peft, len(adapter.layout)),
        rng=generator(config.seed, "gains", who),
    )


_MOST_BY_GAIN = 2
"""Times the uniform rank. The scale alpha / rank does not fall with a block's own rank, so a block
of many ranks takes steps as many times longer; and next to the input of a decoder gradients may be
so large that gains alone would give that one block nearly all units."""


def most_units(peft: SizedConfig, num_blocks: int) -> int:
    """Returns the greatest rank that a rule may give a block."""
    most = _MOST_BY_GAIN if peft.layout.rule == "cost_aware" else num_blocks
    return peft.layout.max_rank or peft.size * most
