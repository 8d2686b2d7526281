"""The formulas against torch's own counters, on real models of every family."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_app.fomo import blocks
from fl_app.fomo.backbone import head_modules
from fl_app.resources.errors import ResourceError
from fl_app.resources.families import FAMILIES, architecture_of
from fl_app.resources.step import StepCost, StepModel
from fl_app.resources.tally import Tally
from fl_app.resources.tuning import DEEP_PROMPT, lora
from tests.fl_app.resources.tuned_models import (
    BATCH,
    CLASSIFIERS,
    LANGUAGE,
    NUM_LABELS,
    SEQUENCE,
    config_of,
    depth_of,
    frozen_model,
    inputs_of,
    task_of,
    with_lora,
)
from tests.oracles.live_memory import LiveMemory
from tests.oracles.step_counters import Counted, count_step

_SCALAR = 4
"""Bytes of the number of counted tokens that the loss of a batch keeps."""


def layout(family: str, **sizes: int) -> list[int]:
    """All 0 but the named blocks: ``b1=2`` gives block 1 the size 2."""
    chosen = [0] * depth_of(family)
    for name, size in sizes.items():
        chosen[int(name[1:])] = size
    return chosen


def shapes_of(family: str, **changes: Any) -> Any:
    labels = 0 if task_of(family) == "causal_lm" else NUM_LABELS
    return architecture_of(config_of(family, **changes), num_labels=labels)


def both(
    family: str,
    sizes: Sequence[int],
    targets: Sequence[str],
    *,
    train_a: bool = True,
    **changes: Any,
) -> tuple[Counted, StepCost]:
    task = task_of(family)
    model = frozen_model(config_of(family, **changes), task)
    tuned = with_lora(model, task, sizes, targets, train_a=train_a)
    tuning = lora(*targets, train_a=train_a)
    step = StepModel(shapes_of(family, **changes), tuning, batch=BATCH, sequence=SEQUENCE)
    return count_step(tuned, inputs_of(family, task)), step.cost(sizes)


def assert_equal(counted: Counted, cost: StepCost) -> None:
    assert cost.forward_flops == counted.forward_flops
    assert cost.backward_flops == counted.backward_flops
    assert cost.tuned_params == counted.tuned_params
    assert 0 <= counted.saved_bytes - cost.activation_bytes <= _SCALAR


@pytest.mark.parametrize("family", [*LANGUAGE, *CLASSIFIERS])
def test_parameters_and_default_targets_are_the_real_models(family: str) -> None:
    shapes = shapes_of(family)
    model = frozen_model(config_of(family), task_of(family))
    assert shapes.num_params == sum(p.numel() for p in model.parameters())
    heads = tuple(f"{name}." for name in head_modules(model, task_of(family)))
    tuned = [p.numel() for n, p in model.named_parameters() if heads and n.startswith(heads)]
    assert shapes.head.num_tuned == sum(tuned)
    assert set(shapes.default_targets) == set(blocks.FAMILIES[family].targets)
    assert set(FAMILIES) == set(blocks.FAMILIES)


@pytest.mark.parametrize("train_a", [True, False])
@pytest.mark.parametrize("family", [*LANGUAGE, *CLASSIFIERS])
def test_default_targets_in_two_unequal_blocks_are_counted_exactly(
    family: str, train_a: bool
) -> None:
    targets = blocks.FAMILIES[family].targets
    assert_equal(*both(family, layout(family, b1=2, b3=3), targets, train_a=train_a))


@pytest.mark.parametrize("family", [*LANGUAGE, *CLASSIFIERS])
def test_every_single_map_and_all_maps_together_are_counted_exactly(family: str) -> None:
    names = sorted(shapes_of(family).map_names)
    for targets in [*([name] for name in names), names]:
        assert_equal(*both(family, layout(family, b1=2, b3=1), targets))


@pytest.mark.parametrize("sizes", [{"b9": 2}, {"b7": 2, "b9": 1}, {"b4": 1, "b5": 2}, {"b3": 2}])
def test_an_encoder_behind_a_decoder_is_counted_exactly(sizes: dict[str, int]) -> None:
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    assert_equal(*both("t5", layout("t5", **sizes), ("q", "v", "wi_1", "wo"), **gated))


def test_a_deeper_block_costs_more_and_the_rest_of_the_forward_pass_stays() -> None:
    for family in (*LANGUAGE, *CLASSIFIERS):
        shapes = shapes_of(family)
        step = StepModel(shapes, lora(*shapes.default_targets), batch=2, sequence=9)
        depths = range(depth_of(family))
        costs = [step.cost(layout(family, **{f"b{block}": 2})) for block in depths]
        for deeper, nearer in itertools.pairwise(costs):
            assert deeper.backward_flops > nearer.backward_flops
            assert deeper.activation_bytes > nearer.activation_bytes
        within = costs if family != "t5" else costs[: depth_of(family) // 2]
        assert len({cost.forward_flops for cost in within}) == 1


def test_rule_of_thumb_of_the_specification() -> None:
    """24 S d^2 + 4 S^2 d a block, forward and as much backward through a frozen block."""
    width, tokens = 16, SEQUENCE
    shapes = shapes_of("gpt2")
    step = StepModel(shapes, lora("c_attn"), batch=1, sequence=tokens)
    sizes = [layout("gpt2", **{f"b{block}": 1}) for block in (1, 2)]
    further, nearer = (step.cost(each) for each in sizes)
    block = 24 * tokens * width**2 + 4 * tokens**2 * width
    # A fused kernel computes the scores twice: 10 S^2 d backward instead of 8.
    assert further.backward_flops - nearer.backward_flops == block + 6 * tokens**2 * width
    logits = 2 * tokens * width * shapes.head.num_logits
    ranks = 2 * tokens * (width + 3 * width)
    assert nearer.forward_flops == 5 * block + logits + ranks


def test_estimated_peak_is_near_the_measured_one() -> None:
    """A step without the optimiser, on a model wide enough for its activations to matter."""
    changes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 5}
    config = config_of("llama", **changes)
    shapes = architecture_of(config)
    batch, tokens = 8, 24
    for block in (0, 2, 4):
        sizes = layout("llama", **{f"b{block}": 4})
        model = with_lora(
            frozen_model(config, "causal_lm"), "causal_lm", sizes, ("q_proj",), train_a=True
        )
        ids = torch.randint(5, 80, (batch, tokens), generator=torch.Generator().manual_seed(0))
        with LiveMemory() as live:
            for tensor in (*model.parameters(), *model.buffers()):
                live.watch(tensor.detach())
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        cost = StepModel(shapes, lora("q_proj"), batch=batch, sequence=tokens).cost(sizes)
        estimate = cost.memory_bytes - cost.tuned_bytes + 8 * cost.tuned_params
        assert 0.9 < estimate / live.peak < 1.15, (block, estimate, live.peak)


def test_a_deep_prompt_is_counted_as_attention_over_longer_keys() -> None:
    shapes, size = shapes_of("gpt2"), 4
    step = StepModel(shapes, DEEP_PROMPT, batch=BATCH, sequence=SEQUENCE)
    cost, width, heads = step.cost([0, 0, 0, 0, size]), 16, 2
    plain = step.cost([0] * 5)
    q = torch.randn(BATCH, heads, SEQUENCE, width // heads)
    kv = torch.randn(2, 1, heads, size, width // heads, requires_grad=True)

    class Lone(nn.Module):
        """The last attention alone, with its longer keys."""

        def forward(self) -> Any:
            keys, values = (
                torch.cat([each.expand(BATCH, -1, -1, -1), q], dim=2) for each in kv.unbind()
            )
            out = nn.functional.scaled_dot_product_attention(q, keys, values)
            return type("Out", (), {"loss": out.sum()})

    counted = count_step(Lone(), {})
    lengthened = 2 * 2 * BATCH * SEQUENCE * size * width
    assert cost.forward_flops - plain.forward_flops == lengthened
    assert counted.forward_flops == lengthened + 4 * BATCH * SEQUENCE**2 * width
    assert cost.tuned_params == kv.numel()
    tally = Tally()
    attention = shapes.blocks[-1][0]
    attention.walk(tally, step._last, DEEP_PROMPT, size, grad=False, memory_grad=False)
    out_map = 2 * BATCH * SEQUENCE * width * width
    assert tally.backward_flops == counted.backward_flops + out_map
    mask = BATCH * SEQUENCE * (SEQUENCE + size)
    fused = 2 * BATCH * SEQUENCE * width  # queries are a view of the one map's output
    assert tally.saved_reals * 4 == counted.saved_bytes + 4 * (mask + fused)


def test_nothing_tuned_costs_no_backward_pass() -> None:
    shapes = shapes_of("llama")
    step = StepModel(shapes, lora("q_proj"), batch=2, sequence=5, weight_bytes=0.5)
    cost = step.cost([0] * 5)
    assert (cost.backward_flops, cost.activation_bytes, cost.tuned_bytes) == (0, 0, 0)
    assert cost.weight_bytes == round(shapes.num_params / 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 0}, "batch=0 must be >= 1"),
        ({"sequence": 0}, "sequence=0 must be >= 1"),
        ({"weight_bytes": 0.0}, "weight_bytes=0.0 must be above 0"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, Any], words: str) -> None:
    settings: dict[str, Any] = {"batch": 1, "sequence": 4} | changes
    with pytest.raises(ResourceError, match=words):
        StepModel(shapes_of("gpt2"), lora("c_attn"), **settings)


def test_wrong_targets_and_layouts_are_named() -> None:
    with pytest.raises(ResourceError, match=r"\['q_proj'\] name no map of a gpt2 model; choose"):
        StepModel(shapes_of("gpt2"), lora("q_proj"), batch=1, sequence=4)
    step = StepModel(shapes_of("gpt2"), lora("c_attn"), batch=1, sequence=4)
    for sizes in ([1] * 4, [1, 1, 1, 1, -1]):
        with pytest.raises(ResourceError, match="give 5 numbers >= 0"):
            step.cost(sizes)
    assert step.cost(np.array([0, 0, 0, 0, 1])) == step.cost([0, 0, 0, 0, 1])
