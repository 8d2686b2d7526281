"""Joint tuning against tuning apart, its gradients, and snapshots against torch's scheduler."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.evaluate import evaluate
from fl_app.finetune import tune
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.prompts.batched import Tensors, log_probabilities, tensors_of
from fl_app.prompts.errors import PromptError
from fl_app.prompts.joint import JointLoss, diversity, tune_snapshots, tune_together
from fl_app.prompts.measure import measure, weights_on
from fl_app.seeding import generator
from tests.fixtures_models import TinyModels, state_bytes, tiny_examples
from tests.prompt_fixtures import CLASSES, drawn_member, easy_rows, fit_for, prompted, settings


def _members(tiny: TinyModels, lengths: tuple[int, ...] = (2, 5, 3)) -> list[Any]:
    fit = fit_for(tiny.load("bert", CLASSES))
    return [drawn_member(fit, m, seed, with_head=True) for seed, m in enumerate(lengths)]


def test_members_tuned_together_are_members_tuned_apart(tiny: TinyModels) -> None:
    """With k times the mean loss alone nothing joins them; ``tune`` is the oracle."""
    backbone, task = tiny.load("bert", CLASSES), tiny.task("bert", CLASSES)
    encoded, members = task.encode(easy_rows(24)), _members(tiny)
    how, frozen = settings(max_steps=3), state_bytes(backbone.model)
    loss = JointLoss(ensemble=0.0, member=float(len(members)))
    rng = generator(0, "tune")
    together, losses = tune_together(backbone.model, members, task, encoded, how, rng, loss)
    assert len(losses) == 3
    assert state_bytes(backbone.model) == frozen
    for before, after in zip(members, together, strict=True):
        adapter = prompted(tiny.load("bert", CLASSES), before)
        tune(adapter.model, adapter.parameters, task, encoded, how, generator(0, "tune"))
        for name, array in adapter.read().items():
            np.testing.assert_allclose(after.arrays()[name], array, rtol=1e-3, atol=1e-5)
            assert np.abs(array - before.arrays()[name]).max() > 0.01


def test_joint_tuning_lowers_the_loss_of_the_ensemble(tiny: TinyModels) -> None:
    backbone, task = tiny.load("bert", CLASSES), tiny.task("bert", CLASSES)
    encoded, held_out = task.encode(easy_rows(48)), task.encode(easy_rows(60, seed=1))
    members = _members(tiny)
    loss = JointLoss(member=0.2, diversity=0.02)
    tuned, _ = tune_together(
        backbone.model, members, task, encoded, settings(), generator(0, "tune"), loss
    )
    before, after = (
        measure(backbone.model, [tensors_of(m) for m in group], task, held_out)
        for group in (members, tuned)
    )
    assert after.ensemble_loss < before.ensemble_loss / 2
    # five standard errors above the accuracy 1/3 of a guess on 60 rows
    assert after.ensemble > 1 / 3 + 5 * math.sqrt(1 / 3 * 2 / 3 / 60)


def test_a_member_without_weight_has_no_gradient(tiny: TinyModels) -> None:
    """Oracle 9, and that the others have one; with g > 0 it has one too."""
    backbone, batch = tiny.load("bert", CLASSES), tiny.batch("bert", CLASSES, 4)
    for g, is_zero in ((0.0, True), (0.5, False)):
        tensors = [tensors_of(member) for member in _members(tiny)]
        for each in tensors:
            each.prompt.requires_grad_()
        loss = JointLoss(member=g, weights=(0.5, 0.0, 0.5))
        loss(*log_probabilities(backbone.model, tensors, batch)).backward()
        grads = [float(torch.as_tensor(t.prompt.grad).abs().max()) for t in tensors]
        assert (grads[1] == 0.0) == is_zero
        assert min(grads[0], grads[2]) > 0


def test_the_loss_by_hand() -> None:
    p = np.array([[[0.9, 0.1], [0.5, 0.5]], [[0.2, 0.8], [0.5, 0.5]]])
    labels = torch.tensor([0, 1])
    mean = p.mean(0)

    def entropy(q: np.ndarray) -> np.ndarray:
        return -(q * np.log(q)).sum(-1)

    spread = float((entropy(mean) - entropy(p).mean(0)).mean())
    mixed = -float(np.log(mean[[0, 1], [0, 1]]).mean())
    each = -float(np.log(p[:, [0, 1], [0, 1]]).mean())
    log_probs = torch.from_numpy(np.log(p))
    found = JointLoss(ensemble=2.0, member=0.7, diversity=0.3)(log_probs, labels)
    assert float(found) == pytest.approx(2 * mixed + 0.7 * each - 0.3 * spread)
    assert float(diversity(log_probs[:1].expand(3, -1, -1))) == pytest.approx(0.0, abs=1e-12)
    opposed = torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, 0.0]]])
    assert float(diversity(opposed)) == pytest.approx(math.log(2))


def test_snapshots_are_taken_where_the_rate_is_lowest(tiny: TinyModels) -> None:
    """The rates are those of torch's cosine schedule with warm restarts."""
    task, start = tiny.task("bert", CLASSES), _members(tiny)[0]
    adapter = prompted(tiny.load("bert", CLASSES), start)
    how, rates, cycle = settings(max_steps=12), list[float](), 4
    real = torch.optim.AdamW.step

    def spy(self: Any, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        snapshots = tune_snapshots(
            adapter.model,
            adapter.parameters,
            task,
            task.encode(easy_rows(48)),
            how,
            generator(0, "tune"),
            num_cycles=3,
        )
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=how.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(dummy, T_0=cycle)
    for rate in rates:
        assert rate == pytest.approx(dummy.param_groups[0]["lr"])
        dummy.step()
        schedule.step()
    assert len(rates) == 12
    assert len(snapshots) == 3
    for name, array in adapter.read().items():
        assert np.array_equal(snapshots[-1][name], array)
    prompts = [snapshot[PROMPT_NAME] for snapshot in snapshots]
    assert min(np.abs(a - b).max() for a, b in itertools.pairwise(prompts)) > 0.01


def test_the_triple_by_hand(tiny: TinyModels) -> None:
    """Accuracy counts rows; the mean of the losses is Jensen's upper bound on the mixture's."""
    backbone, task = tiny.load("bert", CLASSES), tiny.task("bert", CLASSES)
    encoded = task.encode(easy_rows(30))
    tensors = [tensors_of(member) for member in _members(tiny)]
    weights = weights_on(backbone.model, tensors, task, encoded, eta=0.1)
    found = measure(
        backbone.model, tensors, task, encoded, how="mean", weights=weights, batch_size=7
    )
    whole = task.batch(encoded, range(30))
    with torch.inference_mode():
        log_probs, labels = log_probabilities(backbone.model, tensors, whole)
    hits = (log_probs.argmax(-1) == labels).double().mean(-1).tolist()
    mixed = sum(w * p for w, p in zip(weights, log_probs.exp(), strict=True))
    assert found.members == pytest.approx(hits)
    assert found.ensemble == pytest.approx(float((mixed.argmax(-1) == labels).double().mean()))
    assert found.ensemble_loss <= sum(w * x for w, x in zip(weights, found.losses, strict=True))
    result = found.as_result()
    assert result["member_best"] == pytest.approx(max(hits))
    assert result["member_mean"] == pytest.approx(sum(hits) / 3)
    spread = 30 * 0.1 * (found.losses[0] - found.losses[1])
    # Sums of 30 float32 losses are off by 30 roundings at most, in the exponent times 30 * 0.1.
    off = 30 * 0.1 * (found.losses[0] + found.losses[1]) * 30 * 2.0**-24
    assert weights[1] / weights[0] == pytest.approx(math.exp(spread), rel=2 * off)


def test_a_language_model_is_measured_in_perplexity(tiny: TinyModels) -> None:
    """One member: that of the task itself. Two: between the best and the worst."""
    backbone, task = tiny.load("gpt2", "causal_lm"), tiny.task("gpt2", "causal_lm")
    encoded = task.encode(tiny_examples(9))
    members = [drawn_member(fit_for(backbone), m, m) for m in (2, 4)]
    found = measure(backbone.model, [tensors_of(m) for m in members], task, encoded, batch_size=4)
    for member, value in zip(members, found.members, strict=True):
        adapter = prompted(tiny.load("gpt2", "causal_lm"), member)
        assert value == pytest.approx(evaluate(adapter.model, task, encoded), rel=1e-5)
    assert found.ensemble < max(found.members)
    assert found.as_result()["member_best"] == min(found.members)
    with pytest.raises(PromptError, match="decoded strings"):
        measure(backbone.model, [tensors_of(members[0])], task, encoded, how="vote")


def test_weights_of_a_language_model_count_every_token(tiny: TinyModels) -> None:
    """The posterior of a Bayes mixture: prior times likelihood of all tokens, by the task's sum."""
    task = tiny.task("gpt2", "causal_lm")
    encoded = task.encode(tiny_examples(9))
    backbone = tiny.load("gpt2", "causal_lm")
    members = [drawn_member(fit_for(backbone), m, m) for m in (2, 4)]
    totals = []
    for member in members:
        model = prompted(tiny.load("gpt2", "causal_lm"), member).model
        with torch.inference_mode():
            nats, tokens = task.score(model, task.batch(encoded, range(9)))
        totals.append(nats)
    eta = 1 / (totals[0] - totals[1])  # the likelihoods differ by a factor of e
    assert tokens >= 2 * len(encoded)
    tensors = [tensors_of(member) for member in members]
    weights = weights_on(backbone.model, tensors, task, encoded, eta=abs(eta), batch_size=4)
    first = 1 / (1 + math.exp(math.copysign(1.0, eta)))
    # sums of float32 losses, relative to their difference
    off = tokens * 2.0**-24 * max(totals) * abs(eta)
    assert weights == pytest.approx((first, 1 - first), abs=2 * off)


def test_what_cannot_be_tuned_is_named(tiny: TinyModels) -> None:
    backbone, task = tiny.load("bert", CLASSES), tiny.task("bert", CLASSES)
    encoded, members = task.encode(easy_rows(12)), _members(tiny)
    for bad in ({"proximal_mu": 0.1}, {"logit_adjustment": 1.0}):
        with pytest.raises(PromptError, match="unsupported-setting"):
            tune_together(
                backbone.model, members, task, encoded, settings(**bad), generator(0), JointLoss()
            )
    adapter = prompted(backbone, members[0])
    with pytest.raises(PromptError, match="too-few-steps"):
        tune_snapshots(
            adapter.model,
            adapter.parameters,
            task,
            encoded,
            settings(max_steps=2),
            generator(0),
            num_cycles=3,
        )
    with pytest.raises(PromptError, match="bad-weights"):
        measure(backbone.model, [Tensors(torch.zeros(1, 16))], task, encoded, weights=[-1.0])
