"""Attention against the formula, and that it learns which member knows which text."""

import numpy as np
import pytest
import torch

from fl_app.fomo.soft_prompt import token_table
from fl_app.prompts.attention import PromptAttention, fused, pooled_texts
from fl_app.prompts.batched import (
    Batch,
    Tensors,
    forward,
    log_probabilities,
    member_losses,
    tensors_of,
)
from fl_app.prompts.ensemble import combine
from fl_app.prompts.errors import PromptError
from fl_app.prompts.fitting import fit_parameters
from tests.fixtures_models import TinyModels
from tests.prompt_fixtures import CLASSES, drawn_member, easy_rows, fit_for


def test_attention_by_hand(tiny: TinyModels) -> None:
    """NumPy from the stated formula, text by text, padding left out."""
    backbone, batch = tiny.load("bert", CLASSES), tiny.batch("bert", CLASSES, 4)
    attention = PromptAttention(16, seed=3, hidden=5, temperature=0.7)
    prompts = [tensors_of(drawn_member(fit_for(backbone), m, m)).prompt for m in (2, 6, 3)]
    found = attention(pooled_texts(backbone.model, batch), prompts).detach().numpy()
    table = token_table(backbone.model).weight.detach().numpy().astype(np.float64)
    down, up = (
        m.weight.detach().numpy().astype(np.float64) for m in (attention.down, attention.up)
    )
    for row in range(4):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].numpy()
        hidden = down @ table[ids].max(0)
        raw = up @ (hidden / (1 + np.exp(-hidden)))
        query = (raw - raw.mean()) / np.sqrt(raw.var() + 1e-5)
        scores = np.array([query @ p.numpy().max(0) for p in prompts]) / 0.7
        wanted = np.exp(scores - scores.max())
        np.testing.assert_allclose(found[:, row], wanted / wanted.sum(), rtol=1e-4)


def test_attention_learns_which_member_knows_which_text(tiny: TinyModels) -> None:
    """Two members, each right on one kind of text only; attention finds out, uniform cannot."""
    backbone, task = tiny.load("bert", CLASSES), tiny.task("bert", CLASSES)
    rows = easy_rows(60)
    batch = task.batch(task.encode(rows), range(60))
    labels = batch["labels"]
    sure, wrong = 5.0, torch.remainder(labels + 1, 3)
    one = torch.nn.functional.one_hot(torch.where(labels == 0, labels, wrong), 3) * sure
    two = torch.nn.functional.one_hot(torch.where(labels == 0, wrong, labels), 3) * sure
    log_probs = torch.stack([one, two]).float().log_softmax(-1)
    prompts = [tensors_of(drawn_member(fit_for(backbone), 4, s)).prompt for s in (0, 1)]
    attention, pooled = PromptAttention(16, seed=0), pooled_texts(backbone.model, batch)

    def loss_of(_batch: Batch) -> torch.Tensor:
        mixed = combine("mean", log_probs, attention(pooled, prompts))
        return member_losses(mixed.log_probs.unsqueeze(0), labels)[0]

    losses = fit_parameters(loss_of, list(attention.parameters()), [batch], lr=0.02, epochs=60)
    assert losses[-1] < float(loss_uniform(log_probs, labels)) / 2
    weights = attention(pooled, prompts)
    torch.testing.assert_close(weights.sum(0), torch.ones(60))
    assert float((weights.argmax(0) == (labels != 0).long()).float().mean()) > 0.9


def loss_uniform(log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return member_losses(combine("mean", log_probs).log_probs.unsqueeze(0), labels)[0]


def test_fusion_adds_prompts_text_by_text(tiny: TinyModels) -> None:
    """Against a pass of its own for every text, and with gradients into attention and target."""
    backbone, batch = tiny.load("bert", CLASSES), tiny.batch("bert", CLASSES, 3)
    prompts = [tensors_of(drawn_member(fit_for(backbone), 4, seed)).prompt for seed in range(3)]
    target = torch.zeros(4, 16, requires_grad=True)
    attention = PromptAttention(16, seed=0, temperature=0.1)
    weights = attention(pooled_texts(backbone.model, batch), prompts)
    logits = forward(backbone.model, [fused(weights, prompts, target)], batch)[0]
    for row in range(3):
        mixed = sum(w * p for w, p in zip(weights[:, row].detach(), prompts, strict=True))
        lone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        wanted = forward(backbone.model, [Tensors(torch.as_tensor(mixed))], lone)[0, 0]
        torch.testing.assert_close(logits[row], wanted, rtol=1e-5, atol=1e-5)
    torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
    assert float(torch.as_tensor(target.grad).abs().max()) > 0
    assert float(torch.as_tensor(attention.up.weight.grad).abs().max()) > 0


def test_one_source_has_all_attention_and_lengths_must_agree(tiny: TinyModels) -> None:
    backbone, batch = tiny.load("bert", CLASSES), tiny.batch("bert", CLASSES, 3)
    prompt = tensors_of(drawn_member(fit_for(backbone), 4)).prompt
    weights = PromptAttention(16, seed=0)(pooled_texts(backbone.model, batch), [prompt])
    assert torch.equal(weights, torch.ones(1, 3))
    log_probs, _ = log_probabilities(backbone.model, [Tensors(prompt)], batch)
    assert torch.equal(combine("mean", log_probs, weights).classes, log_probs[0].argmax(-1))
    with pytest.raises(PromptError, match="wrong-shape"):
        fused(weights, [prompt], prompt[:2])
    with pytest.raises(PromptError, match="bad-temperature"):
        PromptAttention(16, seed=0, temperature=0.0)
