"""Bottleneck adapters: unchanged at start, a forward pass by hand, gradients, widths, files."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.errors import ModelError
from fl_app.fomo.adapter import Adapter, is_head
from fl_app.fomo.backbone import auto_class, head_modules
from fl_app.fomo.bottleneck import BottleneckSpec
from fl_app.fomo.emulator import Split, build_emulator
from fl_app.fomo.load_adapter import load_adapter
from fl_app.layout.prefix import cut, layout_of, pad
from fl_app.updates import Update
from tests.fixtures_models import CASES, DEPTH, TinyModels, logits_of

OUTER = (0, 3, 4)
BERT = ("bert", "sequence_classification")
EPS = torch.finfo(torch.float32).eps
WIDTH = 16


def _adapter(
    tiny: TinyModels, case: tuple[str, str] = BERT, model: Any = None, **changes: Any
) -> Adapter:
    model = tiny.load(*case).model if model is None else model
    return Adapter(
        model,
        blocks=range(DEPTH),
        tuned_blocks=OUTER,
        heads=head_modules(model, case[1]),
        spec=BottleneckSpec(**({"width": 3} | changes)),
        seed=0,
    )


def _drawn(adapter: Adapter, seed: int = 1) -> Update:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, 0.3, a.shape).astype(np.float32) for n, a in adapter.read().items()}


@pytest.mark.parametrize("case", CASES)
def test_at_start_and_at_width_0_it_is_the_frozen_model_bit_for_bit(
    tiny: TinyModels, case: tuple[str, str]
) -> None:
    batch, bare = tiny.batch(*case, 5), tiny.load(*case).model
    wanted = logits_of(bare, batch)
    adapter = _adapter(tiny, case)
    start = adapter.read()
    assert torch.equal(logits_of(adapter.model, batch), wanted)
    assert adapter.layout == dict.fromkeys(OUTER, 3)
    stacks = 2 if case[0] == "t5" else 1
    sized = [array for name, array in start.items() if not is_head(name)]
    assert sum(array.size for array in sized) == stacks * len(OUTER) * 2 * 3 * WIDTH
    adapter.write({**start, **{n: a for n, a in _drawn(adapter).items() if not is_head(n)}})
    assert not torch.equal(logits_of(adapter.model, batch), wanted)
    adapter.resize(dict.fromkeys(OUTER, 0))
    assert torch.equal(logits_of(adapter.model, batch), wanted)
    assert all(map(is_head, adapter.parameters))
    adapter.resize({0: 2, 3: 0, 4: 5})
    assert torch.equal(logits_of(adapter.model, batch), wanted)
    assert layout_of(adapter.read()) == {0: 2, 4: 5}
    adapter.resize(dict.fromkeys(OUTER, 3))
    back = adapter.read()
    assert all(np.array_equal(back[name], start[name]) for name in start)


def _bert_by_hand(model: Any, arrays: Update, batch: Any, act: Any) -> torch.Tensor:
    """Logits of a float64 BERT, block after block, h + U act(D h) behind those that are tuned."""
    bert = model.bert
    mask = batch["attention_mask"][:, None, None, :].bool()
    hidden = bert.embeddings(batch["input_ids"])
    for index, block in enumerate(bert.encoder.layer):
        hidden = block(hidden, mask.expand(-1, 1, hidden.shape[1], -1))
        lead = f"base_model.model.bert.encoder.layer.{index}.bottleneck."
        if f"{lead}down" in arrays:
            down, up = (torch.as_tensor(arrays[lead + end]).double() for end in ("down", "up"))
            hidden = hidden + act(hidden @ down.T) @ up.T
    logits: torch.Tensor = model.classifier(bert.pooler(hidden))
    return logits


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_forward_and_gradients_are_those_by_hand(tiny: TinyModels, activation: str) -> None:
    """Oracle: the blocks of the untouched checkpoint in float64, and autograd through them."""
    batch = tiny.batch(*BERT, 5)
    adapter = _adapter(tiny, activation=activation)
    adapter.resize({0: 2, 3: 0, 4: 5})
    values = _drawn(adapter)
    adapter.write(values)
    plain = tiny.load(*BERT).model.double()
    leaves: Any = {
        name: torch.from_numpy(array).double().requires_grad_()
        for name, array in values.items()
        if not is_head(name)
    }
    for name in ("weight", "bias"):
        given = torch.from_numpy(values[f"base_model.model.classifier.{name}"])
        getattr(plain.classifier, name).data.copy_(given)
    act = {"relu": torch.relu, "gelu": torch.nn.functional.gelu}[activation]
    wanted = _bert_by_hand(plain, leaves, batch, act)
    given = adapter.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    bound = 500 * EPS * float(wanted.detach().abs().max())
    assert (given - wanted).abs().max() < bound
    loss = torch.nn.functional.cross_entropy
    loss(wanted, batch["labels"]).backward()
    loss(given, batch["labels"]).backward()
    assert len(leaves) == 4
    for name, leaf in leaves.items():
        gradient, scale = adapter.parameters[name].grad, float(leaf.grad.abs().max())
        assert gradient is not None
        assert (gradient - leaf.grad).abs().max() < 2000 * EPS * scale
        assert scale > 0


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("case", [BERT, ("t5", "causal_lm"), ("vit", "image_classification")])
def test_a_narrower_adapter_is_one_with_masked_units(
    tiny: TinyModels, case: tuple[str, str], activation: str
) -> None:
    """Zeros in U mask a unit, whatever its row of D is."""
    layout = {0: 1, 3: 3, 4: 0}
    one, two = (_adapter(tiny, case, activation=activation) for _ in range(2))
    whole = _drawn(one)
    one.write(whole)
    one.resize(layout)
    part, wanted = one.read(), cut(whole, layout)
    assert part.keys() == wanted.keys()
    assert all(np.array_equal(part[name], wanted[name]) for name in part)
    masked = pad(wanted, whole)
    two.write({n: whole[n] if n.endswith(".down") else array for n, array in masked.items()})
    batch = tiny.batch(*case, 5)
    narrow, wide = (logits_of(adapter.model, batch) for adapter in (one, two))
    assert (narrow - wide).abs().max() <= 64 * EPS * float(narrow.abs().max())
    two.write(whole)
    assert not torch.allclose(logits_of(two.model, batch), wide, rtol=0.01)


def test_an_adapter_of_the_emulator_plugs_into_the_full_model(tiny: TinyModels) -> None:
    """Same names, same starting values; and its copy has adapters of its own."""
    backbone = tiny.load("gpt2", "causal_lm")
    split = Split(1, 2, 2, DEPTH)
    model = build_emulator(backbone.model, "causal_lm", Split(1, 1, 2, DEPTH))
    emulated = Adapter(
        model, blocks=(0, 2, 3, 4), tuned_blocks=OUTER, heads=(), spec=BottleneckSpec(2), seed=0
    )
    full = Adapter(
        backbone.model,
        blocks=range(DEPTH),
        tuned_blocks=split.outer,
        heads=(),
        spec=BottleneckSpec(2),
        seed=0,
    )
    assert emulated.layout_hash() == full.layout_hash()
    one, two = emulated.read(), full.read()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    batch = tiny.batch("gpt2", "causal_lm", 4)
    twin = copy.deepcopy(full.model)
    full.write(_drawn(full))
    assert not torch.equal(logits_of(full.model, batch), logits_of(twin, batch))


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_on_the_untouched_checkpoint(
    tiny: TinyModels, case: tuple[str, str], tmp_path: Path
) -> None:
    batch = tiny.batch(*case, 5)
    adapter = _adapter(tiny, case, activation="relu")
    adapter.resize({0: 5, 3: 0, 4: 2})
    adapter.write(_drawn(adapter))
    wanted = logits_of(adapter.model, batch)
    adapter.save(tmp_path)
    config = tiny.load(*case).model.config
    base = auto_class(case[1], config).from_pretrained(tiny.path(*case))
    base.config.pad_token_id = getattr(config, "pad_token_id", None)
    loaded = load_adapter(base, tmp_path)
    assert torch.equal(logits_of(loaded, batch), wanted)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_what_left_the_checkpoint_is_saved_along(tiny: TinyModels, tmp_path: Path) -> None:
    model = tiny.load(*BERT).model
    with torch.no_grad():
        model.bert.pooler.dense.weight.mul_(-1.0)
    adapter = Adapter(
        model,
        blocks=range(DEPTH),
        tuned_blocks=OUTER,
        heads=("classifier",),
        spec=BottleneckSpec(2),
        seed=0,
        carried=("bert.pooler",),
    )
    assert not any("pooler" in name for name in adapter.parameters)
    adapter.save(tmp_path)
    loaded = load_adapter(tiny.load(*BERT).model, tmp_path)
    batch = tiny.batch(*BERT, 3)
    assert torch.equal(logits_of(loaded, batch), logits_of(adapter.model, batch))


def test_what_is_no_such_adapter_is_named(tiny: TinyModels, tmp_path: Path) -> None:
    model = tiny.load(*BERT).model
    with pytest.raises(ModelError, match="holds no adapter"):
        load_adapter(model, tmp_path)
    _adapter(tiny).save(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    for change, says in (
        ({"peft_type": "LORA"}, r"PeftModel\.from_pretrained"),
        ({"kind": "prefix"}, "kind='prefix' is unknown; .* bottleneck"),
        ({"settings": {}}, "is damaged"),
        ({"heads": ["score"]}, "does not fit a bert model"),
        ({"blocks": [0, 4]}, "tuned blocks"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=says):
            load_adapter(tiny.load(*BERT).model, tmp_path)
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not fit"):
        load_adapter(tiny.load("gpt2", "causal_lm").model, tmp_path)
    path.write_text("[]")
    with pytest.raises(ModelError, match="is damaged"):
        load_adapter(tiny.load(*BERT).model, tmp_path)


def test_a_second_adapter_does_not_come_on_top(tiny: TinyModels, tmp_path: Path) -> None:
    _adapter(tiny).save(tmp_path)
    model = tiny.load(*BERT).model
    load_adapter(model, tmp_path)
    with pytest.raises(ModelError, match="load the checkpoint again"):
        load_adapter(model, tmp_path)


def test_what_does_not_fit_is_named(tiny: TinyModels) -> None:
    adapter = _adapter(tiny)
    for layout in ({0: 1}, {0: 1, 3: 1, 4: -1}, {0: 1, 3: 1, 4: 1, 2: 1}):
        with pytest.raises(ModelError, match=r"\[0, 3, 4\]"):
            adapter.resize(layout)
    one = dict.fromkeys(OUTER, 1)
    with pytest.raises(ModelError, match="travel whole"):
        adapter.resize(one, {block: (2,) for block in OUTER})
    with pytest.raises(ModelError, match="relu, gelu"):
        _adapter(tiny, activation="tanh")


def test_probing_looks_at_a_map_of_zeros_behind_every_block(tiny: TinyModels) -> None:
    """Oracle: its gradient is the sum over positions of (gradient behind the block) h^T."""
    batch, adapter = tiny.batch(*BERT, 5), _adapter(tiny)
    block = adapter.bare_model.bert.encoder.layer[3]
    seen: list[torch.Tensor] = []
    block.register_forward_hook(lambda _m, _i, output: seen.append(output))
    block.bottleneck.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    before = logits_of(adapter.model, batch)
    seen.clear()
    with adapter.probed() as maps:
        assert len(maps) == len(OUTER)
        output = adapter.model(**batch)
        state, behind = seen
        behind.retain_grad()
        output.loss.backward()
        wanted = torch.einsum("bti,btj->ij", behind.grad, state.detach())
        found = maps["base_model.model.bert.encoder.layer.3"].grad
        assert found is not None
        assert (found - wanted).abs().max() < 100 * EPS * float(wanted.abs().max())
        assert float(wanted.abs().max()) > 0
    assert torch.equal(logits_of(adapter.model, batch), before)
    assert not any("probe" in name for name, _ in adapter.model.named_parameters())
