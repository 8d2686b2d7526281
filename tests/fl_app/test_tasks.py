"""Tasks: inputs, losses and measures against slow references."""

import math

import numpy as np
import pytest
import torch

from fl_app.data.examples import Examples
from fl_app.errors import DataError, ModelError
from fl_app.tasks import Columns, build_task
from tests.fixtures_models import (
    CASES,
    IMAGE_MEAN,
    IMAGE_STD,
    LABELS,
    TinyModels,
    logits_of,
    task_of,
    tiny_examples,
)
from tests.oracles.likelihood import log_probability

_CLASSES = "sequence_classification"


@pytest.mark.parametrize("case", [case for case in CASES if case[1] != "causal_lm"])
def test_classification_loss_and_hits_by_hand(tiny: TinyModels, case: tuple[str, str]) -> None:
    """Mean of -log softmax at the label, and the number of largest logits there."""
    model, task = tiny.load(*case).model, tiny.task(*case)
    batch = tiny.batch(*case, 9)
    rows = logits_of(model, batch).double().tolist()
    labels = batch["labels"].tolist()
    wanted = -sum(log_probability(row, label) for row, label in zip(rows, labels, strict=True)) / 9
    hits = sum(max(row) == row[label] for row, label in zip(rows, labels, strict=True))
    with torch.inference_mode():
        assert float(task.loss(model, batch)) == pytest.approx(wanted, rel=1e-5)
        assert task.score(model, batch) == (hits, 9)
    assert task.measure(6, 9) == pytest.approx(2 / 3)
    assert (task.metric, task.higher_is_better) == ("accuracy", True)


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
def test_logit_adjustment_by_hand(tiny: TinyModels, strength: float) -> None:
    """Cross-entropy of logits + tau log(p_c / q_c), p_c = (n_c + 1/2) / (n + C/2), q_c overall."""
    overall = (0.5, 0.2, 0.3)
    backbone = tiny.load("bert", _CLASSES)
    model, task = backbone.model, task_of(backbone, overall_shares=overall)
    encoded = task.encode(tiny_examples(20))
    batch = task.batch(encoded, range(7))
    own = [(encoded.targets.count(c) + 0.5) / (20 + 1.5) for c in range(len(LABELS))]
    rows = logits_of(model, batch).double().tolist()
    shifted = [
        [z + strength * math.log(p / q) for z, p, q in zip(row, own, overall, strict=True)]
        for row in rows
    ]
    labels = batch["labels"].tolist()
    pairs = zip(shifted, labels, strict=True)
    wanted = -sum(log_probability(row, label) for row, label in pairs) / 7
    with torch.inference_mode():
        assert float(task.local_loss(encoded, strength)(model, batch)) == pytest.approx(
            wanted, rel=1e-5
        )
        plain = float(task.loss(model, batch))
        assert float(task.local_loss(encoded, 0.0)(model, batch)) == plain
        assert float(task_of(backbone).local_loss(encoded, strength)(model, batch)) == plain
    assert plain != pytest.approx(wanted, rel=1e-3)


def test_a_device_with_the_overall_balance_is_not_adjusted(tiny: TinyModels) -> None:
    """However uneven that balance is: such a device has no skew to take out."""
    backbone = tiny.load("bert", _CLASSES)
    texts = tiny_examples(40).columns["text"]
    labels = [LABELS[0]] * 34 + [LABELS[1]] * 4 + [LABELS[2]] * 2
    encoded = task_of(backbone).encode(Examples({"text": texts, "label": labels}))
    task = task_of(backbone, overall_shares=task_of(backbone).class_shares(encoded))
    batch = task.batch(encoded, range(0, 40, 5))
    with torch.inference_mode():
        plain = float(task.loss(backbone.model, batch))
        adjusted = float(task.local_loss(encoded, 1.0)(backbone.model, batch))
    assert adjusted == pytest.approx(plain, rel=1e-6)


def test_a_device_of_one_class_has_next_to_nothing_to_say(tiny: TinyModels) -> None:
    """Without adjustment such a device pulls every logit towards its class."""
    backbone = tiny.load("bert", _CLASSES)
    model, task = backbone.model, task_of(backbone, overall_shares=(1 / 3, 1 / 3, 1 / 3))
    rows = tiny_examples(400).columns
    encoded = task.encode(Examples({"text": rows["text"], "label": ["hot"] * 400}))
    batch = task.batch(encoded, range(16))
    pulls = []
    for strength in (0.0, 1.0):
        bias = model.classifier.bias.requires_grad_(True)
        (pull,) = torch.autograd.grad(task.local_loss(encoded, strength)(model, batch), bias)
        pulls.append(float(pull.abs().max()))
    assert pulls[1] < pulls[0] / 10


