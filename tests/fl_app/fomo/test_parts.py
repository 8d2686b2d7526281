"""A model cut in three computes what it computed whole; no trunk weight is at the device."""

import pytest
import torch

from fl_app.errors import ModelError
from fl_app.fomo.blocks import block_of, stack_paths
from fl_app.fomo.features import Features
from fl_app.fomo.front import Front
from fl_app.fomo.head import Head
from fl_app.fomo.parts import adopt, build_device_part, build_trunk_part
from fl_app.fomo.trunk import Trunk
from fl_app.tasks import IGNORED
from tests.fixtures_models import CASES, DEPTH, TinyModels, logits_of, state_bytes

_CLASSES = "sequence_classification"


@pytest.mark.parametrize(("family", "task"), CASES)
@pytest.mark.parametrize("cut", [0, 1, 2, DEPTH - 1])
def test_front_trunk_and_head_compute_what_the_whole_model_does(
    tiny: TinyModels, family: str, task: str, cut: int
) -> None:
    """Every family and task; the losses agree, and so does every logit that is read."""
    model = tiny.load(family, task).model
    job, batch = tiny.task(family, task), tiny.batch(family, task, 4)
    part = build_device_part(model, task, cut)
    head = Head(part)
    features = Front(part, head).features(batch, job.loss)
    held = Trunk(build_trunk_part(model, task, cut)).forward([features], want=())
    received = head.batch(held.states[0], features.readout, batch["labels"])
    with torch.no_grad():
        wanted, loss = logits_of(model, batch), job.loss(model, batch)
        logits = head(**received).logits
        assert abs(float(job.loss(head, received) - loss)) < 1e-5 * float(loss)
        assert job.score(head, received) == pytest.approx(job.score(model, batch), rel=1e-5)
    if task == "causal_lm":
        read = features.readout
        assert 0 < int(read.sum()) < read.numel()
        logits, wanted = logits[read], wanted[read]
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    assert float(wanted.std()) > 0.1


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_decoder_reads_the_states_that_predict_a_completion(
    tiny: TinyModels, family: str
) -> None:
    """Position t predicts token t + 1, so it is read where label t + 1 counts."""
    batch, part = _batch_and_part(tiny, family, "causal_lm")
    readout = _features(tiny, family, "causal_lm").readout
    wanted = torch.zeros_like(readout)
    wanted[:, :-1] = batch["labels"][:, 1:] != IGNORED
    assert torch.equal(readout, wanted)
    assert part.cut == 0


def test_an_encoder_decoder_reads_the_states_that_predict_a_completion(tiny: TinyModels) -> None:
    batch, _ = _batch_and_part(tiny, "t5", "causal_lm")
    assert torch.equal(_features(tiny, "t5", "causal_lm").readout, batch["labels"] != IGNORED)


@pytest.mark.parametrize(
    ("family", "task", "last"),
    [("bert", _CLASSES, False), ("gpt2", _CLASSES, True), ("vit", "image_classification", False)],
)
def test_a_classifier_reads_one_state_a_row(
    tiny: TinyModels, family: str, task: str, last: bool
) -> None:
    """The first one, or the last that is no padding: B d numbers each way."""
    batch, _ = _batch_and_part(tiny, family, task)
    readout = _features(tiny, family, task).readout
    index = batch["attention_mask"].sum(1) - 1 if last else torch.zeros(4, dtype=torch.long)
    assert torch.equal(readout, torch.nn.functional.one_hot(index, readout.shape[1]).bool())


def test_a_saturated_head_does_not_hide_what_it_reads(tiny: TinyModels) -> None:
    """With logits of hundreds a softmax has no gradient left in float32; readout does not mind."""
    backbone = tiny.load("bert", _CLASSES)
    with torch.no_grad():
        backbone.model.classifier.weight.mul_(1e4)
    part = build_device_part(backbone.model, _CLASSES, 0)
    batch, job = tiny.batch("bert", _CLASSES, 4), tiny.task("bert", _CLASSES)
    readout = Head(part).readout(torch.Size((4, batch["input_ids"].shape[1], 16)), batch, job.loss)
    assert readout[:, 0].all()
    assert int(readout.sum()) == 4


