"""One pass over the rows of many devices, each with tuned matrices of its own.

A LoRA factor is a linear map. In a pass over stacked rows each device's rows are multiplied by that
device's own copy of the matrix, so values may differ between devices, gradients stay apart, and one
backward pass gives all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fl_app.errors import ModelError

Weights = Mapping[str, torch.Tensor]


def linear_maps(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Linear]:
    """Returns, for each parameter by name, the linear map it is the weight of.

    Raises:
        ModelError: a parameter is no weight of a linear map.
    """
    owners = {
        id(module.weight): module for module in model.modules() if isinstance(module, nn.Linear)
    }
    if strange := [name for name, value in parameters.items() if id(value) not in owners]:
        raise ModelError(
            f"the server can tune weights of linear maps only (LoRA factors), not {strange[:3]}; "
            "heads belong to the device"
        )
    return {name: owners[id(value)] for name, value in parameters.items()}


@contextmanager
def own_weights(
    maps: Mapping[str, nn.Linear], weights: Sequence[Weights], num_rows: Sequence[int]
) -> Iterator[None]:
    """Lets each device's rows use that device's weights, while the context lasts.

    Args:
        maps: linear maps without bias, by parameter name.
        weights: for each device, the value of every parameter [out, in] by name.
        num_rows: for each device, its number of rows; devices follow each other along dimension 0.
    """

    def hook_of(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            # some families flatten rows and tokens before a map; row order stays
            inputs = args[0].reshape(sum(num_rows), -1, args[0].shape[-1]).split(list(num_rows))
            outputs = [
                nn.functional.linear(rows, own[name])
                for rows, own in zip(inputs, weights, strict=True)
            ]
            return torch.cat(outputs).reshape(output.shape)

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in maps.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
