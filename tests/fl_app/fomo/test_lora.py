"""Ranks that change in place: the same outputs where they must be, less memory, PEFT's own file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from fl_app.errors import ModelError
from fl_app.finetune import LocalTuning, optimiser_of
from fl_app.fomo.adapter import Adapter, LoraSpec
from fl_app.fomo.backbone import head_modules
from fl_app.fomo.lora_export import export_padded
from fl_app.layout.prefix import block_number, cut, layout_of, pad
from fl_app.updates import Update
from tests.fixtures_models import CASES, DEPTH, TinyModels, logits_of

OUTER = (0, 3, 4)
BERT = ("bert", "sequence_classification")
pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


def _adapter(tiny: TinyModels, case: tuple[str, str] = BERT, **changes: Any) -> Adapter:
    model = tiny.load(*case).model
    fields: dict[str, Any] = {"rank": 3, "alpha": 6.0, "targets": ("all-linear",), "train_a": True}
    return Adapter(
        model,
        blocks=range(DEPTH),
        tuned_blocks=OUTER,
        heads=head_modules(model, case[1]),
        spec=LoraSpec(**(fields | changes)),
        seed=0,
    )


def _drawn(adapter: Adapter, seed: int = 1) -> Update:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, 0.3, a.shape).astype(np.float32) for n, a in adapter.read().items()}


@pytest.mark.parametrize("case", CASES)
def test_rank_0_everywhere_is_the_frozen_model_bit_for_bit(
    tiny: TinyModels, case: tuple[str, str]
) -> None:
    """Oracle: and it has nothing to send but the head; growing again changes no output."""
    batch, bare = tiny.batch(*case, 5), tiny.load(*case).model
    adapter = _adapter(tiny, case)
    start = adapter.read()
    assert adapter.layout == dict.fromkeys(OUTER, 3)
    tuned = {name: a for name, a in _drawn(adapter).items() if ".lora_" in name}
    adapter.write({**start, **tuned})
    assert not torch.equal(logits_of(adapter.model, batch), logits_of(bare, batch))
    adapter.resize(dict.fromkeys(OUTER, 0))
    assert torch.equal(logits_of(adapter.model, batch), logits_of(bare, batch))
    assert not any(".lora_" in name for name in adapter.parameters)
    adapter.resize({0: 2, 3: 0, 4: 5})
    assert torch.equal(logits_of(adapter.model, batch), logits_of(bare, batch))
    assert layout_of(adapter.read()) == {0: 2, 4: 5}
    adapter.resize(dict.fromkeys(OUTER, 3))
    back = adapter.read()
    assert all(np.array_equal(back[name], start[name]) for name in start)


@pytest.mark.parametrize("case", CASES)
def test_a_merged_stack_computes_what_lora_of_its_rank_does(
    tiny: TinyModels, case: tuple[str, str]
) -> None:
    """Two stacks one after the other, in every family; LoRA itself goes on from B = 0."""
    batch = tiny.batch(*case, 5)
    adapter, merged = _adapter(tiny, case), _adapter(tiny, case)
    ranks = {0: 4, 3: 0, 4: 5}
    adapter.resize(ranks)
    drawn = {name: a for name, a in _drawn(adapter).items() if ".lora_" in name}
    adapter.write({**adapter.read(), **drawn})
    wanted = logits_of(adapter.model, batch)
    before = logits_of(merged.model, batch)
    for part in (slice(0, 2), slice(2, None)):
        stack = {n: a[part] if ".lora_A." in n else a[:, part] for n, a in drawn.items()}
        merged.merge(stack)
    given = logits_of(merged.model, batch)
    bound = 256 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
    assert (given - wanted).abs().max() <= bound
    assert (before - wanted).abs().max() > 100 * bound
    assert merged.layout == dict.fromkeys(OUTER, 3)


def test_a_stack_that_does_not_fit_changes_no_weight(tiny: TinyModels) -> None:
    """Though its first maps would fit."""
    adapter, batch = _adapter(tiny), tiny.batch(*BERT, 5)
    stack = {name: a for name, a in _drawn(adapter).items() if ".lora_" in name}
    last = max(name for name in stack if ".lora_A." in name)
    before = logits_of(adapter.model, batch)
    with pytest.raises(ModelError, match="does not fit a map"):
        adapter.merge({**stack, last: stack[last][:, 1:]})
    assert torch.equal(logits_of(adapter.model, batch), before)
    adapter.merge(stack)
    assert not torch.equal(logits_of(adapter.model, batch), before)


@pytest.mark.parametrize("train_a", [True, False])
def test_cutting_is_the_prefix_and_computes_as_zero_padding(
    tiny: TinyModels, train_a: bool
) -> None:
    """The cut adapter's function is that of the whole one with zeros behind the prefix of B."""
    layout = {0: 1, 3: 3, 4: 0}
    one, two = _adapter(tiny, train_a=train_a), _adapter(tiny, train_a=train_a)
    whole = _drawn(one)
    one.write(whole)
    one.resize(layout)
    part = one.read()
    wanted = cut(whole, layout)
    assert part.keys() == wanted.keys()
    assert all(np.array_equal(part[name], wanted[name]) for name in part)
    two.write(pad(wanted, whole))
    batch = tiny.batch(*BERT, 5)
    logits = [logits_of(adapter.model, batch) for adapter in (one, two)]
    # a zero adds nothing; only the order of the sums over units may differ
    assert torch.allclose(logits[0], logits[1], rtol=0, atol=64 * torch.finfo(torch.float32).eps)
    two.resize(layout)
    two.write(wanted)
    assert torch.equal(logits_of(two.model, batch), logits[0])


