"""What the three tasks do differently: preparing inputs, the loss, and the measure of success."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.data.examples import Examples, encode_labels
from fl_app.errors import DataError, ModelError
from fl_app.fomo.backbone import tokenizer_from

Batch = dict[str, torch.Tensor]
LossFunction = Callable[[Any, Batch], torch.Tensor]
IGNORED = -100
"""Label of positions that carry no loss (the convention of ``transformers``)."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns a task reads; ``prompt`` may be None for plain text."""

    text: str = "text"
    label: str = "label"
    prompt: str | None = "prompt"
    completion: str = "completion"
    image: str = "image"


@dataclass(frozen=True)
class Encoded:
    """Prepared examples.

    Attributes:
        rows: one prepared input per example (token ids, or an image [channels, height, width]).
        targets: what the loss needs per example.
        lengths: tokens per example; examples of like length are batched together.
    """

    rows: list[Any]
    targets: list[Any]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.rows)


class Task(Protocol):
    """One task: inputs, loss, measure."""

    metric: str
    higher_is_better: bool

    def encode(self, examples: Examples) -> Encoded:
        """Prepares examples once."""
        ...

    def batch(self, encoded: Encoded, indices: Sequence[int]) -> Batch:
        """Assembles one padded batch."""
        ...

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Mean loss of a batch (over examples, or over completion tokens)."""
        ...

    def local_loss(self, encoded: Encoded, logit_adjustment: float) -> LossFunction:
        """Returns the loss a device with these examples minimises."""
        ...

    def score(self, model: Any, batch: Batch) -> tuple[float, float]:
        """Returns (sum, count) whose ratio over all batches gives the measure."""
        ...

    def measure(self, total: float, count: float) -> float:
        """Turns the totals of ``score`` into the measure."""
        ...


class Classification:
    """What text and image classification share: cross-entropy and accuracy."""

    metric = "accuracy"
    higher_is_better = True

    def __init__(self, labels: tuple[str, ...], label_column: str) -> None:
        """Stores the class names in the order of the logits."""
        self._labels = labels
        self._label_column = label_column

    def _targets(self, examples: Examples) -> list[int]:
        return [int(i) for i in encode_labels(examples, self._label_column, self._labels)]

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy."""
        return self._cross_entropy(model, batch, 0.0)

    def local_loss(self, encoded: Encoded, logit_adjustment: float) -> LossFunction:
        """Returns cross-entropy of logits + tau log(prior), the prior being this device's own.

        Logit adjustment (Menon et al. 2021, arXiv:2007.07314): what a model trained so learns does
        not hold the device's class balance, which would cancel badly in the mean over devices.

        Args:
            encoded: the device's examples; priors are (n_c + 1/2) / (n + C/2).
            logit_adjustment: tau >= 0; 0 is plain cross-entropy, 1 takes the whole balance out.
        """
        if logit_adjustment == 0.0:
            return self.loss
        counts = np.bincount(np.asarray(encoded.targets, np.int64), minlength=len(self._labels))
        prior = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
        offset = torch.from_numpy(logit_adjustment * np.log(prior)).float()
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


class SequenceClassification(Classification):
    """A text belongs to one class."""

    def __init__(
        self, *, files: dict[str, str], labels: tuple[str, ...], columns: Columns, max_length: int
    ) -> None:
        """Builds the tokenizer from its files."""
        super().__init__(labels, columns.label)
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
        ids, mask = _pad([encoded.rows[i] for i in indices], self._tokenizer.pad_token_id)
        labels = torch.tensor([encoded.targets[i] for i in indices])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class ImageClassification(Classification):
    """An image belongs to one class."""

    def __init__(
        self, *, files: dict[str, str], labels: tuple[str, ...], columns: Columns, image_size: int
    ) -> None:
        """Reads the normalisation from the preprocessor file."""
        super().__init__(labels, columns.label)
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


