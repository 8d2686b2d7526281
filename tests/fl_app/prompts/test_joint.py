"""Joint tuning against tuning apart, its gradients, and what members are worth together."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from fl_app import updates
from fl_app.errors import ModelError
from fl_app.evaluate import evaluate
from fl_app.finetune import tune
from fl_app.prompts.batched import Tensors, log_probabilities, tensors_of
from fl_app.prompts.errors import PromptError
from fl_app.prompts.joint import JointAdapter, JointLoss, JointTask, diversity
from fl_app.prompts.measure import measure, weights_on
from fl_app.prompts.member import member_of
from fl_app.seeding import generator
from tests.fixtures_models import TinyModels, state_bytes, task_of, tiny_examples
from tests.prompt_fixtures import CLASSES, drawn_member, easy_rows, fit_for, prompted, settings


def _members(tiny: TinyModels, lengths: tuple[int, ...] = (2, 5, 3)) -> list[Any]:
    fit = fit_for(tiny.load("bert", CLASSES))
    return [drawn_member(fit, m, seed, with_head=True) for seed, m in enumerate(lengths)]


def _joined(tiny: TinyModels, members: list[Any]) -> JointAdapter:
    """The members, ready to be tuned together."""
    adapter = prompted(tiny.load("bert", CLASSES), members[0])
    joint = JointAdapter(adapter, len(members))
    joint.write(updates.join([member.arrays() for member in members]))
    return joint


def test_members_tuned_together_are_members_tuned_apart(tiny: TinyModels) -> None:
    """With k times the mean loss alone nothing joins them; ``tune`` is the oracle.

    Labels are skewed, so every member's logits are adjusted, and each has a clipping norm.
    """
    task = task_of(tiny.load("bert", CLASSES), overall_shares=(0.2, 0.5, 0.3))
    encoded, members = task.encode(easy_rows(24)), _members(tiny, (3, 3, 3))
    how = settings(max_steps=3, logit_adjustment=1.0, clip_norm=0.05, proximal_mu=0.1)
    joint = _joined(tiny, members)
    goal = JointTask(task, JointLoss(ensemble=0.0, member=float(len(members))))
    _, steps = tune(joint.model, joint.parameters, goal, encoded, how, generator(0, "tune"))
    assert steps == 3
    after = updates.split(joint.read(), len(members))
    for member, arrays in zip(members, after, strict=True):
        adapter = prompted(tiny.load("bert", CLASSES), member)
        tune(adapter.model, adapter.parameters, task, encoded, how, generator(0, "tune"))
        for name, array in adapter.read().items():
            np.testing.assert_allclose(arrays[name], array, rtol=1e-3, atol=1e-5)
            assert np.abs(array - member.arrays()[name]).max() > 0.01


def test_joint_tuning_lowers_the_loss_of_the_ensemble(tiny: TinyModels) -> None:
    task, members = tiny.task("bert", CLASSES), _members(tiny, (3, 3, 3))
    backbone = tiny.load("bert", CLASSES)
    frozen = state_bytes(backbone.model)
    encoded, held_out = task.encode(easy_rows(48)), task.encode(easy_rows(60, seed=1))
    joint = _joined(tiny, members)
    goal = JointTask(task, JointLoss(member=0.2, diversity=0.02))
    tune(joint.model, joint.parameters, goal, encoded, settings(), generator(0, "tune"))
    tuned = [member_of(arrays, members[0].card) for arrays in updates.split(joint.read(), 3)]
    before, after = (
        measure(backbone.model, [tensors_of(m) for m in group], task, held_out)
        for group in (members, tuned)
    )
    assert state_bytes(backbone.model) == frozen
    assert after.ensemble_loss < before.ensemble_loss / 2
    # five standard errors above the accuracy 1/3 of a guess on 60 rows
    assert after.ensemble > 1 / 3 + 5 * math.sqrt(1 / 3 * 2 / 3 / 60)


def test_members_of_a_language_model_are_tuned_together(tiny: TinyModels) -> None:
    """One member alone is ``tune`` of a prompt; losses count predicted tokens as the task does."""
    task = tiny.task("gpt2", "causal_lm")
    encoded = task.encode(tiny_examples(9))
    member = drawn_member(fit_for(tiny.load("gpt2", "causal_lm")), 3, 1)
    alone = prompted(tiny.load("gpt2", "causal_lm"), member)
    joint = JointAdapter(prompted(tiny.load("gpt2", "causal_lm"), member), 1)
    how = settings(max_steps=2)
    wanted, _ = tune(alone.model, alone.parameters, task, encoded, how, generator(0))
    goal = JointTask(task, JointLoss(member=0.0))
    found, _ = tune(joint.model, joint.parameters, goal, encoded, how, generator(0))
    assert found == pytest.approx(wanted, rel=1e-5)
    for name, array in alone.read().items():
        np.testing.assert_allclose(joint.read()[name], array, rtol=1e-3, atol=1e-5)


def test_a_joint_adapter_refuses_what_does_not_fit(tiny: TinyModels) -> None:
    joint = _joined(tiny, _members(tiny, (3, 3)))
    arrays = joint.read()
    with pytest.raises(ModelError, match="does not fit"):
        joint.write(dict(list(arrays.items())[1:]))
    assert all(np.array_equal(array, arrays[name]) for name, array in joint.read().items())


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


def test_weights_that_are_none_are_named(tiny: TinyModels) -> None:
    backbone, task = tiny.load("bert", CLASSES), tiny.task("bert", CLASSES)
    encoded = task.encode(easy_rows(12))
    with pytest.raises(PromptError, match="bad-weights"):
        measure(backbone.model, [Tensors(torch.zeros(1, 16))], task, encoded, weights=[-1.0])
