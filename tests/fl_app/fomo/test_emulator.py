"""The emulator: which blocks it keeps, and that it computes what the full model would."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.errors import ModelError
from fl_app.fomo.blocks import stack_paths
from fl_app.fomo.compress import Compression
from fl_app.fomo.emulator import (
    Split,
    build_emulator,
    full_split,
    middle_indices,
    middle_parameters,
)
from fl_app.fomo.package import EmulatorPackage, pack, unpack
from tests.fixtures_models import (
    CASES,
    DEPTH,
    TinyModels,
    logits_of,
    state_bytes,
)
from tests.oracles.layer_drop import kept_positions
from tests.oracles.skipped_blocks import skipping

_SPLITS = ((0, 1, 1), (0, 2, 1), (1, 2, 0), (1, 1, 1), (2, 1, 0), (1, 2, 1))


def test_index_rule_equals_exact_rounding() -> None:
    """Every (L_mid, n) up to 40, against rational arithmetic with halves to even."""
    for num_middle in range(1, 41):
        for num_kept in range(1, num_middle + 1):
            kept = middle_indices(num_middle, num_kept)
            assert list(kept) == kept_positions(num_middle, num_kept)
            assert len(set(kept)) == num_kept  # no block twice
            assert 0 <= kept[0] <= kept[-1] < num_middle
        assert middle_indices(num_middle, num_middle) == tuple(range(num_middle))


@pytest.mark.parametrize(
    ("num_middle", "num_kept", "differing"), [(20, 8, 3), (44, 16, 7), (28, 18, 8), (26, 12, 5)]
)
def test_index_rule_on_the_published_configurations(
    num_middle: int, num_kept: int, differing: int
) -> None:
    """Rounding and truncating differ in these many places for offsite-tuning's four models."""
    truncated = [int(i * (num_middle - 1) / (num_kept - 1)) for i in range(num_kept)]
    kept = middle_indices(num_middle, num_kept)
    assert sum(a != b for a, b in zip(kept, truncated, strict=True)) == differing


def test_halves_round_to_even() -> None:
    """(L_mid, n) = (6, 3) has position 2.5, (4, 3) has 1.5: both go to 2."""
    assert middle_indices(6, 3) == (0, 2, 5)
    assert middle_indices(4, 3) == (0, 2, 3)
    assert middle_indices(5, 1) == (2,)


@pytest.mark.parametrize("num_kept", [0, -1, 5])
def test_middle_out_of_range(num_kept: int) -> None:
    """The text names the field, the value and the bounds."""
    with pytest.raises(
        ModelError, match=rf"strategy\.emulator\.middle={num_kept} must be between 1 and the 4 "
    ):
        middle_indices(4, num_kept)


@pytest.mark.parametrize(
    ("left", "middle", "right", "text"),
    [
        (0, 2, 0, r"left=0 and right=0 must be >= 0 and not both 0"),
        (-1, 2, 1, r"left=-1 and right=1 must be >= 0"),
        (1, 2, -1, r"left=1 and right=-1 must be >= 0"),
        (3, 1, 3, r"left=3 plus right=3 leaves no middle block of the model's 6; lower one"),
        (5, 1, 4, r"left=5 plus right=4 leaves no middle"),
        (2, 3, 2, r"middle=3 must be between 1 and the 2 blocks"),
        (2, 0, 2, r"middle=0 must be between 1 and the 2 blocks"),
    ],
)
def test_impossible_splits(left: int, middle: int, right: int, text: str) -> None:
    """Each says which setting does not fit, and into what."""
    with pytest.raises(ModelError, match=text):
        Split(left=left, middle=middle, right=right, total=6)


@st.composite
def _splits(draw: st.DrawFn) -> Split:
    total = draw(st.integers(2, 60))
    outside = draw(st.integers(1, total - 1))
    left = draw(st.integers(0, outside))
    middle = draw(st.integers(1, total - outside))
    return Split(left=left, middle=middle, right=outside - left, total=total)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(_splits())
def test_split_keeps_its_outside_whole_and_its_middle_in_order(split: Split) -> None:
    """A1 and A2 keep every block; indices rise; the identity is exactly n = L_mid."""
    left, right = set(range(split.left)), set(range(split.total - split.right, split.total))
    blocks = split.blocks
    assert list(blocks) == sorted(set(blocks))
    assert set(split.outer) == left | right
    assert left | right <= set(blocks) <= set(range(split.total))
    assert len(blocks) == split.left + split.middle + split.right
    assert split.is_identity == (blocks == tuple(range(split.total)))
    assert str(split) == f"{split.left}-{split.middle}-{split.right}"


