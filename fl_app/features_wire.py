"""What travels within a local step of gradient download, as payloads.

One step, labels private:  features up, states down, slopes up, gradient down. Labels at the server:
features up (with labels and the head), gradient down. A device's last payload of a round is its
update.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.codec import relative_error, restore, squeeze
from fl_app.errors import WireError
from fl_app.fomo.features import FeatureGradient, Features
from fl_app.payload import Payload
from fl_app.updates import Update

BEGIN, NO_FRONT, UPDATE = "begin", "no-front", "update"
FEATURES, STATES, SLOPES, GRADIENT = "features", "states", "slopes", "gradient"
OWN, PARAMETER = "own", "parameter"
"""Prefixes of parameters that sit at the server while computing, and of their gradients."""
COUNTS = "counts"
"""Array beside labels: the device's examples of each class, where its loss depends on them."""
ERROR = "feature_error"
"""A scalar beside features: the relative error their coding made."""

MAX_BYTES = 2**28
"""The longest payload of an exchange: 256 MiB."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Begin:
    """What opens a device's round.

    Attributes:
        round: server round.
        device: partition index.
        num_devices: devices of the federation.
        model_hash: of the device's part of the model.
        proximal_mu: FedProx's mu, 0 without.
        adapter: all tunable parameters.
    """

    round: int
    device: int
    num_devices: int
    model_hash: str
    proximal_mu: float
    adapter: Update

    def to_payload(self) -> Payload:
        """Returns the payload."""
        scalars = {name: value for name, value in vars(self).items() if name != "adapter"}
        return Payload(BEGIN, 0, scalars, self.adapter)


def read_begin(payload: Payload) -> Begin:
    """Reads what opens a round.

    Raises:
        WireError: ``wrong-kind`` or ``missing``.
    """
    require_kind(payload, BEGIN)
    given = {name: type(value) for name, value in payload.scalars.items()}
    if given != _BEGIN:
        raise WireError("missing", f"a round opens with {sorted(_BEGIN)}, got {sorted(given)}")
    scalars: dict[str, Any] = dict(payload.scalars)
    return Begin(adapter=dict(payload.arrays), **scalars)


_BEGIN = {"round": int, "device": int, "num_devices": int, "model_hash": str, "proximal_mu": float}


class FeatureWire:
    """Tensors to arrays of a payload and back.

    Gradients in half precision are sent relative to their largest entry, because those of a mean
    loss lie near the smallest number of float16.

    Args:
        how: ``float32``, ``float16`` or ``int8``.
    """

    def __init__(self, how: str) -> None:
        self._how = how

    def code(
        self, name: str, tensor: torch.Tensor, rng: np.random.Generator, *, relative: bool = False
    ) -> Arrays:
        """Codes one float32 tensor.

        Raises:
            WireError: ``not-finite`` or ``overflow``.
        """
        array = tensor.detach().numpy()
        extra: Arrays = {}
        if relative and self._how == "float16":
            peak = np.float32(np.abs(array).max(initial=0.0)) or np.float32(1.0)
            array, extra = array / peak, {f"{name}.peak": np.array([peak])}
        parts = squeeze(array, self._how, rng, name=name)
        return {f"{name}.{part}": values for part, values in parts.items()} | extra

    def decode(
        self,
        arrays: Mapping[str, NDArray[Any]],
        name: str,
        *,
        dims: int,
        relative: bool = False,
    ) -> torch.Tensor:
        """Returns the float32 tensor; all that a stranger could choose about it is judged here.

        Args:
            arrays: of the payload.
            name: of the tensor.
            dims: how many dimensions it has.
            relative: as it was coded.

        Raises:
            WireError: ``missing``, ``wrong-dtype``, ``wrong-shape`` or ``not-finite``.
        """
        lead = f"{name}."
        parts = {k.removeprefix(lead): v for k, v in arrays.items() if k.startswith(lead)}
        has_peak = relative and self._how == "float16"
        peak = _peak(parts.pop("peak", None), name) if has_peak else None
        with np.errstate(over="ignore", invalid="ignore"):  # judged below
            array = restore(parts, self._how, name=name)
            if peak is not None:
                array = array * peak
        if array.ndim != dims:
            raise WireError("wrong-shape", f"'{name}' is {array.shape}, must have {dims} axes")
        if not np.isfinite(array).all():
            raise WireError("not-finite", f"'{name}' holds NaN or infinity")
        return torch.from_numpy(array)

    def error(self, features: Features, arrays: Arrays) -> float:
        """Returns the relative error coding made, 0 in float32.

        That is ||decoded - sent|| / ||sent|| over all states and the prompt; 0 if all are 0.

        Args:
            features: as they were.
            arrays: what ``features`` made of them.
        """
        if self._how == "float32":
            return 0.0
        pairs = [
            (self.decode(arrays, f"hidden{i}", dims=3), h) for i, h in enumerate(features.hidden)
        ]
        if features.prompt is not None:
            pairs.append((self.decode(arrays, "prompt", dims=2), features.prompt))
        return relative_error(
            np.concatenate([sent.numpy().ravel() for _, sent in pairs]),
            np.concatenate([decoded.numpy().ravel() for decoded, _ in pairs]),
        )

    def features(self, features: Features, rng: np.random.Generator) -> Arrays:
        """Codes features; masks travel as one byte a position."""
        arrays: Arrays = {"readout": features.readout.numpy()}
        for i, (state, mask) in enumerate(zip(features.hidden, features.masks, strict=True)):
            arrays |= self.code(f"hidden{i}", state, rng)
            arrays[f"mask{i}"] = mask.numpy()
        if features.prompt is not None:
            arrays |= self.code("prompt", features.prompt, rng)
        return arrays

    def read_features(self, payload: Payload, num_stacks: int) -> Features:
        """Reads features; whether shapes fit the model is checked where it is known.

        Raises:
            WireError: something is missing, not finite, or has other dimensions than it should.
        """
        arrays = payload.arrays
        return Features(
            hidden=tuple(self.decode(arrays, f"hidden{i}", dims=3) for i in range(num_stacks)),
            masks=tuple(_mask(arrays, f"mask{i}") for i in range(num_stacks)),
            prompt=self.decode(arrays, "prompt", dims=2) if _has(arrays, "prompt") else None,
            readout=_mask(arrays, "readout"),
        )

    def gradient(self, gradient: FeatureGradient, rng: np.random.Generator) -> Arrays:
        """Codes what the server sends back; parameters' gradients stay in float32."""
        arrays: Arrays = {}
        if gradient.prompt is not None:
            arrays |= self.code("prompt", gradient.prompt, rng, relative=True)
        for i, state in enumerate(gradient.hidden or ()):
            arrays |= self.code(f"hidden{i}", state, rng, relative=True)
        return arrays | parameters_out(PARAMETER, gradient.parameters)

    def read_gradient(self, payload: Payload) -> FeatureGradient:
        """Reads what came back.

        Raises:
            WireError: something is missing, not finite, or has other dimensions than it should.
        """
        arrays = payload.arrays

        def tensor(name: str, dims: int) -> torch.Tensor:
            return self.decode(arrays, name, dims=dims, relative=True)

        places = sorted({k.partition(".")[0] for k in arrays if k.startswith("hidden")})
        return FeatureGradient(
            hidden=tuple(tensor(place, 3) for place in places) or None,
            prompt=tensor("prompt", 2) if _has(arrays, "prompt") else None,
            parameters=parameters_in(PARAMETER, arrays),
        )


