"""One pass for k prompts against k passes, each through ``PromptedModel``."""

import pytest
import torch

from fl_app.prompts.batched import (
    Tensors,
    as_it_is,
    forward,
    log_probabilities,
    member_losses,
    tensors_of,
)
from fl_app.prompts.errors import PromptError
from tests.fixtures_models import CASES, TinyModels, logits_of, state_bytes
from tests.prompt_fixtures import CLASSES, alone, drawn_member, fit_for, prompted

_PROMPTED = [case for case in CASES if case[0] != "vit" and case != ("t5", CLASSES)]
_LENGTHS = (3, 1, 5)


@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize(("family", "task"), _PROMPTED)
def test_k_prompts_in_one_pass_are_k_passes(
    tiny: TinyModels, family: str, task: str, with_head: bool
) -> None:
    """Lengths differ, texts are padded; a lost mask or position would show in every logit."""
    backbone, batch = tiny.load(family, task), tiny.batch(family, task, 5)
    fit, frozen = fit_for(backbone), state_bytes(backbone.model)
    members = [drawn_member(fit, m, i, with_head=with_head) for i, m in enumerate(_LENGTHS)]
    with torch.inference_mode():
        together = forward(backbone.model, [tensors_of(m) for m in members], batch)
    read = batch["attention_mask"].bool()
    for logits, member in zip(together, members, strict=True):
        wanted = alone(tiny, family, task, member, batch)
        assert logits.shape == wanted.shape
        if task == "causal_lm" and family != "t5":  # what a model says of padding means nothing
            logits, wanted = logits[read], wanted[read]
        torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    assert state_bytes(backbone.model) == frozen
    assert not any(module._forward_hooks for module in backbone.model.modules())


@pytest.mark.parametrize(("family", "task"), [("bert", CLASSES), ("llama", "causal_lm")])
def test_a_longer_neighbour_changes_nothing(tiny: TinyModels, family: str, task: str) -> None:
    """Oracle 8: only padding is added behind a member's rows."""
    backbone, batch = tiny.load(family, task), tiny.batch(family, task, 4)
    short, long = (tensors_of(drawn_member(fit_for(backbone), m)) for m in (2, 9))
    with torch.inference_mode():
        by_itself = forward(backbone.model, [short], batch)[0]
        beside = forward(backbone.model, [long, short], batch)[1]
    read = batch["attention_mask"].bool() if task == "causal_lm" else slice(None)
    torch.testing.assert_close(beside[read], by_itself[read], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "task"), [("bert", CLASSES), ("gpt2", "causal_lm")])
def test_no_token_is_the_model_as_it_is(tiny: TinyModels, family: str, task: str) -> None:
    backbone, batch = tiny.load(family, task), tiny.batch(family, task, 4)
    with torch.inference_mode():
        logits = forward(backbone.model, [as_it_is(backbone.model)], batch)[0]
    assert torch.equal(logits, logits_of(backbone.model, batch))


def test_every_text_may_have_a_prompt_of_its_own(tiny: TinyModels) -> None:
    backbone, batch = tiny.load("bert", CLASSES), tiny.batch("bert", CLASSES, 3)
    members = [drawn_member(fit_for(backbone), 4, seed) for seed in range(3)]
    each = torch.stack([tensors_of(m).prompt for m in members])
    with torch.inference_mode():
        mixed = forward(backbone.model, [Tensors(each)], batch)[0]
        table = forward(backbone.model, [tensors_of(m) for m in members], batch)
    for row in range(3):
        torch.testing.assert_close(mixed[row], table[row, row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "task"), [("bert", CLASSES), ("gpt2", "causal_lm"), ("t5", "causal_lm")]
)
def test_losses_and_gradients_are_those_of_the_task(
    tiny: TinyModels, family: str, task: str
) -> None:
    """Both prompt and head; the task's own loss on one member is the oracle."""
    batch = tiny.batch(family, task, 4)
    members = [drawn_member(fit_for(tiny.load(family, task)), m, with_head=True) for m in (2, 4)]
    tensors = [tensors_of(member) for member in members]
    for each in tensors:
        for tensor in (each.prompt, *each.head.values()):
            tensor.requires_grad_()
    log_probs, labels = log_probabilities(tiny.load(family, task).model, tensors, batch)
    losses = member_losses(log_probs, labels)
    losses.sum().backward()
    for member, ours, loss in zip(members, tensors, losses, strict=True):
        adapter = prompted(tiny.load(family, task), member)
        wanted = tiny.task(family, task).loss(adapter.model, batch)
        wanted.backward()
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
        named = {"base_model.prompt_embeddings": ours.prompt, **ours.head}
        for name, parameter in adapter.parameters.items():
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0
            torch.testing.assert_close(named[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_what_cannot_run_is_named(tiny: TinyModels) -> None:
    backbone, batch = tiny.load("bert", CLASSES), tiny.batch("bert", CLASSES, 2)
    cases = [
        ([], "no-member"),
        ([Tensors(torch.zeros(2, 17))], "wrong-width"),
        ([Tensors(torch.zeros(32, 16))], "too-long"),
    ]
    for members, reason in cases:
        with pytest.raises(PromptError) as caught:
            forward(backbone.model, members, batch)
        assert caught.value.reason == reason
    with torch.inference_mode():
        assert forward(backbone.model, [as_it_is(backbone.model)], batch).isfinite().all()


def test_members_with_and_without_a_head_share_a_pass(tiny: TinyModels) -> None:
    """RoBERTa's head has two layers; who brings none is read by the model's own."""
    backbone, batch = tiny.load("roberta", CLASSES), tiny.batch("roberta", CLASSES, 3)
    fit = fit_for(backbone)
    members = [drawn_member(fit, 2, seed, with_head=seed == 1) for seed in range(3)]
    with torch.inference_mode():
        together = forward(backbone.model, [tensors_of(m) for m in members], batch)
    for logits, member in zip(together, members, strict=True):
        wanted = alone(tiny, "roberta", CLASSES, member, batch)
        torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