@pytest.mark.parametrize(("family", "task"), CASES)
@pytest.mark.parametrize("cut", [0, 2])
def test_device_part_holds_no_weight_of_the_trunk(
    tiny: TinyModels, family: str, task: str, cut: int
) -> None:
    """By name, and by value: no row of a trunk matrix; T5's position bias stays with its block."""
    model = tiny.load(family, task).model
    stacks = stack_paths(model)
    state = build_device_part(model, task, cut).model.state_dict()
    inside = {name: block_of(name, stacks) for name in state}
    front = {place for place in inside.values() if place is not None}
    assert front == {(stacks[0], i) for i in range(cut)}
    rows = {row.tobytes() for t in state.values() if t.ndim == 2 for row in t.numpy()}
    found = 0
    for name, tensor in model.state_dict().items():
        place = block_of(name, stacks)
        if tensor.ndim != 2:
            continue
        present = sum(row.tobytes() in rows for row in tensor.numpy())
        if place is None or place in front:
            found += present
        else:
            assert present == 0, name
    assert found >= 3  # the same search finds what is there


def test_features_hold_states_and_masks_only(tiny: TinyModels) -> None:
    """No integers (token ids, labels) go up; what goes up has the stated shapes."""
    for family, task in [("bert", _CLASSES), ("gpt2", "causal_lm"), ("t5", "causal_lm")]:
        batch, part = _batch_and_part(tiny, family, task)
        prompt = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
        features = _features(tiny, family, task, prompt)
        sent = [*features.hidden, *features.masks, features.prompt, features.readout]
        assert {t.dtype for t in sent if t is not None} == {torch.float32, torch.bool}
        assert not any(t.requires_grad for t in sent if t is not None)
        assert features.hidden[0].shape == (*batch["input_ids"].shape, 16)
        assert torch.equal(features.masks[0], batch["attention_mask"].bool())
        assert features.prompt is not None
        assert features.prompt.shape == (3, 16)
        assert features.num_prompt == 3
        if part.num_stacks == 2:
            assert features.hidden[1].shape == (*batch["labels"].shape, 16)


@pytest.mark.parametrize("cut", [0, 1])
def test_the_server_measures_with_what_devices_hold(tiny: TinyModels, cut: int) -> None:
    """A rounded part, adopted: parts and whole model agree again; the blocks behind stay exact."""
    model = tiny.load("bert", _CLASSES).model
    before = {name: t.clone() for name, t in model.state_dict().items()}
    part = build_device_part(model, _CLASSES, cut)
    part.model.half().float()
    adopt(model, part)
    after = model.state_dict()
    held = part.model.state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name], held.get(name, tensor))
    assert any(not torch.equal(after[name], before[name]) for name in held)
    job, batch = tiny.task("bert", _CLASSES), tiny.batch("bert", _CLASSES, 4)
    head = Head(part)
    features = Front(part, head).features(batch, job.loss)
    held_states = Trunk(build_trunk_part(model, _CLASSES, cut)).forward([features], want=()).states
    with torch.no_grad():
        logits = head(states=held_states[0], readout=features.readout).logits
        torch.testing.assert_close(logits, logits_of(model, batch), rtol=1e-5, atol=1e-5)


def test_adopting_another_models_part(tiny: TinyModels) -> None:
    part = build_device_part(tiny.load("gpt2", "causal_lm").model, "causal_lm", 0)
    with pytest.raises(ModelError, match=r"does not fit the model: weight 'transformer\.wte"):
        adopt(tiny.load("bert", _CLASSES).model, part)


def test_trunk_shares_weights_and_nothing_is_changed(tiny: TinyModels) -> None:
    """No second copy of the FoMo in memory; the model the parts were cut from stays as it was."""
    model = tiny.load("t5", "causal_lm").model
    before = state_bytes(model)
    trunk = build_trunk_part(model, "causal_lm", 2)
    build_device_part(model, "causal_lm", 2)
    shared = {t.data_ptr() for t in model.state_dict().values()}
    assert all(t.data_ptr() in shared for t in trunk.model.state_dict().values())
    assert trunk.blocks == (tuple(range(2, DEPTH)), tuple(range(DEPTH)))
    assert state_bytes(model) == before


@pytest.mark.parametrize("cut", [-1, DEPTH])
def test_cut_out_of_range(tiny: TinyModels, cut: int) -> None:
    model = tiny.load("bert", _CLASSES).model
    for build in (build_device_part, build_trunk_part):
        with pytest.raises(ModelError, match=rf"strategy.cut={cut} must be in 0\.\.4"):
            build(model, _CLASSES, cut)


def _batch_and_part(tiny: TinyModels, family: str, task: str):  # type: ignore[no-untyped-def]
    model = tiny.load(family, task).model
    return tiny.batch(family, task, 4), build_device_part(model, task, 0)


def _features(
    tiny: TinyModels, family: str, task: str, prompt: torch.Tensor | None = None
) -> Features:
    batch, part = _batch_and_part(tiny, family, task)
    return Front(part, Head(part)).features(batch, tiny.task(family, task).loss, prompt)