def require_kind(payload: Payload, kind: str) -> None:
    """Raises ``WireError`` (``wrong-kind``) unless a payload is of this kind."""
    if payload.kind != kind:
        raise WireError("wrong-kind", f"got {payload.kind!r}, expected {kind!r}")


def parameters_out(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Arrays:
    """Returns float32 arrays under ``prefix|name``."""
    return {f"{prefix}|{name}": tensor.detach().numpy() for name, tensor in tensors.items()}


def parameters_in(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """Returns the tensors under ``prefix|name``.

    Raises:
        WireError: ``wrong-dtype`` or ``not-finite``.
    """
    lead, found = f"{prefix}|", {}
    for key, array in arrays.items():
        if not key.startswith(lead):
            continue
        name = key.removeprefix(lead)
        if array.dtype != np.float32:
            raise WireError("wrong-dtype", f"'{name}' is {array.dtype.name}, must be float32")
        if not np.isfinite(array).all():
            raise WireError("not-finite", f"'{name}' holds NaN or infinity")
        found[name] = torch.from_numpy(array.copy())
    return found


def _has(arrays: Mapping[str, NDArray[Any]], name: str) -> bool:
    return any(key.startswith(f"{name}.") for key in arrays)


def _peak(given: NDArray[Any] | None, name: str) -> NDArray[np.float32]:
    """Returns what a relative tensor is multiplied by: one number, so that nothing can grow."""
    if given is None:
        raise WireError("missing", f"no '{name}.peak'")
    if given.dtype != np.float32:
        raise WireError("wrong-dtype", f"'{name}.peak' is {given.dtype.name}, must be float32")
    if given.shape != (1,):
        raise WireError("wrong-shape", f"'{name}.peak' is {given.shape}, must be (1,)")
    if not 0 < given[0] < np.inf:
        raise WireError("not-finite", f"'{name}.peak' is {given[0]}, must be > 0 and finite")
    return given


def _mask(arrays: Mapping[str, NDArray[Any]], name: str) -> torch.Tensor:
    if name not in arrays or arrays[name].dtype != np.bool_:
        raise WireError("missing", f"'{name}' should be a bool array")
    if arrays[name].ndim != 2:
        raise WireError("wrong-shape", f"'{name}' is {arrays[name].shape}, must have 2 axes")
    return torch.from_numpy(arrays[name].copy())
