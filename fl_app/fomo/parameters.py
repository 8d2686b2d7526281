"""Tunable parameters by name, set from arrays."""

from collections.abc import Mapping

import torch
from torch import nn

from fl_app.errors import ModelError
from fl_app.updates import Update


def write_parameters(parameters: Mapping[str, nn.Parameter], arrays: Update) -> None:
    """Sets parameters by name.

    Raises:
        ModelError: names or shapes differ from theirs.
    """
    wanted = {name: tuple(p.shape) for name, p in parameters.items()}
    given = {name: array.shape for name, array in arrays.items()}
    if wanted != given:
        differing = sorted(set(wanted.items()) ^ set(given.items()))[:4]
        raise ModelError(f"adapter does not fit the model; first differences: {differing}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(arrays[name]))
