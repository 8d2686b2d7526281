"""One gradient for everybody: what one large batch of all devices would give."""

from collections.abc import Mapping

import numpy as np
import torch

from fl_app.features_wire import Arrays
from fl_app.fomo.features import FeatureGradient


def mean_gradient(
    gradients: Mapping[int, FeatureGradient],
    heads: Mapping[int, Arrays],
    weights: Mapping[int, int],
) -> tuple[FeatureGradient, Arrays]:
    """Returns the weighted mean of the devices' gradients, added up in float64.

    With a device's number of loss terms (examples, or predicted tokens) as its weight that is the
    gradient of the mean loss over the terms of all devices: one large batch.

    Args:
        gradients: at least one; of a prompt or of parameters, the same for every device.
        heads: gradients of the head by array name, the same names and shapes for every device.
        weights: by device, >= 0.
    """
    devices = sorted(gradients)
    total = float(sum(weights[device] for device in devices)) or 1.0  # no term: no gradient
    shares = {device: weights[device] / total for device in devices}

    def mean(tensors: Mapping[int, torch.Tensor]) -> torch.Tensor:
        wide = [shares[device] * tensors[device].double() for device in devices]
        return torch.stack(wide).sum(0).float()

    prompts = {device: g.prompt for device, g in gradients.items() if g.prompt is not None}
    shared = FeatureGradient(
        hidden=None,
        prompt=mean(prompts) if prompts else None,
        parameters={
            name: mean({device: g.parameters[name] for device, g in gradients.items()})
            for name in gradients[devices[0]].parameters
        },
    )
    head = {
        name: np.sum(
            [shares[d] * heads[d][name].astype(np.float64) for d in devices], axis=0
        ).astype(np.float32)
        for name in heads.get(devices[0], {})
    }
    return shared, head
