"""What a device and the server exchange in one local step of gradient download.

A FoMo is cut into a front (embeddings and the first c blocks), a trunk (the blocks behind them) and
a head (all behind the last block). Front and head are at the device, the trunk at the server.
"""

from dataclasses import dataclass

import torch

from fl_app.errors import ModelError


@dataclass(frozen=True)
class Features:
    """What one device sends for one local step; no token ids, no labels.

    The decoder of an encoder-decoder that is tuned on completions reads the completion, though: its
    input embeddings tell the labels to whoever has the table of embeddings.

    Attributes:
        hidden: what enters the trunk, for each stack float32 [B, S, d], without the prompt.
        masks: for each stack bool [B, S], true for real tokens; padding is on the right.
        prompt: float32 [m, d], what enters block 0 at the m positions of the soft prompt in front
            of stack 0. It is the same for every row, so it is sent once. None without a prompt.
        readout: bool [B, S'] over the positions of the last stack (the m of the prompt included
            where that is stack 0 too): the states the head reads.
    """

    hidden: tuple[torch.Tensor, ...]
    masks: tuple[torch.Tensor, ...]
    prompt: torch.Tensor | None
    readout: torch.Tensor

    @property
    def num_prompt(self) -> int:
        """Returns m, 0 without a prompt."""
        return 0 if self.prompt is None else len(self.prompt)


@dataclass(frozen=True)
class FeatureGradient:
    """What the server sends back: the gradient of the device's loss with respect to ``Features``.

    Attributes:
        hidden: as ``Features.hidden``; None where it was not asked for.
        prompt: float32 [m, d], summed over the batch; None without a prompt or where not asked for.
        parameters: gradients of tunable parameters inside the trunk, by canonical name.
    """

    hidden: tuple[torch.Tensor, ...] | None
    prompt: torch.Tensor | None
    parameters: dict[str, torch.Tensor]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Everything in it."""
        prompt = [] if self.prompt is None else [self.prompt]
        return [*(self.hidden or ()), *prompt, *self.parameters.values()]


def require_shapes(one: Features, num_stacks: int, width: int) -> None:
    """Checks that shapes fit each other and the model.

    Args:
        one: of one device.
        num_stacks: of the model.
        width: d of its states.

    Raises:
        ModelError: they do not.
    """
    rows = len(one.readout)
    shapes = [tuple(state.shape) for state in one.hidden]
    wanted = [(rows, mask.shape[1], width) for mask in one.masks]
    last = one.masks[-1].shape[1] + (one.num_prompt if num_stacks == 1 else 0)
    fits = (
        len(shapes) == num_stacks
        and shapes == wanted
        and all(mask.shape[0] == rows for mask in one.masks)
        and tuple(one.readout.shape) == (rows, last)
        and (one.prompt is None or tuple(one.prompt.shape) == (one.num_prompt, width))
    )
    if not fits:
        raise ModelError(
            f"features of shapes {shapes}, masks {[tuple(m.shape) for m in one.masks]} and readout "
            f"{tuple(one.readout.shape)} do not fit {num_stacks} stacks of width {width}"
        )
