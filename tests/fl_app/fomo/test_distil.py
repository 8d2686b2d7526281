"""Distillation of the emulator's middle."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.errors import ModelError
from fl_app.fomo.distil import Distillation, alignment_loss, distil
from fl_app.fomo.emulator import Split, build_emulator, full_split, middle_parameters
from fl_app.seeding import generator
from tests.fixtures_models import DEPTH, TinyModels, logits_of, state_bytes

_SPLIT = Split(1, 2, 1, DEPTH)
_CLASSES = "sequence_classification"
_CASES = (
    ("bert", _CLASSES),
    ("gpt2", "causal_lm"),
    ("t5", "causal_lm"),
    ("t5", _CLASSES),
    ("vit", "image_classification"),
)


def _settings(**changes: Any) -> Distillation:
    values: dict[str, Any] = {"lr": 0.01, "lm_weight": 0.0, "kd_weight": 1.0, "steps": 1}
    return Distillation(**(values | changes))


def _states(seed: int, shape: tuple[int, ...] = (3, 5, 4)) -> torch.Tensor:
    return torch.from_numpy(generator(seed, "states").normal(size=shape))


_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])


def test_alignment_loss_by_hand() -> None:
    """Sum of squared errors over sum of squares, real tokens only, in plain loops."""
    teacher, student = _states(1), _states(2)
    error = energy = 0.0
    for row in range(3):
        for token in range(5):
            for entry in range(4):
                if _MASK[row, token]:
                    error += float(teacher[row, token, entry] - student[row, token, entry]) ** 2
                    energy += float(teacher[row, token, entry]) ** 2
    assert float(alignment_loss(teacher, student, _MASK)) == pytest.approx(
        error / energy, rel=1e-12
    )


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    row=st.integers(0, 2), token=st.integers(0, 4), entry=st.integers(0, 3), by=st.floats(1e-6, 9)
)
def test_alignment_loss_is_zero_only_for_equal_states(
    row: int, token: int, entry: int, by: float
) -> None:
    """One entry off anywhere counts, except where the mask says it is padding."""
    teacher = _states(1)
    assert float(alignment_loss(teacher, teacher.clone(), _MASK)) == 0.0
    student = teacher.clone()
    student[row, token, entry] += by
    assert (float(alignment_loss(teacher, student, _MASK)) > 0.0) == bool(_MASK[row, token])


@settings(derandomize=True, max_examples=60, deadline=None)
@given(scale=st.floats(1e-3, 1e3), sign=st.sampled_from([-1, 1]))
def test_alignment_loss_is_blind_to_a_joint_scale(scale: float, sign: int) -> None:
    """Deep and shallow blocks count alike, whatever the size of their states."""
    teacher, student = _states(1), _states(2)
    plain = float(alignment_loss(teacher, student, _MASK))
    scaled = float(alignment_loss(sign * scale * teacher, sign * scale * student, _MASK))
    assert scaled == pytest.approx(plain, rel=1e-9)


def test_alignment_loss_ignores_masked_positions_of_both() -> None:
    """Padding of any size changes nothing, and gets no gradient."""
    teacher, student = _states(1), _states(2)
    plain = alignment_loss(teacher, student, _MASK)
    noise = 1e3 * _states(3) * (1 - _MASK).unsqueeze(-1)
    student = (student + noise).requires_grad_(True)
    loss = alignment_loss(teacher - noise, student, _MASK)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert (student.grad[_MASK == 0] == 0).all()
    assert (student.grad[_MASK == 1] != 0).all()


@pytest.mark.parametrize(("family", "task"), _CASES)
def test_only_the_middle_moves_and_the_loss_falls(tiny: TinyModels, family: str, task: str) -> None:
    """15 steps on one batch; teacher and the emulator's outer blocks keep every bit."""
    teacher = tiny.load(family, task).model
    student = build_emulator(teacher, task, _SPLIT)
    middle = tuple(middle_parameters(student, _SPLIT))
    outer, whole = state_bytes(student, but=middle), state_bytes(teacher)
    before = state_bytes(student)
    batch = tiny.batch(family, task, 8)
    history = distil(teacher, student, _SPLIT, [batch] * 15, None, _settings(steps=15))
    assert len(history) == 15
    assert history[-1] < 0.9 * history[0]
    assert state_bytes(teacher) == whole
    assert state_bytes(student, but=middle) == outer
    after = state_bytes(student)
    assert sum(after[name] != before[name] for name in middle) > len(middle) / 2
    assert not any(p.requires_grad for p in student.parameters())
    assert not student.training


@pytest.mark.parametrize(("family", "task"), _CASES)
def test_loss_is_zero_where_nothing_is_dropped(tiny: TinyModels, family: str, task: str) -> None:
    """The emulator with all blocks is the teacher, so there is nothing to learn."""
    teacher = tiny.load(family, task).model
    split = full_split(teacher.config, 1, 1)
    student = build_emulator(teacher, task, split)
    before = state_bytes(student)
    history = distil(
        teacher, student, split, [tiny.batch(family, task, 4)], None, _settings(lr=0.0)
    )
    assert history == [0.0]
    assert state_bytes(student) == before


