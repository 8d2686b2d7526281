"""Adapters on tiny models."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fl_app.fomo.adapter import Adapter, LoraSpec
from fl_app.fomo.backbone import head_modules
from fl_app.fomo.emulator import Split
from fl_app.seeding import generator
from fl_app.updates import Update
from tests.fixtures_models import DEPTH

SPLIT = Split(1, 2, 1, DEPTH)


def spec_of(**changes: Any) -> LoraSpec:
    """Returns LoRA of rank 2 on the default maps, with changes."""
    settings: dict[str, Any] = {"rank": 2, "alpha": 4.0, "targets": (), "train_a": True}
    return LoraSpec(**(settings | changes))


def adapter_of(
    model: Any,
    task: str,
    blocks: Sequence[int] = tuple(range(DEPTH)),
    spec: LoraSpec | None = None,
    seed: int = 0,
    split: Split = SPLIT,
) -> Adapter:
    """Returns an adapter on the blocks outside the middle of a tiny model."""
    return Adapter(
        model,
        blocks=blocks,
        tuned_blocks=split.outer,
        heads=head_modules(model, task),
        spec=spec or spec_of(),
        seed=seed,
    )


def random_like(like: Update) -> Update:
    """Draws values for all tunable parameters, large enough to show in the logits."""
    rng = generator(0, "adapter")
    return {
        name: rng.normal(0, 0.3, array.shape).astype(np.float32) for name, array in like.items()
    }
