"""What bottleneck adapters and deep prompts cost, against torch's own counters on real models."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from fl_app.fomo.adapter import Adapter
from fl_app.fomo.backbone import head_modules
from fl_app.fomo.bottleneck import BottleneckSpec
from fl_app.fomo.deep_prompt import DeepPromptSpec
from fl_app.resources.families import architecture_of
from fl_app.resources.step import StepCost, StepModel
from fl_app.resources.tuning import DEEP_PROMPT, bottleneck
from tests.fixtures_models import DEPTH
from tests.fl_app.resources.tuned_models import (
    BATCH,
    CLASSIFIERS,
    LANGUAGE,
    NUM_LABELS,
    SEQUENCE,
    config_of,
    frozen_model,
    inputs_of,
    task_of,
)
from tests.oracles.step_counters import Counted, count_step

_SCALAR = 4
"""Bytes of the number of counted tokens that the loss of a batch keeps."""
SIZES = ([0, 3, 0, 2, 0], [0, 0, 0, 0, 1], [2, 0, 0, 0, 0])


def both(family: str, spec: Any, tuning: Any, sizes: Sequence[int]) -> tuple[Counted, StepCost]:
    """Counts a step with a layout, and prices it; both stacks of an encoder-decoder are alike."""
    config, task = config_of(family), task_of(family)
    model = frozen_model(config, task)
    heads = head_modules(model, task)
    adapter = Adapter(
        model, blocks=range(DEPTH), tuned_blocks=range(DEPTH), heads=heads, spec=spec, seed=0
    )
    adapter.resize(dict(enumerate(sizes)))
    shapes = architecture_of(config, num_labels=0 if task == "causal_lm" else NUM_LABELS)
    step = StepModel(shapes, tuning, batch=BATCH, sequence=SEQUENCE)
    counted = count_step(adapter.model, inputs_of(family, task))
    return counted, step.cost(list(sizes) * (step.num_blocks // DEPTH))


def assert_equal(counted: Counted, cost: StepCost) -> None:
    assert cost.forward_flops == counted.forward_flops
    assert cost.backward_flops == counted.backward_flops
    assert cost.tuned_params == counted.tuned_params
    assert 0 <= counted.saved_bytes - cost.activation_bytes <= _SCALAR


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("family", [*LANGUAGE, *CLASSIFIERS])
def test_bottleneck_adapters_are_counted_exactly(family: str, sizes: list[int]) -> None:
    assert_equal(*both(family, BottleneckSpec(1), bottleneck(), sizes))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("family", [*LANGUAGE, *CLASSIFIERS])
def test_deep_prompts_are_counted_exactly(family: str, sizes: list[int]) -> None:
    assert_equal(*both(family, DeepPromptSpec(1), DEEP_PROMPT, sizes))


@pytest.mark.parametrize("family", ["opt", "bert"])
def test_relu_keeps_one_tensor_where_gelu_keeps_two(family: str) -> None:
    counted, cost = both(family, BottleneckSpec(1, "relu"), bottleneck("relu"), SIZES[0])
    assert_equal(counted, cost)
    _, other = both(family, BottleneckSpec(1), bottleneck(), SIZES[0])
    assert other.activation_bytes - cost.activation_bytes == 4 * BATCH * SEQUENCE * sum(SIZES[0])


def test_the_adapter_alone_by_hand() -> None:
    """2 d s a token and product: two forward, three or four backward; 2 d s parameters."""
    width, size, tokens = 16, 3, BATCH * SEQUENCE
    step = StepModel(architecture_of(config_of("gpt2")), bottleneck(), batch=BATCH, sequence=7)
    with_it, without = step.by_block([0, 0, 0, 0, size])[-1], step.by_block([0] * 5)[-1]
    product = 2 * tokens * width * size
    assert with_it.forward_flops - without.forward_flops == 2 * product
    assert with_it.backward_flops == 3 * product
    assert with_it.tuned_params == 2 * width * size
    assert torch.zeros(2, width, size).numel() == with_it.tuned_params
