"""The front: a device's embeddings and first blocks, and its soft prompt."""

from collections.abc import Sequence
from typing import Any

import torch

from fl_app.errors import ModelError
from fl_app.fomo.features import FeatureGradient, Features
from fl_app.fomo.head import Batch, Head, LossFunction
from fl_app.fomo.parts import DevicePart
from fl_app.fomo.taps import reach


class Front:
    """Turns a batch into features, and gradients of features into gradients of parameters.

    No graph is kept between the two: ``backward`` computes the front again.

    Args:
        part: the device part; an adapter may wrap its model in place before or after.
        head: of the same part; it says which states it reads.
    """

    def __init__(self, part: DevicePart, head: Head) -> None:
        self._part = part
        self._head = head

    def features(
        self, batch: Batch, loss: LossFunction, prompt: torch.Tensor | None = None
    ) -> Features:
        """Computes what the device sends for one local step.

        Args:
            batch: the task's batch, padded on the right.
            loss: the task's loss; it decides which states are read.
            prompt: soft prompt [m, width of the token embeddings], put in front of the embedded
                tokens as PEFT's prompt tuning does; None for none.

        Raises:
            ModelError: a prompt with a cut > 0 (behind a block the prompt's states would differ
                from row to row), with images, or with an encoder-decoder that classifies.
        """
        self._check(prompt)
        with torch.no_grad():
            hidden = self._hidden(batch, prompt)
        m = 0 if prompt is None else len(prompt)
        readout = self._head.readout(
            hidden[-1].shape, batch, loss, m if self._part.num_stacks == 1 else 0
        )
        own = (hidden[0][:, m:].clone(), *hidden[1:])
        return Features(
            hidden=own,
            masks=masks_of(batch, own),
            prompt=None if prompt is None else hidden[0][0, :m].clone(),
            readout=readout,
        )

    def backward(
        self, batch: Batch, prompt: torch.Tensor | None, gradient: FeatureGradient
    ) -> None:
        """Adds up ``.grad`` on the prompt and on tunable parameters of the front's blocks.

        Args:
            batch: the one ``features`` was given.
            prompt: likewise; a leaf that requires a gradient.
            gradient: what came back. Its ``parameters`` belong to the trunk and are not looked at.
        """
        self._check(prompt)
        if prompt is not None and gradient.prompt is not None:
            # every row has the same prompt, and the gradient is summed over rows: one row will do
            row = {name: value[:1] for name, value in batch.items()}
            arrived = self._first(row, prompt)[0, : len(prompt)]
            torch.autograd.backward(arrived, gradient.prompt)
        if gradient.hidden is not None and self._part.cut > 0:
            # the decoder is cut at its embeddings, where nothing is tuned: stack 0 has it all
            state = self._first(batch, None)
            if state.requires_grad:
                torch.autograd.backward(state, gradient.hidden[0])

    def _hidden(self, batch: Batch, prompt: torch.Tensor | None) -> list[torch.Tensor]:
        """Returns what enters the trunk, for each stack, prompt included."""
        first = self._first(batch, prompt)
        if self._part.num_stacks == 1:
            return [first]
        inputs: dict[str, Any] = self._inputs(batch)
        inputs["encoder_outputs"] = (torch.zeros_like(first),)
        return [first, reach(self._part.model, **inputs)]

    def _first(self, batch: Batch, prompt: torch.Tensor | None) -> torch.Tensor:
        inputs = self._inputs(batch)
        if prompt is not None:
            rows = len(batch["input_ids"])
            tokens = self._part.model.get_input_embeddings()(inputs.pop("input_ids"))
            inputs["inputs_embeds"] = torch.cat([prompt.expand(rows, -1, -1), tokens], 1)
            mask = inputs["attention_mask"]
            inputs["attention_mask"] = torch.cat([mask.new_ones(rows, len(prompt)), mask], 1)
        return reach(self._part.model, **inputs)

    def _inputs(self, batch: Batch) -> Batch:
        if self._part.task == "causal_lm" and self._part.num_stacks == 2:
            return dict(batch)  # the model makes the decoder's inputs from the labels
        return {name: value for name, value in batch.items() if name != "labels"}

    def _check(self, prompt: torch.Tensor | None) -> None:
        if prompt is None:
            return
        part = self._part
        if part.cut > 0:
            raise ModelError(
                f"strategy.cut={part.cut}: a soft prompt needs strategy.cut=0, for behind a block "
                "its states differ from row to row"
            )
        if part.reads_images or (part.num_stacks == 2 and part.task != "causal_lm"):
            raise ModelError(
                f"a soft prompt cannot be put in front of the inputs of a "
                f"{part.model.config.model_type} model for model.task={part.task}; choose "
                "strategy.variant=cut or lora"
            )


def masks_of(batch: Batch, states: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Returns for each stack bool [B, S], true for real tokens.

    Args:
        batch: the task's batch; only what the first stack reads is padded.
        states: for each stack [B, S, d], without the prompt.
    """
    masks = [torch.ones(state.shape[:2], dtype=torch.bool) for state in states]
    if masks and "attention_mask" in batch:
        masks[0] = batch["attention_mask"].bool()
    return tuple(masks)
