"""The block table against the models themselves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fl_app.errors import ModelError
from fl_app.fomo.blocks import FAMILIES, block_of, family_of, num_blocks, renumber, stack_paths
from tests.fixtures_models import CASES, CONFIGS, DEPTH, TinyModels, tiny_config


@pytest.mark.parametrize(("family", "task"), CASES)
def test_table_finds_every_list_of_blocks(tiny: TinyModels, family: str, task: str) -> None:
    """A row names all module lists as long as the model is deep, and no other module."""
    model = tiny.load(family, task).model
    lists = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == DEPTH
    }
    assert set(stack_paths(model)) == lists
    assert num_blocks(model.config) == DEPTH
    for stack in stack_paths(model):
        for block in model.get_submodule(stack):
            inner = {name.rsplit(".", 1)[-1] for name, _ in block.named_modules()}
            assert set(family_of(model.config).targets) <= inner


@pytest.mark.parametrize(("family", "task"), CASES)
def test_paths_are_the_same_without_a_head(tiny: TinyModels, family: str, task: str) -> None:
    """The body alone has the paths that the table states."""
    body = tiny.load(family, task).model.base_model
    assert stack_paths(body) == FAMILIES[family].stacks


def test_every_row_has_a_tiny_model() -> None:
    """A new family needs a configuration here, and so goes through all tests on models."""
    assert set(CONFIGS) == set(FAMILIES)


def test_unknown_family_lists_the_known_ones() -> None:
    """The text names the type, the choices and the file to extend."""
    with pytest.raises(ModelError, match=r"'xlnet'.*'bert'.*'vit'.*fomo/blocks\.py"):
        family_of(type("Config", (), {"model_type": "xlnet"}))


def test_stacks_of_unequal_depth_are_refused() -> None:
    """An encoder-decoder is split alike, or not at all."""
    config = tiny_config("t5")
    config.num_decoder_layers = DEPTH - 2
    with pytest.raises(ModelError, match=rf"\[{DEPTH}, {DEPTH - 2}\] blocks"):
        num_blocks(config)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("bert.encoder.layer.1.output.dense.weight", ("bert.encoder.layer", 1)),
        ("bert.encoder.layer.10", ("bert.encoder.layer", 10)),
        ("bert.encoder.layer", None),
        ("bert.encoder.layer.", None),
        ("bert.encoder.layers.1.weight", None),
        ("bert.encoder.layer.1x.weight", None),
        ("my.bert.encoder.layer.1.weight", None),
        ("bertyencoder.layer.1.weight", None),
        ("h.3.mlp.h.2.weight", ("h", 3)),
    ],
)
def test_block_of_reads_the_index_behind_the_stack(
    name: str, place: tuple[str, int] | None
) -> None:
    """Only a whole path from the root, a dot and a whole number count."""
    assert block_of(name, ("bert.encoder.layer", "h")) == place


@settings(derandomize=True, max_examples=60, deadline=None)
@given(index=st.integers(0, 120), to=st.integers(0, 120), rest=st.sampled_from(["", ".w", ".3.w"]))
def test_renumber_is_undone_by_the_inverse_map(index: int, to: int, rest: str) -> None:
    """Digits of any count; indices deeper in the name stay."""
    name = f"decoder.block.{index}{rest}"
    stacks = ("encoder.block", "decoder.block")
    there = renumber(name, stacks, {index: to})
    assert there == f"decoder.block.{to}{rest}"
    assert renumber(there, stacks, {to: index}) == name
    assert renumber(f"shared.{index}{rest}", stacks, {}) == f"shared.{index}{rest}"


def test_renumber_of_an_unmapped_block_is_an_error() -> None:
    """A silent pass would put a weight into the wrong block."""
    with pytest.raises(KeyError):
        renumber("h.4.weight", ("h",), {3: 0})
