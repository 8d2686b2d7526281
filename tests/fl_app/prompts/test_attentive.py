"""Fitted ensembles: who is asked for which text, one text at a time, against the formula."""

import numpy as np
import pytest
import torch

from fl_app.prompts.attention import PromptAttention, pooled_texts
from fl_app.prompts.attentive import FITS, FitSettings, fit_attention, fit_fusion, hear
from fl_app.prompts.batched import Tensors, log_probabilities, tensors_of
from fl_app.prompts.ensemble import combine, scored_mixture
from fl_app.prompts.public_rows import PublicRows
from tests.fixtures_models import LABELS, TinyModels, logits_of, state_bytes
from tests.prompt_fixtures import CLASSES, card_for, drawn_member, easy_rows, fit_for, prompted

_HOW = FitSettings("attention", lr=0.02, epochs=80, hidden=20)


def _batches(tiny: TinyModels, num_rows: int, seed: int) -> list[dict[str, torch.Tensor]]:
    task = tiny.task("bert", CLASSES)
    encoded = task.encode(easy_rows(num_rows, seed))
    return [task.batch(encoded, range(i, min(i + 16, num_rows))) for i in range(0, num_rows, 16)]


def _stubborn(tiny: TinyModels) -> list[Tensors]:
    """Three members: each finds its own class everywhere; none is better than the others."""
    fit = fit_for(tiny.load("bert", CLASSES))
    members = []
    for j in range(len(LABELS)):
        drawn = drawn_member(fit, 4, j, with_head=True)
        head = {name: np.zeros_like(array) for name, array in drawn.head.items()}
        bias = next(name for name in head if name.endswith("bias"))
        head[bias][j] = 3.0
        members.append(tensors_of(type(drawn)(drawn.prompt, card_for(fit, j), head)))
    return members


@pytest.mark.parametrize("kind", FITS)
def test_texts_are_told_apart_where_members_cannot(tiny: TinyModels, kind: str) -> None:
    """Any fixed weights are right on a third of the rows; what looks at the text on most."""
    model, members = tiny.load("bert", CLASSES).model, _stubborn(tiny)
    frozen = state_bytes(model)
    batches = _batches(tiny, 96, 0)
    found = FITS[kind](hear(model, members, batches), _HOW, 1)
    assert found.losses[-1] < found.losses[0] / 2
    assert sum(found.weights) == pytest.approx(1)
    hits, total = {"fitted": 0.0, "mean": 0.0}, 0
    for batch in _batches(tiny, 90, 7):
        with torch.inference_mode():
            said = log_probabilities(model, members, batch)[0]
            answers = {"fitted": found.answer(model, batch, said), "mean": combine("mean", said)}
        for name, answer in answers.items():
            hits[name] += float((answer.classes == batch["labels"]).sum())
        total += len(batch["labels"])
    assert hits["mean"] / total < 0.5
    # five standard errors above a third
    assert hits["fitted"] / total > 1 / 3 + 5 * (2 / 9 / total) ** 0.5
    assert state_bytes(model) == frozen


def _fresh(members: list[Tensors], seed: int) -> PromptAttention:
    return PromptAttention(members[0].prompt.shape[-1], seed=seed, hidden=_HOW.hidden)


def _one_step(kind: str) -> FitSettings:
    return FitSettings(kind, lr=1e-12, epochs=1, hidden=_HOW.hidden)  # leaves the start as it is


def test_attention_mixes_answers_text_by_text(tiny: TinyModels) -> None:
    model = tiny.load("bert", CLASSES).model
    fit = fit_for(tiny.load("bert", CLASSES))
    members = [tensors_of(drawn_member(fit, m, m, with_head=True)) for m in (2, 5, 3)]
    (batch,) = _batches(tiny, 12, 3)
    found = fit_attention(hear(model, members, [batch]), _one_step("attention"), 4)
    attention = _fresh(members, 4)
    with torch.inference_mode():
        said = log_probabilities(model, members, batch)[0]
        weights = attention(pooled_texts(model, batch), [m.prompt for m in members])
        answer = found.answer(model, batch, said).log_probs
    wanted = torch.einsum("kb,kbc->bc", weights, said.exp()).log()
    torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-5)
    assert found.weights == pytest.approx(weights.mean(1).tolist(), rel=1e-4)
    assert float((weights[:, 0] - weights[:, 1]).abs().max()) > 1e-4  # texts do differ


def test_fusion_is_one_prompt_for_each_text(tiny: TinyModels) -> None:
    """A pass of its own for every text, by the wrapping an ordinary run is measured with."""
    backbone = tiny.load("bert", CLASSES)
    fit = fit_for(backbone)
    drawn = [drawn_member(fit, 4, seed, with_head=True) for seed in range(3)]
    members = [tensors_of(member) for member in drawn]
    (batch,) = _batches(tiny, 6, 3)
    found = fit_fusion(hear(backbone.model, members, [batch]), _one_step("fusion"), 4)
    with torch.inference_mode():
        weights = _fresh(members, 4)(
            pooled_texts(backbone.model, batch), [m.prompt for m in members]
        )
        answer = found.answer(backbone.model, batch, torch.empty(0)).log_probs
    head = {n: np.mean([m.head[n] for m in drawn], axis=0) for n in drawn[0].head}
    for row in range(6):
        prompt = sum(float(weights[j, row]) * drawn[j].prompt for j in range(3))
        member = type(drawn[0])(np.float32(prompt), card_for(fit), head)
        one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        logits = logits_of(prompted(tiny.load("bert", CLASSES), member).model, one)
        torch.testing.assert_close(answer[row], logits.log_softmax(-1)[0], rtol=1e-3, atol=1e-4)


def test_a_fits_gradient_is_finite_where_a_weight_is_nothing_or_a_member_silent() -> None:
    """Softmax weights underflow to 0 at the first sample; the second member is NaN at the last."""
    scores = torch.tensor([[0.0, 0.0, 0.0], [-1e3, -1.0, 2.0]], requires_grad=True)
    said = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    said[1, 2] = torch.nan
    mixed = scored_mixture(said, scores)
    weights = scores.detach().softmax(0)
    assert float(weights[1, 0]) == 0
    torch.testing.assert_close(mixed, combine("mean", said, weights).log_probs)
    (found,) = torch.autograd.grad(mixed[:, 0].sum(), scores)
    # d log sum_j w_j p_j / d s_i = w_i p_i / sum_j w_j p_j - w_i, here of the middle sample
    share = (weights * said[..., 0].exp())[:, 1]
    wanted = torch.zeros(2, 3)
    wanted[:, 1] = share / share.sum() - weights[:, 1]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", FITS)
def test_a_fit_that_fails_leaves_the_mean(tiny: TinyModels, kind: str) -> None:
    backbone, task = tiny.load("bert", CLASSES), tiny.task("bert", CLASSES)
    fit = fit_for(backbone)
    members = [drawn_member(fit, 3, seed, with_head=True) for seed in range(2)]
    how = FitSettings(kind, lr=1e30, epochs=3, hidden=5)
    rows = task.encode(easy_rows(40, 0))
    public = PublicRows(backbone.model, task, rows, how="mean", eta=None, fit=how, seed=0)
    found = public.fitted(members)
    assert found is not None
    assert (found.failed, found.weights) == ("not-finite", (0.5, 0.5))
    said = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    answer = found.answer(None, {}, said).log_probs
    torch.testing.assert_close(answer.exp(), said.exp().mean(0))
