"""A device's part of the model in memory, shared by all devices one process plays."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.errors import ModelError
from fl_app.fomo.adapter import is_head
from fl_app.fomo.device_package import unpack_device_part
from fl_app.fomo.front import Front
from fl_app.fomo.head import Head
from fl_app.fomo.lora import lora_start
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.schema import Config, GradientDownloadStrategy
from fl_app.settings import device_parameters, task_for
from fl_app.tasks import Encoded, LossFunction, Task
from fl_app.updates import Update


class DeviceSession:
    """Front and head with their tunable parameters, the task, and prepared examples.

    Args:
        blob: the packed device part.
        config: the run's configuration.
        strategy: its strategy.

    Attributes:
        start: the adapter every device and the server start from.
        model: the part's model, whose trunk is elsewhere.

    Raises:
        ModelError: the blob is damaged.
    """

    def __init__(self, blob: bytes, config: Config, strategy: GradientDownloadStrategy) -> None:
        package = unpack_device_part(blob)
        part = package.part
        self.parameters = device_parameters(config, strategy, part)
        self._num_stacks = part.num_stacks
        self.model = part.model
        self.head = Head(part)
        self.front = Front(part, self.head)
        self.task: Task = task_for(
            config,
            part.model,
            files=package.files,
            labels=package.labels,
            overall_shares=package.class_shares,
        )
        self.data_digest = package.data_digest
        own = {name: value.detach().numpy().copy() for name, value in self.parameters.items()}
        self.start: Update = lora_start(package.trunk_shapes, config.seed) | own
        self.encoded: dict[int, Encoded] = {}
        self._tau = config.finetune.logit_adjustment

    @property
    def names(self) -> set[str]:
        """Names of the parameters that are tuned in this part of the model."""
        return set(self.parameters)

    @property
    def head_names(self) -> set[str]:
        """Those of the task head."""
        return {name for name in self.parameters if is_head(name)}

    def trunk_names(self, adapter: Mapping[str, Any]) -> set[str]:
        """Names of an adapter's parameters that sit at the server while computing."""
        return set(adapter) - self.names

    @property
    def prompt(self) -> torch.Tensor | None:
        """The soft prompt [m, width]; None without one."""
        return self.parameters.get(PROMPT_NAME)

    @property
    def num_prompt(self) -> int:
        """m, as the last stack's positions count it: 0 where a decoder of its own reads on."""
        prompt = self.prompt
        return 0 if prompt is None or self._num_stacks == 2 else len(prompt)

    def loss_of(self, device: int) -> LossFunction:
        """Returns the loss a device with these examples minimises."""
        return self.task.local_loss(self.encoded[device], self._tau)

    def counts_of(self, device: int) -> NDArray[np.int64] | None:
        """Returns a device's examples of each class; None where its loss does not need them."""
        if not self.task.adjusts(self._tau):
            return None
        return self.task.class_counts(self.encoded[device])

    def write(self, adapter: Update) -> None:
        """Sets the parameters of this part of the model.

        Raises:
            ModelError: the adapter lacks one.
        """
        if lacking := self.names - set(adapter):
            raise ModelError(f"the adapter lacks {sorted(lacking)[:3]}")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(adapter[name]))

    def zero(self) -> None:
        """Forgets gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def gradients(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Returns the gradients there are of these parameters, by name."""
        return {
            name: grad for name in sorted(names) if (grad := self.parameters[name].grad) is not None
        }
