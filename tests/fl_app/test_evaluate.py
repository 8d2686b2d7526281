"""Measuring a model."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.data.examples import Examples
from fl_app.errors import DataError
from fl_app.evaluate import evaluate
from fl_app.fomo.backbone import load_backbone
from tests.fixtures_models import TinyModels, logits_of, task_of, tiny_examples
from tests.oracles.likelihood import decoder_nll

_CLASSES = "sequence_classification"
_ROWS = 23  # a prime: no batch size divides it, and batches differ in length


@pytest.mark.parametrize(
    "case",
    [("roberta", _CLASSES), ("opt", _CLASSES), ("t5", _CLASSES), ("vit", "image_classification")],
)
def test_accuracy_equals_counting_rows_one_by_one(tiny: TinyModels, case: tuple[str, str]) -> None:
    """Whatever the batch size."""
    model, task = tiny.load(*case).model, tiny.task(*case)
    encoded = task.encode(tiny_examples(_ROWS))
    hits = sum(
        int(logits_of(model, task.batch(encoded, [i]))[0].argmax()) == encoded.targets[i]
        for i in range(_ROWS)
    )
    assert 0 < hits < _ROWS
    for batch_size in (1, 7, 64):
        assert evaluate(model, task, encoded, batch_size=batch_size) == hits / _ROWS


@pytest.mark.parametrize("family", ["gpt2", "mistral", "t5"])
def test_perplexity_does_not_depend_on_the_batch_size(tiny: TinyModels, family: str) -> None:
    """Tokens count alike, not batches: up to rounding of float32."""
    model, task = tiny.load(family, "causal_lm").model, tiny.task(family, "causal_lm")
    encoded = task.encode(tiny_examples(_ROWS))
    one, *others = (evaluate(model, task, encoded, batch_size=size) for size in (1, 4, 7, 64))
    assert others == [pytest.approx(one, rel=1e-5)] * 3


def test_perplexity_is_exp_of_the_mean_over_all_tokens(tiny: TinyModels) -> None:
    """Against one example at a time in Python floats."""
    model, task = tiny.load("gpt2", "causal_lm").model, tiny.task("gpt2", "causal_lm")
    encoded = task.encode(tiny_examples(_ROWS))
    nats = tokens = 0.0
    for row, target in zip(encoded.rows, encoded.targets, strict=True):
        prompt = target.count(-100)
        part, count = decoder_nll(model, row[:prompt], row[prompt:])
        nats, tokens = nats + part, tokens + count
    assert evaluate(model, task, encoded, batch_size=5) == pytest.approx(
        math.exp(nats / tokens), rel=1e-5
    )


def test_batches_hold_rows_of_like_length(tiny: TinyModels) -> None:
    """Sorted by length: the padding is the least that batches of this size can have."""
    task = tiny.task("bert", _CLASSES)
    encoded = task.encode(tiny_examples(_ROWS))
    seen: list[list[int]] = []

    class Recording:
        metric, higher_is_better = task.metric, task.higher_is_better
        encode, loss, score, measure = task.encode, task.loss, task.score, task.measure

        def batch(self, encoded: Any, indices: Any) -> Any:
            seen.append([int(encoded.lengths[i]) for i in indices])
            return task.batch(encoded, indices)

    evaluate(tiny.load("bert", _CLASSES).model, Recording(), encoded, batch_size=4)
    assert sum(seen, []) == sorted(encoded.lengths.tolist())  # noqa: RUF017 - six short lists


def test_evaluation_leaves_no_gradient(tiny: TinyModels) -> None:
    """It may run on a model that is being tuned."""
    model, task = tiny.load("bert", _CLASSES).model, tiny.task("bert", _CLASSES)
    model.classifier.requires_grad_(True)
    evaluate(model, task, task.encode(tiny_examples(3)))
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


def test_nothing_to_measure_on(tiny: TinyModels) -> None:
    """No rows, or rows without a token to predict: a typed error, no division by zero."""
    backbone = tiny.load("bert", _CLASSES)
    empty = task_of(backbone).encode(Examples({"text": [], "label": []}))
    with pytest.raises(DataError, match=r"test set is empty; data\.path"):
        evaluate(backbone.model, task_of(backbone), empty)
    backbone = tiny.load("gpt2", "causal_lm")
    task = task_of(backbone, prompt=None)
    with pytest.raises(DataError, match="no token to predict"):
        evaluate(backbone.model, task, task.encode(Examples({"completion": ["", ""]})))


def test_real_language_model_predicts_stories(assets: Path) -> None:
    """A trained model is far better than chance at its own kind of text."""
    folder = assets / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip("DEFT_ASSETS holds no models/stories260k")
    backbone = load_backbone(str(folder), task="causal_lm", labels=(), seed=0)
    task = task_of(backbone, max_length=64, prompt=None)
    story = "Once upon a time, there was a little girl named Lily. She liked to play outside."
    words = np.array(story.split())
    shuffled = " ".join(np.random.default_rng(0).permutation(words))

    def perplexity(text: str) -> float:
        return evaluate(backbone.model, task, task.encode(Examples({"completion": [text]})))

    assert perplexity(story) < 20 < perplexity(shuffled)
