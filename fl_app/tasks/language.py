"""Causal language modelling and instruction tuning, decoders and encoder-decoders alike."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.data.examples import Examples
from fl_app.errors import ModelError
from fl_app.fomo.backbone import tokenizer_from
from fl_app.tasks.base import Batch, Columns, Encoded, LossFunction, pad

IGNORED = -100
"""Label of positions that carry no loss (the convention of ``transformers``)."""


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
        ids, mask = pad([encoded.rows[i] for i in indices], self._tokenizer.pad_token_id)
        labels, _ = pad([encoded.targets[i] for i in indices], IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Mean negative log-likelihood per predicted token."""
        total, count = self._likelihood(model, batch)
        return total / max(count, 1)

    def class_shares(self, encoded: Encoded) -> tuple[float, ...]:
        """Returns nothing: a language model has no classes."""
        return ()

    def class_counts(self, encoded: Encoded) -> NDArray[np.int64]:
        """Returns nothing, likewise."""
        return np.zeros(0, np.int64)

    def adjusts(self, logit_adjustment: float) -> bool:
        """Never: language models have no class balance to adjust for."""
        return False

    def logit_offset(self, counts: NDArray[np.int64], logit_adjustment: float) -> torch.Tensor:
        """Returns 0."""
        return torch.zeros(())

    def local_loss(self, encoded: Encoded, logit_adjustment: float) -> LossFunction:
        """Returns ``loss``."""
        return self.loss

    def counted_loss(self, counts: NDArray[np.int64], logit_adjustment: float) -> LossFunction:
        """Returns ``loss``."""
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
