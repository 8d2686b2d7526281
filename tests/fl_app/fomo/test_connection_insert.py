"""Connections inside every model family: put in, used, taken out."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from fl_app.errors import ModelError
from fl_app.fomo.adapter import Adapter, LoraSpec
from fl_app.fomo.backbone import head_modules
from fl_app.fomo.blocks import stack_paths
from fl_app.fomo.connection import Connection
from fl_app.fomo.connection_insert import (
    Insertion,
    gradients_return,
    insert_connection,
    insert_down_projections,
    padding_mask,
)
from fl_app.fomo.connection_link import LinkSpec
from fl_app.fomo.emulator import Split, build_emulator
from tests.fixtures_models import CASES, DEPTH, TinyModels, logits_of, state_bytes

QUIET = LinkSpec(tx_snr_db=math.inf, gradient_tx_snr_db=math.inf)
NOISY = LinkSpec(tx_snr_db=10.0, gradient_tx_snr_db=10.0)
WIDTH = 16


def in_pieces(insertion: Insertion) -> None:
    """Makes designed connections take E, H and F instead of W itself."""
    for connection in insertion.connections.values():
        assert isinstance(connection, Connection)
        connection._link = dataclasses.replace(connection.link, is_exact=False)


def adapter_on(model: Any, task: str, *, train_a: bool = False, tuned: Any = (1, 3)) -> Adapter:
    return Adapter(
        model,
        blocks=range(DEPTH),
        tuned_blocks=tuned,
        heads=head_modules(model, task),
        spec=LoraSpec(rank=3, alpha=6.0, targets=("all-linear",), train_a=train_a),
        seed=0,
    )


def shake(adapter: Adapter) -> None:
    """LoRA's B starts at zero; gradients of what is in front need it to be anything else."""
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))


@pytest.mark.parametrize(("family", "task"), CASES)
def test_every_family_takes_a_connection_and_gives_it_back(
    tiny: TinyModels, family: str, task: str
) -> None:
    """Noise-free logits are the plain model's, noisy ones differ, removing restores every bit."""
    model = tiny.load(family, task).model
    batch = tiny.batch(family, task, 6)
    before, names = state_bytes(model), list(dict(model.named_modules()))
    plain = logits_of(model, batch)
    with insert_connection(model, block=2, spec=QUIET, seed=0) as quiet:
        quiet.redraw(1)
        assert torch.equal(logits_of(model, batch), plain)
        in_pieces(quiet)
        again = logits_of(model, batch)
        assert torch.allclose(again, plain, rtol=1e-2, atol=1e-3 * float(plain.abs().max()))
        assert list(dict(model.named_modules())) == names
    noisy = insert_connection(model, block=2, spec=NOISY, seed=0)
    noisy.redraw(1)
    first = logits_of(model, batch)
    assert not torch.allclose(first, plain, rtol=1e-3)
    noisy.redraw(1)
    assert torch.equal(logits_of(model, batch), first)
    noisy.remove()
    noisy.remove()
    assert torch.equal(logits_of(model, batch), plain)
    assert state_bytes(model) == before