@pytest.mark.parametrize(("family", "task"), CASES)
def test_emulator_that_drops_nothing_is_the_full_model_bit_for_bit(
    tiny: TinyModels, family: str, task: str
) -> None:
    """Through the wire and back; logits and every weight."""
    backbone = tiny.load(family, task)
    split = full_split(backbone.model.config, 1, 1)
    emulator = build_emulator(backbone.model, task, split)
    package = EmulatorPackage(emulator, split, task, backbone.labels, backbone.files)
    batch = tiny.batch(family, task, 5)
    wanted = logits_of(backbone.model, batch)
    assert wanted.std() > 0.01  # logits that say nothing would agree by chance
    assert torch.equal(logits_of(emulator, batch), wanted)
    for wire_dtype in ("float32", "auto"):
        received = unpack(pack(package, Compression(), wire_dtype)).model
        assert torch.equal(logits_of(received, batch), wanted)
        assert state_bytes(received) == state_bytes(backbone.model)


@pytest.mark.parametrize(("family", "task"), CASES)
def test_emulator_computes_the_full_model_without_the_dropped_blocks(
    tiny: TinyModels, family: str, task: str
) -> None:
    """Bit for bit, also where block 0 goes, in which T5 keeps the stack's position bias."""
    model = tiny.load(family, task).model
    before = state_bytes(model)
    batch = tiny.batch(family, task, 4)
    whole = logits_of(model, batch)
    for numbers in _SPLITS:
        split = Split(*numbers, DEPTH)
        dropped = sorted(set(range(DEPTH)) - set(split.blocks))
        emulator = build_emulator(model, task, split)
        with skipping(model, stack_paths(model), dropped):
            wanted = logits_of(model, batch)
        assert not torch.equal(wanted, whole)
        assert torch.equal(logits_of(emulator, batch), wanted)
        for stack in stack_paths(emulator):
            assert len(emulator.get_submodule(stack)) == len(split.blocks)
    assert state_bytes(model) == before


def test_n_1_with_no_left_drops_block_0(tiny: TinyModels) -> None:
    """Guards the test above: one of its splits must take T5's first block away."""
    split = Split(0, 1, 1, DEPTH)
    assert 0 not in split.blocks
    model = tiny.load("t5", "causal_lm").model
    emulator = build_emulator(model, "causal_lm", split)
    for stack in ("encoder", "decoder"):
        name = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        assert torch.equal(emulator.state_dict()[name], model.state_dict()[name])


def test_emulator_shares_no_memory_with_the_full_model(tiny: TinyModels) -> None:
    """Distillation writes into the emulator; the full model must not notice."""
    model = tiny.load("gpt2", "causal_lm").model
    before = state_bytes(model)
    emulator = build_emulator(model, "causal_lm", Split(1, 2, 1, DEPTH))
    assert not any(p.requires_grad for p in emulator.parameters())
    assert not any(module.training for module in emulator.modules())
    with torch.no_grad():
        for parameter in emulator.parameters():
            parameter.add_(1.0)
    assert state_bytes(model) == before


def test_building_leaves_the_global_random_state(tiny: TinyModels) -> None:
    """A device that builds an emulator and one that has it in memory must draw the same."""
    backbone = tiny.load("bert", "sequence_classification")
    state = torch.random.get_rng_state()
    split = Split(1, 1, 1, DEPTH)
    emulator = build_emulator(backbone.model, backbone.task, split)
    package = EmulatorPackage(emulator, split, backbone.task, backbone.labels, backbone.files)
    unpack(pack(package, Compression()))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", ["bert", "t5", "opt"])
def test_middle_parameters_are_those_of_the_middle_blocks(tiny: TinyModels, family: str) -> None:
    """By walking the block lists; with an empty left part too."""
    task = "sequence_classification"
    model = tiny.load(family, task).model
    for numbers in ((1, 2, 1), (0, 2, 1), (2, 1, 0)):
        split = Split(*numbers, DEPTH)
        emulator = build_emulator(model, task, split)
        expected = {
            id(parameter)
            for stack in stack_paths(emulator)
            for block in list(emulator.get_submodule(stack))[split.left :][: split.middle]
            for parameter in block.parameters()
        }
        assert {id(p) for p in middle_parameters(emulator, split).values()} == expected


def test_missing_weight_is_an_error(tiny: TinyModels) -> None:
    """A family whose emulator has a weight of no source must not be filled with noise."""
    model = tiny.load("bert", "sequence_classification").model
    del model.classifier.bias
    model.classifier.register_parameter("bias", None)
    with pytest.raises(ModelError, match=r"no weight for the emulator's 'classifier\.bias'"):
        build_emulator(model, "sequence_classification", Split(1, 1, 1, DEPTH))
