"""The adapter: names, targets, plug-in round trip, and PEFT's own format."""

from pathlib import Path

import peft
import pytest
import torch

from fl_app.errors import ModelError
from fl_app.finetune import tune
from fl_app.fomo.backbone import auto_class
from fl_app.fomo.blocks import block_of, stack_paths
from fl_app.fomo.emulator import Split, build_emulator, full_split
from fl_app.seeding import generator
from tests.adapter_fixtures import SPLIT, adapter_of, random_like, spec_of
from tests.fixtures_models import (
    CASES,
    DEPTH,
    TinyModels,
    logits_of,
    state_bytes,
    tiny_examples,
)
from tests.tuning_fixtures import tuning_of

_TUNED = ("lora_", "modules_to_save")  # what PEFT adds to the names of tuned weights
_TUNING = tuning_of()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("family", "task", "train_a"),
    [
        *((*case, True) for case in CASES),
        ("bert", "sequence_classification", False),
        ("gpt2", "causal_lm", False),
        ("t5", "causal_lm", False),
    ],
)
def test_plug_in_round_trip_and_plain_peft(
    tiny: TinyModels, family: str, task: str, train_a: bool, tmp_path: Path
) -> None:
    """An adapter tuned on the emulator goes into the full model, and from there into plain PEFT.

    On the way: a new adapter changes no logit bit, tuning changes the adapter and no frozen weight
    of either model, and ``peft.PeftModel`` on the untouched checkpoint gives the same logits.
    """
    backbone = tiny.load(family, task)
    batch = tiny.batch(family, task, 5)
    prepared = tiny.task(family, task)
    emulator = build_emulator(backbone.model, task, SPLIT)
    bare = [logits_of(model, batch) for model in (backbone.model, emulator)]
    spec = spec_of(train_a=train_a)
    full = adapter_of(backbone.model, task, spec=spec)
    emulated = adapter_of(emulator, task, SPLIT.blocks, spec)
    started = [logits_of(adapter.model, batch) for adapter in (full, emulated)]
    assert all(torch.equal(one, two) for one, two in zip(bare, started, strict=True))
    start = full.read()
    assert emulated.layout_hash() == full.layout_hash()
    same = emulated.read()
    assert all(same[name].tobytes() == start[name].tobytes() for name in start)

    frozen = [state_bytes(adapter.model, but=_TUNED) for adapter in (full, emulated)]
    encoded = prepared.encode(tiny_examples(8))
    for adapter in (emulated, full):
        tune(adapter.model, adapter.parameters, prepared, encoded, _TUNING, generator(0, "tune"))
    assert [state_bytes(adapter.model, but=_TUNED) for adapter in (full, emulated)] == frozen
    tuned = emulated.read()
    assert all((tuned[name] != start[name]).any() for name in start)

    full.write(tuned)
    assert state_bytes(full.model, but=_TUNED) == frozen[0]
    assert all(full.read()[name].tobytes() == tuned[name].tobytes() for name in tuned)
    plugged = logits_of(full.model, batch)
    assert not torch.equal(plugged, bare[0])

    full.save(tmp_path)
    base = auto_class(task, backbone.model.config).from_pretrained(tiny.path(family, task))
    # transformers demands a padding token of decoder classifiers; GPT-2 and LLaMA name none
    base.config.pad_token_id = getattr(backbone.model.config, "pad_token_id", None)
    reloaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(logits_of(reloaded, batch), plugged)

    full.write(start)
    assert torch.equal(logits_of(full.model, batch), bare[0])  # unplugged again


@pytest.mark.parametrize("numbers", [(0, 1, 2), (2, 1, 0), (1, 3, 1)])
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_only_the_outer_blocks_get_layers_under_their_full_names(
    tiny: TinyModels, family: str, numbers: tuple[int, int, int]
) -> None:
    """Names carry full-model indices, whatever the emulator's own numbering."""
    backbone = tiny.load(family, "causal_lm")
    split = Split(*numbers, DEPTH)
    emulator = build_emulator(backbone.model, "causal_lm", split)
    full = adapter_of(backbone.model, "causal_lm", split=split)
    emulated = adapter_of(emulator, "causal_lm", split.blocks, split=split)
    assert list(emulated.parameters) == list(full.parameters) == sorted(full.parameters)
    stacks = stack_paths(backbone.model)
    places = {block_of(name.removeprefix("base_model.model."), stacks) for name in full.parameters}
    assert places == {(stack, index) for stack in stacks for index in split.outer}


