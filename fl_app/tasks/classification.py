"""Classification of texts and images."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.data.examples import Examples, encode_labels
from fl_app.errors import DataError
from fl_app.fomo.backbone import tokenizer_from
from fl_app.tasks.base import Batch, Columns, Encoded, LossFunction, pad


class Classification:
    """What text and image classification share: cross-entropy and accuracy."""

    metric = "accuracy"
    higher_is_better = True

    def __init__(
        self, labels: tuple[str, ...], label_column: str, overall_shares: tuple[float, ...]
    ) -> None:
        """Stores the class names in the order of the logits, and their shares over all devices."""
        self._labels = labels
        self._label_column = label_column
        self._overall_shares = overall_shares

    def _targets(self, examples: Examples) -> list[int]:
        return [int(i) for i in encode_labels(examples, self._label_column, self._labels)]

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy."""
        return self._cross_entropy(model, batch, 0.0)

    def class_shares(self, encoded: Encoded) -> tuple[float, ...]:
        """Returns (n_c + 1/2) / (n + C/2) for each class; empty where there are no rows."""
        if len(encoded) == 0:
            return ()
        return tuple(float(share) for share in _shares(self.class_counts(encoded)))

    def class_counts(self, encoded: Encoded) -> NDArray[np.int64]:
        """Returns the examples of each class, [C] in the order of the logits."""
        return np.bincount(np.asarray(encoded.targets, np.int64), minlength=len(self._labels))

    def adjusts(self, logit_adjustment: float) -> bool:
        """Tells whether logits are adjusted: there is a tau, and an overall balance is known."""
        return logit_adjustment > 0.0 and bool(self._overall_shares)

    def local_loss(self, encoded: Encoded, logit_adjustment: float) -> LossFunction:
        """Returns cross-entropy of logits + tau log(own share / overall share) of each class.

        Logit adjustment (Menon et al. 2021, arXiv:2007.07314) towards the balance over all devices,
        as far as the server's public rows show it: what a model trained so learns does not hold the
        device's own balance, which would cancel badly in the mean over devices. A device whose
        balance is the overall one minimises plain cross-entropy, and so does every device where no
        public rows tell the overall balance.

        Args:
            encoded: the device's examples.
            logit_adjustment: tau >= 0; 0 is plain cross-entropy, 1 takes the whole skew out.
        """
        return self.counted_loss(self.class_counts(encoded), logit_adjustment)

    def logit_offset(self, counts: NDArray[np.int64], logit_adjustment: float) -> torch.Tensor:
        """Returns tau ln(the device's share of each class / the share over all devices), [C].

        It is 0 unless the loss ``adjusts``.
        """
        if not self.adjusts(logit_adjustment):
            return torch.zeros(())
        ratio = _shares(counts) / np.array(self._overall_shares)
        return torch.from_numpy(logit_adjustment * np.log(ratio)).float()

    def counted_loss(self, counts: NDArray[np.int64], logit_adjustment: float) -> LossFunction:
        """Returns ``local_loss`` of a device of which only the class counts are known.

        Args:
            counts: see ``class_counts``; not read unless ``adjusts``.
            logit_adjustment: tau.
        """
        if not self.adjusts(logit_adjustment):
            return self.loss
        offset = self.logit_offset(counts, logit_adjustment)
        return lambda model, batch: self._cross_entropy(model, batch, offset)

    def _cross_entropy(
        self, model: Any, batch: Batch, offset: float | torch.Tensor
    ) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return torch.nn.functional.cross_entropy(model(**inputs).logits + offset, batch["labels"])

    def score(self, model: Any, batch: Batch) -> tuple[float, float]:
        """Returns (correct answers, examples)."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        hits = model(**inputs).logits.argmax(-1) == batch["labels"]
        return float(hits.sum()), float(len(hits))

    def measure(self, total: float, count: float) -> float:
        """Accuracy in [0, 1]."""
        return total / count


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return shares


class SequenceClassification(Classification):
    """A text belongs to one class."""

    def __init__(
        self,
        *,
        files: dict[str, str],
        labels: tuple[str, ...],
        columns: Columns,
        max_length: int,
        overall_shares: tuple[float, ...] = (),
    ) -> None:
        """Builds the tokenizer from its files."""
        super().__init__(labels, columns.label, overall_shares)
        self._tokenizer = tokenizer_from(files)
        self._columns, self._max_length = columns, max_length

    def encode(self, examples: Examples) -> Encoded:
        """Tokenises, cut to ``max_length``."""
        texts = [str(text) for text in examples.column(self._columns.text)]
        ids: list[list[int]] = []
        if texts:  # tokenizers fail on an empty list
            ids = self._tokenizer(texts, truncation=True, max_length=self._max_length)["input_ids"]
        return Encoded(ids, self._targets(examples), np.array([len(i) for i in ids], np.int64))

    def batch(self, encoded: Encoded, indices: Sequence[int]) -> Batch:
        """Pads to the longest text of the batch."""
        ids, mask = pad([encoded.rows[i] for i in indices], self._tokenizer.pad_token_id)
        labels = torch.tensor([encoded.targets[i] for i in indices])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class ImageClassification(Classification):
    """An image belongs to one class."""

    def __init__(
        self,
        *,
        files: dict[str, str],
        labels: tuple[str, ...],
        columns: Columns,
        image_size: int,
        overall_shares: tuple[float, ...] = (),
    ) -> None:
        """Reads the normalisation from the preprocessor file."""
        super().__init__(labels, columns.label, overall_shares)
        settings = json.loads(files["preprocessor_config.json"])
        self._mean = np.array(settings["image_mean"], np.float32)
        self._std = np.array(settings["image_std"], np.float32)
        self._column, self._size = columns.image, image_size

    def encode(self, examples: Examples) -> Encoded:
        """Scales uint8 [n, height, width(, channels)] to [0, 1] and normalises per channel.

        Raises:
            DataError: the images do not have the model's size.
        """
        pixels = np.asarray(examples.column(self._column), np.float32) / 255.0
        if pixels.ndim == 3:  # greyscale: the backbone expects three channels
            pixels = np.repeat(pixels[..., None], len(self._mean), axis=-1)
        if pixels.shape[1:3] != (self._size, self._size):
            raise DataError(
                f"images in column '{self._column}' are {pixels.shape[1:3]} pixels, the model "
                f"takes ({self._size}, {self._size}); resize the data"
            )
        rows = np.ascontiguousarray(((pixels - self._mean) / self._std).transpose(0, 3, 1, 2))
        return Encoded(list(rows), self._targets(examples), np.ones(len(rows), np.int64))

    def batch(self, encoded: Encoded, indices: Sequence[int]) -> Batch:
        """Stacks images."""
        pixels = torch.from_numpy(np.stack([encoded.rows[i] for i in indices]))
        return {
            "pixel_values": pixels,
            "labels": torch.tensor([encoded.targets[i] for i in indices]),
        }
