"""A pooler that passes the first token on, standardised, where the checkpoint's own is of no use.

MiniLM-L6 was trained on the mean over tokens; what its checkpoint holds as pooler (a bias of zeros,
weights small and random) looks untrained. The pooler's outputs share a large common offset next to
which classes differ little, and under label skew a few local steps mostly move along that offset.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from fl_app.errors import ModelError
from fl_app.fomo.blocks import family_of

Batch = dict[str, torch.Tensor]
_GAIN = 0.5
"""Standard deviation of what enters the tanh: most of it stays where tanh is nearly linear."""
_SILENT = 1e-5
"""Standard deviation below which a coordinate counts as constant."""


def pooler_of(model: Any) -> str | None:
    """Returns the path of the frozen pooler in front of the task head, None where there is none."""
    name = family_of(model.config).pooler
    if name is None or getattr(model.base_model, name, None) is None:
        return None
    return f"{model.base_model_prefix}.{name}"


def standardise_pooler(
    model: Any, batches: Iterable[Batch], body: Callable[..., Any] | None = None
) -> None:
    """Sets the pooler to tanh(g (h - mean) / std), g = 0.5, h the first token's last hidden state.

    Mean and standard deviation are per coordinate, over public rows. The outputs are centred and of
    like scale, so a head on top learns classes rather than a common offset.

    Args:
        model: the full model; its pooler [width, width] is changed in place.
        batches: public batches, at least two rows in all.
        body: gives the last hidden states; None: the model without its head. With a soft prompt the
            first token is the prompt's, so what is measured must have the prompt, too.

    Raises:
        ModelError: the model has no pooler, or there are fewer than two rows.
    """
    path = pooler_of(model)
    if path is None:
        raise ModelError(
            f"model.pooler=standardised: a {model.config.model_type} classifier has no pooler; "
            "choose model.pooler=checkpoint"
        )
    run = body or model.base_model
    with torch.no_grad():
        states = [
            run(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state[:, 0]
            for batch in batches
        ]
        if sum(len(state) for state in states) < 2:
            raise ModelError(
                "model.pooler=standardised needs at least two public rows; set "
                "data.public_fraction above 0 or choose model.pooler=checkpoint"
            )
        first = torch.cat(states).double()
        spread = first.std(0)
        # a coordinate that only rounding moves carries nothing; scaled up, it would be noise
        scale = torch.where(spread > _SILENT, _GAIN / spread, 0.0)
        dense = model.get_submodule(path).dense
        dense.weight.copy_(torch.diag(scale))
        dense.bias.copy_(-first.mean(0) * scale)