@pytest.mark.parametrize("numbers", [(1, 1, 1), (0, 2, 1), (2, 1, 0), (1, 2, 2)])
def test_loss_compares_the_states_behind_both_middles(
    tiny: TinyModels, numbers: tuple[int, int, int]
) -> None:
    """With BERT's own ``hidden_states``, and by hand; splits with an empty side too."""
    teacher = tiny.load("bert", _CLASSES).model
    split = Split(*numbers, DEPTH)
    student = build_emulator(teacher, _CLASSES, split)
    batch = tiny.batch("bert", _CLASSES, 4)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        wanted = teacher(**inputs, output_hidden_states=True).hidden_states[DEPTH - split.right]
        given = student(**inputs, output_hidden_states=True).hidden_states[
            split.left + split.middle
        ]
        real = batch["attention_mask"].bool()
        expected = ((wanted - given)[real] ** 2).sum() / (wanted[real] ** 2).sum()
    assert distil(teacher, student, split, [batch], None, _settings(kd_weight=3.0)) == [
        pytest.approx(3.0 * float(expected), rel=1e-5)
    ]


def _padded(batch: dict[str, torch.Tensor], inputs: int, labels: int) -> dict[str, torch.Tensor]:
    """Adds columns of padding to token ids and mask, and to two-dimensional labels."""
    fillers = {"input_ids": (0, inputs), "attention_mask": (0, inputs), "labels": (-100, labels)}
    padded = dict(batch)
    for name, (filler, columns) in fillers.items():
        if batch[name].ndim == 2:
            more = torch.full((len(batch[name]), columns), filler)
            padded[name] = torch.cat([batch[name], more], dim=1)
    return padded


@pytest.mark.parametrize(
    ("family", "task"), [("bert", _CLASSES), ("gpt2", "causal_lm"), ("t5", "causal_lm")]
)
def test_padding_does_not_change_the_loss(tiny: TinyModels, family: str, task: str) -> None:
    """An encoder-decoder has padding of two kinds; equal lengths must not confuse them."""
    teacher = tiny.load(family, task).model
    batch = tiny.batch(family, task, 4)
    longest = max(value.shape[1] for value in batch.values() if value.ndim == 2) + 2

    def loss(padded: dict[str, torch.Tensor]) -> float:
        student = build_emulator(teacher, task, _SPLIT)
        return distil(teacher, student, _SPLIT, [padded], None, _settings())[0]

    columns = {name: longest - v.shape[1] for name, v in batch.items() if v.ndim == 2}
    padded = _padded(batch, columns["input_ids"], columns.get("labels", 0))
    assert loss(padded) == pytest.approx(loss(batch), rel=1e-4)


def test_language_model_term_is_added(tiny: TinyModels) -> None:
    """lm_weight * LM + kd_weight * KD, for the first step."""
    teacher = tiny.load("llama", "causal_lm").model
    task = tiny.task("llama", "causal_lm")
    batch = tiny.batch("llama", "causal_lm", 4)

    def first(lm_weight: float, kd_weight: float) -> float:
        student = build_emulator(teacher, "causal_lm", _SPLIT)
        values = _settings(lm_weight=lm_weight, kd_weight=kd_weight)
        return distil(teacher, student, _SPLIT, [batch], task.loss, values)[0]

    lm, kd = first(1.0, 0.0), first(0.0, 1.0)
    with torch.inference_mode():
        alone = float(task.loss(build_emulator(teacher, "causal_lm", _SPLIT), batch))
    assert lm == pytest.approx(alone, rel=1e-6)
    assert kd > 0
    assert first(0.5, 2.0) == pytest.approx(0.5 * lm + 2.0 * kd, rel=1e-5)


def test_steps_and_batches_both_bound_the_length(tiny: TinyModels) -> None:
    """Whichever ends first; no batch is drawn in vain."""
    teacher = tiny.load("bert", _CLASSES).model
    student = build_emulator(teacher, _CLASSES, _SPLIT)
    batch = tiny.batch("bert", _CLASSES, 2)
    assert len(distil(teacher, student, _SPLIT, [batch] * 5, None, _settings(steps=3))) == 3
    assert len(distil(teacher, student, _SPLIT, [batch] * 2, None, _settings(steps=9))) == 2
    assert distil(teacher, student, _SPLIT, [batch], None, _settings(steps=0)) == []
    source = iter([batch] * 5)
    distil(teacher, student, _SPLIT, source, None, _settings(steps=3))
    assert len(list(source)) == 2


def test_distillation_helps_the_emulator_imitate(tiny: TinyModels) -> None:
    """On rows it has not seen, logits come closer to the full model's."""
    teacher = tiny.load("bert", _CLASSES).model
    student = build_emulator(teacher, _CLASSES, _SPLIT)
    batch = tiny.batch("bert", _CLASSES, 96)
    seen, unseen = ({n: v[i] for n, v in batch.items()} for i in (slice(64), slice(64, 96)))
    wanted = logits_of(teacher, unseen)
    before = float((logits_of(student, unseen) - wanted).square().mean())
    distil(teacher, student, _SPLIT, [seen] * 30, None, _settings(steps=30))
    assert float((logits_of(student, unseen) - wanted).square().mean()) < 0.8 * before


def test_divergence_is_an_error(tiny: TinyModels) -> None:
    """The text names the step, the setting and its value."""
    teacher = tiny.load("bert", _CLASSES).model
    student = build_emulator(teacher, _CLASSES, _SPLIT)
    with torch.no_grad():
        student.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    batch = tiny.batch("bert", _CLASSES, 2)
    with pytest.raises(ModelError, match=r"diverged at step 1; lower strategy.*distil\.lr=0\.01"):
        distil(teacher, student, _SPLIT, [batch], None, _settings())