def test_plug_in_equals_the_emulator_where_nothing_is_dropped(tiny: TinyModels) -> None:
    """With n = L_mid the two are one model."""
    backbone = tiny.load("roberta", "sequence_classification")
    batch = tiny.batch("roberta", "sequence_classification", 6)
    split = full_split(backbone.model.config, 2, 1)
    emulator = build_emulator(backbone.model, backbone.task, split)
    full = adapter_of(backbone.model, backbone.task, split=split)
    emulated = adapter_of(emulator, backbone.task, split.blocks, split=split)
    values = random_like(full.read())
    full.write(values)
    emulated.write(values)
    assert torch.equal(logits_of(full.model, batch), logits_of(emulated.model, batch))


def test_lora_layer_adds_scale_times_b_a(tiny: TinyModels) -> None:
    """W + (alpha / rank) B A, by merging it into the weights by hand."""
    backbone = tiny.load("llama", "causal_lm")
    batch = tiny.batch("llama", "causal_lm", 4)
    plain = tiny.load("llama", "causal_lm").model
    adapter = adapter_of(backbone.model, "causal_lm", spec=spec_of(rank=3, alpha=5.0))
    values = random_like(adapter.read())
    adapter.write(values)
    weights = dict(plain.named_parameters())
    with torch.no_grad():
        for name in values:
            if ".lora_B." in name:
                product = values[name] @ values[name.replace("lora_B", "lora_A")]
                map_name = name.removeprefix("base_model.model.").replace("lora_B.", "")
                weights[map_name].add_(torch.from_numpy(5.0 / 3.0 * product))
    torch.testing.assert_close(logits_of(adapter.model, batch), logits_of(plain, batch))


@pytest.mark.parametrize(
    ("targets", "wrong"),
    [
        (("q_lin",), "q_lin"),
        (("query", "valeu"), "valeu"),  # one right name does not excuse a wrong one
        (("all-linear", "query"), "all-linear"),
        (("LayerNorm",), "LayerNorm"),  # there, but no linear map
    ],
)
def test_unknown_target_is_an_error(tiny: TinyModels, targets: tuple[str, ...], wrong: str) -> None:
    """The text names the setting, the blocks, the family, the wrong name and the choices."""
    with pytest.raises(
        ModelError, match=rf"peft\.targets=.*\[0, 4\].*bert.*no map {wrong};.*key.*query.*value"
    ):
        adapter_of(
            tiny.load("bert", "sequence_classification").model,
            "sequence_classification",
            spec=spec_of(targets=targets),
        )


def test_chosen_targets_replace_the_default(tiny: TinyModels) -> None:
    """Names of maps inside a block."""
    adapter = adapter_of(
        tiny.load("opt", "causal_lm").model, "causal_lm", spec=spec_of(targets=("fc1",))
    )
    assert {name.split(".")[-3] for name in adapter.parameters} == {"fc1"}


@pytest.mark.parametrize(
    ("family", "task", "maps"),
    [
        ("bert", "sequence_classification", {"query", "key", "value", "dense"}),
        ("roberta", "sequence_classification", {"query", "key", "value", "dense"}),
        (
            "distilbert",
            "sequence_classification",
            {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"},
        ),
        ("vit", "image_classification", {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"}),
        ("opt", "causal_lm", {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}),
        ("gpt2", "causal_lm", {"c_attn", "c_proj", "c_fc"}),
        ("t5", "causal_lm", {"q", "k", "v", "o", "wi", "wo"}),
        ("llama", "causal_lm", {f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")}),
    ],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_all_linear_takes_every_map_and_no_table(
    tiny: TinyModels, family: str, task: str, maps: set[str]
) -> None:
    """T5's table of relative positions and the norms have weights, too, and stay out."""
    model = tiny.load(family, task).model
    adapter = adapter_of(model, task, spec=spec_of(targets=("all-linear",)))
    adapted = [name for name in adapter.parameters if ".lora_" in name]
    assert {name.split(".")[-3] for name in adapted} == maps
    # none of them is in the head or the pooler, whose maps may have the same names
    stacks = stack_paths(model)
    assert all(any(f".{stack}." in f".{name}" for stack in stacks) for name in adapted)


def test_frozen_a_is_not_a_parameter(tiny: TinyModels) -> None:
    """What is not tuned is not sent."""
    model = tiny.load("bert", "sequence_classification").model
    adapter = adapter_of(model, "sequence_classification", spec=spec_of(train_a=False))
    assert not any("lora_A" in name for name in adapter.parameters)
    assert any("lora_B" in name for name in adapter.parameters)
