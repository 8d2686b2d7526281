"""What a device remembers between two exchanges of a round, as bytes.

Ray may hand every message of a round to another process, so nothing lives in memory: parameters,
the optimiser's moments and gradients that wait for their step travel in this state.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from clients.round_state import RoundState
from fl_app.errors import ModelError
from fl_app.finetune import LocalTuning, optimiser_of
from fl_app.payload import Payload, read_payload
from fl_app.updates import Update

_KIND = "state"
_MAX_BYTES = 2**31
_PARTS = ("start", "now", "first_moment", "second_moment", "waiting", "readout")


@dataclass(frozen=True, kw_only=True)
class LocalState(RoundState):
    """One device between two exchanges of first-order steps; see ``RoundState``.

    Attributes:
        num_devices: devices of the federation.
        proximal_mu: FedProx's mu, 0 without.
        start: tunable parameters as received.
        now: the same as tuned so far.
        first_moment: AdamW's, by name; empty before the first step.
        second_moment: likewise.
        waiting: gradients known before the step's others are (the head's).
        readout: bool, one or no array: which states the head of this step reads.
    """

    num_devices: int
    proximal_mu: float
    start: Update = field(default_factory=dict)
    now: Update = field(default_factory=dict)
    first_moment: Update = field(default_factory=dict)
    second_moment: Update = field(default_factory=dict)
    waiting: Update = field(default_factory=dict)
    readout: dict[str, np.ndarray[Any, np.dtype[np.bool_]]] = field(default_factory=dict)

    @override
    def to_blob(self) -> bytes:
        """Serialises."""
        scalars = {k: v for k, v in vars(self).items() if k not in _PARTS and k != "step"}
        arrays = {
            f"{part}|{name}": array
            for part in _PARTS
            for name, array in getattr(self, part).items()
        }
        return Payload(_KIND, self.step, scalars, arrays).to_blob()


def read_state(blob: bytes) -> LocalState:
    """Reads a state.

    Raises:
        WireError: damaged.
    """
    payload = read_payload(blob, max_bytes=_MAX_BYTES)
    parts: dict[str, Any] = {part: {} for part in _PARTS}
    for key, array in payload.arrays.items():
        part, _, name = key.partition("|")
        parts[part][name] = array
    scalars: dict[str, Any] = dict(payload.scalars)
    return LocalState(step=payload.step, **scalars, **parts)


def stepped(
    state: LocalState,
    gradients: Mapping[str, torch.Tensor],
    settings: LocalTuning,
    tuned: Collection[str],
    *,
    num_steps: int,
) -> LocalState:
    """Returns the state after one AdamW step: that of ``fl_app.finetune.tune``, to the last bit.

    Args:
        state: before; not changed. Its waiting gradients are used up.
        gradients: of the loss, for every tunable parameter without a waiting one.
        settings: learning rates and the like.
        tuned: names of the parameters to change.
        num_steps: the round's local steps.

    Raises:
        ModelError: a gradient is missing or not finite.
    """
    parameters = {
        name: nn.Parameter(torch.from_numpy(state.now[name].copy())) for name in sorted(tuned)
    }
    waiting = {name: torch.from_numpy(array.copy()) for name, array in state.waiting.items()}
    for name, parameter in parameters.items():
        gradient = gradients.get(name, waiting.get(name))
        if gradient is None or not torch.isfinite(gradient).all():
            raise ModelError(
                f"step {state.step}: the gradient of '{name}' is missing or not finite"
            )
        parameter.grad = gradient.reshape(parameter.shape).clone()
        if state.proximal_mu > 0.0:
            pull = parameter.detach() - torch.from_numpy(state.start[name])
            parameter.grad += state.proximal_mu * pull
    torch.nn.utils.clip_grad_norm_(list(parameters.values()), settings.clip_norm)
    rate_share = settings.rate_share(state.step, num_steps)
    optimiser = optimiser_of(parameters, settings, rate_share)
    for name, parameter in parameters.items():
        if name in state.first_moment:
            optimiser.state[parameter] = {
                "step": torch.tensor(float(state.step)),
                "exp_avg": torch.from_numpy(state.first_moment[name].copy()),
                "exp_avg_sq": torch.from_numpy(state.second_moment[name].copy()),
            }
    optimiser.step()
    moments = {name: optimiser.state[parameter] for name, parameter in parameters.items()}
    return replace(
        state,
        step=state.step + 1,
        now=state.now | {name: _numpy(parameter) for name, parameter in parameters.items()},
        first_moment={name: _numpy(moment["exp_avg"]) for name, moment in moments.items()},
        second_moment={name: _numpy(moment["exp_avg_sq"]) for name, moment in moments.items()},
        waiting={},
        readout={},
    )


def _numpy(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return tensor.detach().numpy().copy()
