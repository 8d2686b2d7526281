"""Federations by gradient download: what devices tune is what they would with the whole model."""

import numpy as np
import pytest

from fl_app.updates import Update
from tests.federation_fixtures import Player, player, tiny_federation

__all__ = ["player", "tiny_federation"]

GRADIENT = ("strategy=gradient_download", "strategy.wire_dtype=float32")
VARIANTS = {
    "prompt": ("strategy.variant=prompt", "peft=prompt", "peft.num_tokens=3"),
    "cut": ("strategy.variant=cut", "strategy.cut=2"),
    "lora": ("strategy.variant=lora", "strategy.left=1", "strategy.right=1"),
}
WHOLE = {
    "prompt": ("peft=prompt", "peft.num_tokens=3", "strategy.emulator.middle=-1"),
    "cut": (
        "strategy.emulator.left=2",
        "strategy.emulator.right=0",
        "strategy.emulator.middle=-1",
    ),
    "lora": ("strategy.emulator.middle=-1",),
}
STEPS = ("finetune.max_steps=3", "finetune.eps=1e-3")


def words_of(player: Player, variant: str, *more: str) -> tuple[str, ...]:
    """Returns overrides of a gradient download."""
    return (*GRADIENT, *VARIANTS[variant], *STEPS, *more)


def relative(left: Update, right: Update, start: Update) -> float:
    """Returns ||left - right|| over how far ``right`` moved."""
    off = sum(float(((left[n].astype(np.float64) - right[n]) ** 2).sum()) for n in right)
    way = sum(float(((start[n].astype(np.float64) - right[n]) ** 2).sum()) for n in right)
    return float(np.sqrt(off / way))


@pytest.mark.parametrize("labels", ["private", "server"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_federation_with_the_whole_model_on_every_device(
    player: Player, variant: str, labels: str
) -> None:
    """Two rounds of three AdamW steps; only the order of float32 sums differs."""
    there = player.play(*words_of(player, variant, f"strategy.labels={labels}"))
    whole = player.play(*WHOLE[variant], *STEPS)
    assert [r.devices for r in there.outcome.rounds] == [r.devices for r in whole.outcome.rounds]
    assert relative(there.outcome.adapter, whole.outcome.adapter, whole.start) < 1e-4