def test_frozen_a_grows_by_the_rows_that_a_larger_rank_would_have_drawn(tiny: TinyModels) -> None:
    small, large = _adapter(tiny, rank=1, train_a=False), _adapter(tiny, rank=4, train_a=False)
    small.resize(dict.fromkeys(OUTER, 4))
    states = [adapter.model.state_dict() for adapter in (small, large)]
    names = [name for name in states[0] if ".lora_A." in name]
    assert names
    assert all(torch.equal(states[0][name], states[1][name]) for name in names)


def test_a_frozen_a_takes_the_rows_of_its_units(tiny: TinyModels) -> None:
    """A block's A is the rows named; a model that had others before is the same afterwards."""
    one, large = _adapter(tiny, train_a=False), _adapter(tiny, rank=6, train_a=False)
    units = {0: (4, 1), 3: (), 4: (0, 1, 5)}
    layout = {block: len(rows) for block, rows in units.items()}
    one.resize({0: 1, 3: 2, 4: 2}, {0: (3,), 3: (2, 0), 4: (5, 4)})
    one.resize(layout, units)
    given, drawn = one.model.state_dict(), large.model.state_dict()
    names = [name for name in given if ".lora_A." in name]
    assert len(names) == len([n for n in drawn if ".lora_A." in n]) * 2 // 3
    for name in names:
        rows = units[block_number(name)]
        assert torch.equal(given[name], drawn[name][list(rows)])
    one.resize(dict.fromkeys(OUTER, 3))
    again, first = one.model.state_dict(), _adapter(tiny, train_a=False).model.state_dict()
    assert all(torch.equal(again[name], first[name]) for name in first if ".lora_A." in name)
    with pytest.raises(ModelError, match="as many as the ranks"):
        one.resize({0: 1, 3: 1, 4: 1}, {0: (1,), 3: (1, 2), 4: (0,)})


def test_the_scale_is_that_of_the_nominal_rank(tiny: TinyModels) -> None:
    """alpha / rank = 2 whatever a block has, so a cut adapter is not scaled up."""
    adapter = _adapter(tiny)
    adapter.resize({0: 1, 3: 2, 4: 5})
    layers = [m for m in adapter.model.modules() if hasattr(m, "lora_A")]
    assert {layer.scaling["default"] for layer in layers} == {2.0}


