"""Scores of units of every kind of layers: each unit's rows and columns, mean over the maps."""

import numpy as np
import pytest

from fl_app.fomo.adapter import Adapter, AdapterSpec, LoraSpec
from fl_app.fomo.bottleneck import BottleneckSpec
from fl_app.fomo.deep_prompt import DeepPromptSpec
from fl_app.layout.prefix import block_number, unit_axis
from fl_app.unit_scores import UnitScores
from tests.fixtures_models import DEPTH, TinyModels

SPECS: dict[str, tuple[AdapterSpec, int]] = {
    "lora": (LoraSpec(rank=3, alpha=6.0, targets=("q", "v"), train_a=True), 6),
    "bottleneck": (BottleneckSpec(3), 2),
    "deep_prompt": (DeepPromptSpec(3), 2),
}
"""Kind to its settings and how many maps a block of both T5 stacks has (cross-attention too)."""


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", list(SPECS))
def test_one_step_by_hand(tiny: TinyModels, kind: str) -> None:
    """With both betas 1/2 a first step's score is (I / 2) (I / 4), I = |theta g|."""
    spec, num_maps = SPECS[kind]
    adapter = Adapter(
        tiny.load("t5", "causal_lm").model,
        blocks=range(DEPTH),
        tuned_blocks=(1, 4),
        heads=(),
        spec=spec,
        seed=0,
    )
    rng = np.random.default_rng(1)
    adapter.write(
        {n: rng.normal(0, 0.3, a.shape).astype(np.float32) for n, a in adapter.read().items()}
    )
    batch = tiny.batch("t5", "causal_lm", 5)
    tiny.task("t5", "causal_lm").loss(adapter.model, batch).backward()
    meter = UnitScores(adapter.parameters, beta1=0.5, beta2=0.5)
    meter.update()
    wanted = {1: np.zeros(3), 4: np.zeros(3)}
    for name, parameter in adapter.parameters.items():
        axis, gradient = unit_axis(name), parameter.grad
        assert axis is not None
        assert gradient is not None
        squares = (parameter.detach().double() * gradient.double()).square().numpy() / 8
        wanted[block_number(name)] += squares.mean(axis=1 - axis) / num_maps
    given = meter.by_block()
    assert given.keys() == wanted.keys()
    for block, row in wanted.items():
        np.testing.assert_allclose(given[block], row, rtol=1e-9)
        assert (row > 0).all()