@pytest.mark.parametrize(("family", "task"), CASES)
def test_only_real_tokens_are_sent(tiny: TinyModels, family: str, task: str) -> None:
    """4 streams, 16 features: 4 uses per real token; images and T5's decoder have no padding."""
    model = tiny.load(family, task).model
    batch = tiny.batch(family, task, 6)
    insertion = insert_connection(model, block=1, spec=NOISY, seed=0)
    insertion.redraw(0)
    logits = logits_of(model, batch)
    stacks = stack_paths(model)
    uses = [insertion.connections[stack].book.forward_uses for stack in stacks]
    if family == "vit":
        assert uses == [6 * 5 * 4]  # four patches and the class token
        return
    mask = batch["attention_mask"]
    assert uses[0] == 4 * int(mask.sum())
    assert 0 < int(mask.sum()) < mask.numel()
    assert insertion.book.forward_uses == sum(uses)
    if family == "t5":
        return
    # what stands in the padding has no influence on what is sent or on its noise
    wider = {**batch, "input_ids": torch.where(mask == 1, batch["input_ids"], 7)}
    if task == "causal_lm":
        insertion.redraw(0)
        changed = logits_of(model, wider)
        assert torch.allclose(changed[mask == 1], logits[mask == 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("rotation", [False, True])
def test_without_noise_tuning_through_it_is_central_tuning(
    tiny: TinyModels, family: str, rotation: bool
) -> None:
    """Gradients of LoRA on both sides of the cut, and of the head, are plain autograd's."""
    task = "sequence_classification"
    backbone, batch = tiny.load(family, task), tiny.batch(family, task, 6)
    adapter = adapter_on(backbone.model, task, train_a=True)
    shake(adapter)
    names = list(adapter.parameters)

    def gradients() -> dict[str, torch.Tensor]:
        adapter.model.zero_grad()
        loss = tiny.task(family, task).loss(adapter.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        found = {name: p.grad for name, p in adapter.parameters.items()}
        return {name: grad.clone() for name, grad in found.items() if grad is not None}

    plain = gradients()
    spec = dataclasses.replace(QUIET, rotation=rotation)
    insertion = insert_connection(adapter.bare_model, block=2, spec=spec, seed=0)
    insertion.redraw(0)
    in_pieces(insertion)
    through = gradients()
    assert list(adapter.parameters) == names
    assert any(".1." in name and bool(grad.any()) for name, grad in plain.items())
    assert insertion.book.backward_uses == insertion.book.forward_uses
    for name, wanted in plain.items():
        scale = max(float(wanted.abs().max()), 1e-3)
        assert float((through[name] - wanted).abs().max()) < 5e-3 * scale, name


def test_a_connection_in_an_emulator_goes_by_the_full_models_numbers(tiny: TinyModels) -> None:
    backbone = tiny.load("bert", "sequence_classification")
    split = Split(left=1, middle=1, right=1, total=DEPTH)
    emulator = build_emulator(backbone.model, "sequence_classification", split)
    batch = tiny.batch("bert", "sequence_classification", 3)
    plain = logits_of(emulator, batch)
    insertion = insert_connection(emulator, block=4, spec=NOISY, seed=0, blocks=split.blocks)
    insertion.measure()
    assert not torch.equal(logits_of(emulator, batch), plain)
    insertion.remove()
    for block in (1, 3):
        with pytest.raises(ModelError, match=rf"connection.block={block} .*\[0, 2, 4\]"):
            insert_connection(emulator, block=block, spec=NOISY, seed=0, blocks=split.blocks)
    with pytest.raises(ModelError, match=r"connection.block=5 .*\[0, 1, 2, 3, 4\]"):
        insert_connection(backbone.model, block=5, spec=NOISY, seed=0)


@pytest.mark.parametrize("tuned", [(1, 3), (3,), (4,)])
@pytest.mark.parametrize("block", [0, 1, 2, 4])
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_it_is_known_whether_gradients_return(
    tiny: TinyModels, family: str, block: int, tuned: tuple[int, ...]
) -> None:
    """The oracle is a backward pass; T5's decoder reads what its tuned encoder made."""
    task = "sequence_classification"
    adapter = adapter_on(tiny.load(family, task).model, task, tuned=tuned)
    shake(adapter)
    with insert_connection(adapter.bare_model, block=block, spec=NOISY, seed=0) as insertion:
        insertion.redraw(0)
        loss = tiny.task(family, task).loss(adapter.model, tiny.batch(family, task, 4))
        loss.backward()  # type: ignore[no-untyped-call]
        returned = insertion.book.backward_uses > 0
    assert gradients_return(adapter.bare_model, block=block) == returned


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama", "t5", "vit"])
def test_loras_a_is_computed_in_the_air(tiny: TinyModels, family: str) -> None:
    """Rank 3 fits one use per token and map; without noise the model is the plain one."""
    task = "image_classification" if family == "vit" else "sequence_classification"
    backbone, batch = tiny.load(family, task), tiny.batch(family, task, 4)
    adapter = adapter_on(backbone.model, task)
    shake(adapter)
    names, plain = list(adapter.parameters), logits_of(adapter.model, batch)
    model = adapter.bare_model
    with insert_down_projections(model, block=3, spec=QUIET, seed=0) as quiet:
        quiet.redraw(0)
        assert torch.allclose(logits_of(adapter.model, batch), plain, rtol=1e-4, atol=1e-4)
        in_pieces(quiet)
        assert torch.allclose(logits_of(adapter.model, batch), plain, rtol=1e-2, atol=1e-2)
    with insert_down_projections(model, block=3, spec=NOISY, seed=0) as noisy:
        noisy.redraw(0)
        assert not torch.allclose(logits_of(adapter.model, batch), plain, rtol=1e-4, atol=1e-4)
        if family in ("bert", "distilbert", "gpt2", "llama"):
            tokens = int(batch["attention_mask"].sum())
            for connection in noisy.connections.values():
                assert connection.book.forward_uses == tokens
    assert torch.equal(logits_of(adapter.model, batch), plain)
    assert list(adapter.parameters) == names


def test_a_that_is_tuned_or_missing_is_refused(tiny: TinyModels) -> None:
    task = "sequence_classification"
    adapter = adapter_on(tiny.load("bert", task).model, task, train_a=True)
    with pytest.raises(ModelError, match="freeze-a"):
        insert_down_projections(adapter.bare_model, block=3, spec=NOISY, seed=0)
    with pytest.raises(ModelError, match=r"connection\.block=2 has no LoRA"):
        insert_down_projections(adapter.bare_model, block=2, spec=NOISY, seed=0)


def test_a_learned_link_is_tuned_beside_the_adapter_and_leaves_no_trace(tiny: TinyModels) -> None:
    task = "sequence_classification"
    backbone, batch = tiny.load("bert", task), tiny.batch("bert", task, 4)
    adapter = adapter_on(backbone.model, task)
    plain = logits_of(adapter.model, batch)
    names = list(adapter.parameters)
    with insert_connection(
        adapter.bare_model, block=2, spec=NOISY, seed=0, learned=True
    ) as insertion:
        insertion.redraw(0)
        tiny.task("bert", task).loss(adapter.model, batch).backward()  # type: ignore[no-untyped-call]
        assert {name.rsplit(".", 2)[-2] for name in insertion.parameters} >= {"connection", "norm"}
        for parameter in insertion.parameters.values():
            assert parameter.grad is not None
            assert bool(parameter.grad.any())
    assert list(adapter.parameters) == names
    assert torch.equal(logits_of(adapter.model, batch), plain)


def test_masks_of_every_shape_are_read() -> None:
    """A key that no query may look at is padding; a window or a causal mask hides no real token."""
    real = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert padding_mask(None) is None
    assert torch.equal(padding_mask(real.long()), real)  # type: ignore[arg-type]
    causal = torch.ones(4, 4).tril().bool() & real[:, None, None, :]
    window = causal & torch.ones(4, 4).triu(-1).bool()
    for mask in (causal, window):
        assert torch.equal(padding_mask(mask), real)  # type: ignore[arg-type]
        added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        assert torch.equal(padding_mask(added), real)  # type: ignore[arg-type]