def test_the_optimiser_shrinks_with_the_layout(tiny: TinyModels) -> None:
    settings = LocalTuning(1, 1, 2, 0.01, 0.01, 1e-8, 0.0, 1.0, 0.0, 0.0)
    adapter, prepared = _adapter(tiny), tiny.task(*BERT)
    sizes = []
    for layout in (dict.fromkeys(OUTER, 3), {0: 0, 3: 1, 4: 1}):
        adapter.resize(layout)
        tuned = adapter.parameters
        optimiser = optimiser_of(tuned, settings)
        prepared.loss(adapter.model, tiny.batch(*BERT, 4)).backward()
        optimiser.step()
        states = [s for state in optimiser.state.values() for s in state.values() if s.ndim]
        sizes.append(sum(state.numel() for state in states))
        assert sizes[-1] == 2 * sum(p.numel() for p in tuned.values())
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("layout", [{0: 1}, {0: 1, 3: 1, 4: 1, 2: 1}, {0: 1, 3: 1, 4: -1}, {}])
def test_a_layout_of_other_blocks_is_refused(tiny: TinyModels, layout: dict[int, int]) -> None:
    with pytest.raises(ModelError, match=r"\[0, 3, 4\]"):
        _adapter(tiny).resize(layout)


def test_without_lora_there_is_nothing_to_resize(tiny: TinyModels) -> None:
    model = tiny.load(*BERT).model
    heads = head_modules(model, BERT[1])
    head = Adapter(model, blocks=range(DEPTH), tuned_blocks=(), heads=heads, spec=None, seed=0)
    assert head.layout == {}
    head.resize({})
    with pytest.raises(ModelError, match="no LoRA"):
        head.resize({0: 1})


@pytest.mark.parametrize(
    "case", [BERT, ("gpt2", "causal_lm"), ("t5", "causal_lm"), ("vit", "image_classification")]
)
@pytest.mark.parametrize(("rank", "alpha"), [(3, 6.0), (3, 5.0)])
def test_both_exports_give_the_logits_of_the_tuned_model(
    tiny: TinyModels, case: tuple[str, str], rank: int, alpha: float, tmp_path: Path
) -> None:
    """Loaded by plain PEFT on the untouched checkpoint, with ranks above, at, below rank, and 0."""
    batch = tiny.batch(*case, 5)
    adapter = _adapter(tiny, case, rank=rank, alpha=alpha)
    adapter.resize({0: 5, 3: 0, 4: 2})
    adapter.write(_drawn(adapter))
    wanted = logits_of(adapter.model, batch)
    adapter.save(tmp_path / "adapter")
    export_padded(tmp_path / "adapter", tmp_path / "padded")
    bare = logits_of(tiny.load(*case).model, batch)
    for folder in ("adapter", "padded"):
        loaded = peft.PeftModel.from_pretrained(tiny.load(*case).model, tmp_path / folder).eval()
        given = logits_of(loaded, batch)
        # the folded scale rounds B, relative eps / 2 each; the stack of blocks passes it on
        bound = 64 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
        assert (given - wanted).abs().max() <= bound
        assert (given - bare).abs().max() > 1000 * bound
    pattern = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert set(pattern["rank_pattern"].values()) == {5, 2}
    padded = json.loads((tmp_path / "padded/adapter_config.json").read_text())
    assert (padded["r"], padded["lora_alpha"], padded["rank_pattern"]) == (5, 5, {})


def test_a_uniform_adapter_is_saved_as_before(tiny: TinyModels, tmp_path: Path) -> None:
    adapter = _adapter(tiny)
    adapter.save(tmp_path / "plain")
    adapter.resize({0: 1, 3: 0, 4: 7})
    adapter.resize(dict.fromkeys(OUTER, 3))
    adapter.save(tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