def test_a_language_model_has_no_classes_to_adjust(tiny: TinyModels) -> None:
    task = tiny.task("llama", "causal_lm")
    encoded = task.encode(tiny_examples(3))
    assert task.local_loss(encoded, 1.0) == task.loss == task.local_loss(encoded, 0.0)
    assert task.class_shares(encoded) == ()


@pytest.mark.parametrize(("family", "task_name"), CASES)
def test_padding_does_not_change_logits(tiny: TinyModels, family: str, task_name: str) -> None:
    """A row in a batch has the logits of the row alone, up to rounding of float32."""
    model, task = tiny.load(family, task_name).model, tiny.task(family, task_name)
    encoded = task.encode(tiny_examples(6))
    together = logits_of(model, task.batch(encoded, range(6)))
    for i in range(6):
        alone = logits_of(model, task.batch(encoded, [i]))[0]
        real = slice(None) if task_name != "causal_lm" else slice(len(encoded.targets[i]))
        torch.testing.assert_close(together[i][real], alone[real], rtol=1e-4, atol=1e-4)


def test_text_batches(tiny: TinyModels) -> None:
    """Token ids of the tokenizer's own, padded on the right, in the order asked for."""
    task = tiny.task("bert", _CLASSES)
    rows = Examples({"text": ["w0 w1 w2", "w3"], "label": ["hot", "cold"]})
    encoded = task.encode(rows)
    assert encoded.lengths.tolist() == [5, 3]
    assert len(encoded) == 2
    batch = task.batch(encoded, [1, 0])
    assert batch["input_ids"].tolist() == [[1, 8, 2, 0, 0], [1, 5, 6, 7, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [LABELS.index("cold"), LABELS.index("hot")]


def test_long_texts_are_cut_with_their_frame_kept(tiny: TinyModels) -> None:
    """The closing token stays (T5 classifies at it)."""
    for family, frame in (("bert", (1, 2)), ("t5", (5, 4))):
        task = task_of(tiny.load(family, _CLASSES), max_length=6)
        rows = Examples({"text": ["w0 " * 30], "label": ["hot"]})
        ids = task.encode(rows).rows[0]
        assert len(ids) == 6
        assert (ids[0], ids[-1]) == frame


def test_columns_by_name(tiny: TinyModels) -> None:
    """Other names for text and label; labels may be integers; a missing column is named."""
    backbone = tiny.load("bert", _CLASSES)
    task = task_of(backbone, text="review", label="stars")
    rows = tiny_examples(3)
    renamed = {"review": rows.column("text"), "stars": rows.column("label")}
    assert task.encode(Examples(renamed)).rows == tiny.task("bert", _CLASSES).encode(rows).rows
    with pytest.raises(DataError, match="no column 'stars'"):
        task.encode(Examples({"review": ["w1"]}))


@pytest.mark.parametrize("shape", [(4, 8, 8, 3), (4, 8, 8)])
def test_image_normalisation_by_hand(tiny: TinyModels, shape: tuple[int, ...]) -> None:
    """(value / 255 - mean) / std per channel, channels first; grey is repeated."""
    task = tiny.task("vit", "image_classification")
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    encoded = task.encode(Examples({"image": pixels, "label": ["hot"] * 4}))
    batch = task.batch(encoded, [2, 0])["pixel_values"]
    assert batch.shape == (2, 3, 8, 8)
    assert batch.dtype == torch.float32
    for place, row in enumerate((2, 0)):
        for channel, y, x in np.ndindex(3, 8, 8):
            value = pixels[row, y, x] if len(shape) == 3 else pixels[row, y, x, channel]
            wanted = (int(value) / 255 - IMAGE_MEAN[channel]) / IMAGE_STD[channel]
            assert float(batch[place, channel, y, x]) == pytest.approx(wanted, abs=1e-6)


def test_images_of_another_size(tiny: TinyModels) -> None:
    """The text names the column and both sizes."""
    task = tiny.task("vit", "image_classification")
    rows = Examples({"image": np.zeros((1, 6, 8, 3), np.uint8), "label": ["hot"]})
    with pytest.raises(DataError, match=r"column 'image' are \(6, 8\) pixels.*takes \(8, 8\)"):
        task.encode(rows)


def test_unknown_task(tiny: TinyModels) -> None:
    """Never a silent default."""
    backbone = tiny.load("bert", _CLASSES)
    with pytest.raises(ModelError, match=r"model\.task='regression' is unknown"):
        build_task(
            "regression",
            files=backbone.files,
            labels=LABELS,
            columns=Columns(),
            max_length=8,
            model_config=backbone.model.config,
        )