class CausalLm:
    """Next-token prediction; with a prompt column the loss is on the completion alone.

    An encoder-decoder reads the prompt and predicts the completion.
    """

    metric = "perplexity"
    higher_is_better = False

    def __init__(
        self, *, files: dict[str, str], columns: Columns, max_length: int, is_encoder_decoder: bool
    ) -> None:
        """Builds the tokenizer from its files."""
        self._tokenizer = tokenizer_from(files)
        self._columns, self._max_length = columns, max_length
        self._two_stacks = is_encoder_decoder
        if is_encoder_decoder and columns.prompt is None:
            raise ModelError("an encoder-decoder needs data.prompt_column: it reads the prompt")

    def encode(self, examples: Examples) -> Encoded:
        """Tokenises; a prompt that is too long loses its beginning, never the completion's."""
        completions = self._ids(examples.column(self._columns.completion))
        end = [self._tokenizer.eos_token_id]
        completions = [(ids + end)[: self._max_length] for ids in completions]
        prompts: list[list[int]] = [[] for _ in completions]
        if self._columns.prompt is not None:
            prompts = self._ids(examples.column(self._columns.prompt))
        if self._two_stacks:
            rows = [(prompt + end)[-self._max_length :] for prompt in prompts]
            targets = completions
        else:
            rows, targets = [], []
            for prompt, completion in zip(prompts, completions, strict=True):
                room = self._max_length - len(completion)
                kept = prompt[len(prompt) - min(room, len(prompt)) :]
                rows.append(kept + completion)
                targets.append([IGNORED] * len(kept) + completion)
        return Encoded(rows, targets, np.array([len(row) for row in rows], np.int64))

    def _ids(self, texts: Iterable[Any]) -> list[list[int]]:
        strings = [str(text) for text in texts]
        ids: list[list[int]] = []
        if strings:  # tokenizers fail on an empty list
            ids = self._tokenizer(strings, add_special_tokens=False)["input_ids"]
        return ids

    def batch(self, encoded: Encoded, indices: Sequence[int]) -> Batch:
        """Pads inputs and labels to the longest of the batch."""
        ids, mask = _pad([encoded.rows[i] for i in indices], self._tokenizer.pad_token_id)
        labels, _ = _pad([encoded.targets[i] for i in indices], IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Mean negative log-likelihood per predicted token."""
        total, count = self._likelihood(model, batch)
        return total / max(count, 1)

    def local_loss(self, encoded: Encoded, logit_adjustment: float) -> LossFunction:
        """Returns ``loss``: language models have no class balance to adjust for."""
        return self.loss

    def score(self, model: Any, batch: Batch) -> tuple[float, float]:
        """Returns (negative log-likelihood in nats, predicted tokens)."""
        total, count = self._likelihood(model, batch)
        return float(total), float(count)

    def _likelihood(self, model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
        inputs = batch if self._two_stacks else {k: v for k, v in batch.items() if k != "labels"}
        logits = model(**inputs, use_cache=False).logits
        labels = batch["labels"]
        if not self._two_stacks:  # position t predicts token t + 1
            logits, labels = logits[:, :-1], labels[:, 1:]
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total, int((labels != IGNORED).sum())

    def measure(self, total: float, count: float) -> float:
        """Perplexity, >= 1."""
        return float(np.exp(total / count))


KINDS: dict[str, type[Classification] | type[CausalLm]] = {
    "sequence_classification": SequenceClassification,
    "causal_lm": CausalLm,
    "image_classification": ImageClassification,
}
"""Names of tasks to their classes; what they measure is known before anything is loaded."""


def build_task(
    task: str,
    *,
    files: dict[str, str],
    labels: tuple[str, ...],
    columns: Columns,
    max_length: int,
    model_config: Any,
) -> Task:
    """Turns the name of a task into its object.

    Raises:
        ModelError: unknown task.
    """
    match task:
        case "sequence_classification":
            return SequenceClassification(
                files=files, labels=labels, columns=columns, max_length=max_length
            )
        case "causal_lm":
            return CausalLm(
                files=files,
                columns=columns,
                max_length=max_length,
                is_encoder_decoder=bool(model_config.is_encoder_decoder),
            )
        case "image_classification":
            return ImageClassification(
                files=files, labels=labels, columns=columns, image_size=model_config.image_size
            )
        case _:
            raise ModelError(f"model.task={task!r} is unknown")


def _pad(rows: Sequence[Sequence[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pads integer rows; returns ids and mask, both [rows, longest]."""
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), filler, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
