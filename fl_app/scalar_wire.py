"""What travels in a round of tuning by scalars, as payloads.

Content in bytes, for tau steps of B examples; a payload's header adds 200 to 400:

* down, to open: 4 num_seeds, the sums so far;
* up: 4 tau, the seeds; with them, once per run, the features of all steps (and labels, if they are
  at the server);
* labels private, every step: down both sides' outputs, 8 B C for C classes (for language models
  8 d for every state that is read), up their slope;
* down, to close: 4 tau, the slopes; up a word that ends the round.

So a round does not depend on the model, but for language models with private labels. *Private* is
what labels travel as, and not a guarantee: the loss is linear in the labels and the server knows
what it is linear in, so every slope is one equation for them, and B C of one batch are enough.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.errors import WireError
from fl_app.features_wire import (
    COUNTS,
    ERROR,
    FEATURES,
    Arrays,
    parameters_in,
    parameters_out,
    require_kind,
)
from fl_app.payload import Payload, Scalar
from fl_app.records import to_blob
from fl_app.updates import Update

OPEN, SEEDS, SIDES, SLOPE, CLOSE = "open", "seeds", "sides", "slope", "close"
_COEFFICIENTS, _SLOPES, _READOUT = "coefficients", "slopes", "readout"
_SIDE, _PLUS, _MINUS = "side", "plus", "minus"
_LOSS, _ADAPTER = "loss", "adapter"


def digest(adapter: Update) -> str:
    """Returns the SHA-256 of an adapter: equal where every bit is."""
    return hashlib.sha256(to_blob(adapter)).hexdigest()


@dataclass(frozen=True)
class Opening:
    """What opens a device's round.

    Attributes:
        round: server round.
        device: partition index.
        model_hash: of the device's part of the model.
        wants_features: whether the server lacks this device's features.
        coefficients: float32 [num_seeds], see ``SeedPool``: the adapter of this round.
    """

    round: int
    device: int
    model_hash: str
    wants_features: bool
    coefficients: NDArray[np.float32]

    def to_payload(self) -> Payload:
        """Returns the payload."""
        scalars = {name: value for name, value in vars(self).items() if name != _COEFFICIENTS}
        return Payload(OPEN, 0, scalars, {_COEFFICIENTS: self.coefficients})


_OPENING = {
    "round": int,
    "device": int,
    "model_hash": str,
    "wants_features": bool,
}


def read_opening(payload: Payload, num_seeds: int) -> Opening:
    """Reads what opens a round.

    Raises:
        WireError: ``wrong-kind``, ``missing``, ``wrong-shape`` or ``not-finite``.
    """
    require_kind(payload, OPEN)
    given = {name: type(value) for name, value in payload.scalars.items()}
    if given != _OPENING:
        raise WireError("missing", f"a round opens with {sorted(_OPENING)}, got {sorted(given)}")
    scalars: dict[str, Any] = dict(payload.scalars)
    coefficients = _vector(payload, _COEFFICIENTS, "float32")
    if len(coefficients) != num_seeds:
        raise WireError(
            "wrong-shape",
            f"{len(coefficients)} coefficients, but strategy.scalar.num_seeds={num_seeds}",
        )
    return Opening(coefficients=coefficients, **scalars)


@dataclass(frozen=True)
class Start:
    """A device's answer to ``Opening``.

    Attributes:
        seeds: int32 [num_steps], places in the pool, one for each step.
        adapter: ``digest`` of the adapter it rebuilt.
        batches: features of every step, see ``FeatureWire.features``, with ``labels`` where those
            are at the server; empty where they were not asked for.
        counts: int64 [C], its examples of each class, where labels are at the server and the loss
            depends on them.
        error: relative error that coding the features made, mean over the steps; None without
            features. Whether it is a number is judged where features are read.
    """

    seeds: NDArray[np.int32]
    adapter: str
    batches: Sequence[Arrays] = ()
    counts: NDArray[np.int64] | None = None
    error: Scalar | None = None

    def to_payload(self) -> Payload:
        """Returns the payload."""
        arrays: Arrays = {SEEDS: self.seeds}
        for step, batch in enumerate(self.batches):
            arrays |= {f"{step}|{name}": array for name, array in batch.items()}
        if self.counts is not None:
            arrays[COUNTS] = self.counts
        scalars: dict[str, Scalar] = {_ADAPTER: self.adapter}
        if self.error is not None:
            scalars[ERROR] = self.error
        return Payload(FEATURES if self.batches else SEEDS, 0, scalars, arrays)


def read_start(payload: Payload, *, num_seeds: int, adapter: str) -> Start:
    """Reads a device's answer to ``Opening``.

    Args:
        payload: as it came.
        num_seeds: size of the pool.
        adapter: ``digest`` of the server's adapter.

    Raises:
        WireError: ``wrong-kind``, ``wrong-dtype``, ``wrong-shape``, ``missing``, ``out-of-pool``
            or ``wrong-adapter``.
    """
    if payload.kind != FEATURES:
        require_kind(payload, SEEDS)
    seeds = _vector(payload, SEEDS, "int32")
    if len(seeds) == 0:
        raise WireError("wrong-shape", "a round without a single seed")
    if seeds.min() < 0 or seeds.max() >= num_seeds:
        raise WireError(
            "out-of-pool", f"seeds are places in 0..{num_seeds - 1}, got {seeds.tolist()[:8]}"
        )
    rebuilt = payload.scalars.get(_ADAPTER)
    if rebuilt != adapter:
        raise WireError(
            "wrong-adapter",
            f"it rebuilt {str(rebuilt)[:8]}, the server {adapter[:8]}; do both run the same "
            "configuration and release of NumPy?",
        )
    batches: list[Arrays] = []
    if payload.kind == FEATURES:
        batches = [_of_step(payload.arrays, step) for step in range(len(seeds))]
    counts = payload.arrays.get(COUNTS)
    return Start(seeds, adapter, batches, counts, payload.scalars.get(ERROR))


def sides(
    step: int, plus: torch.Tensor, minus: torch.Tensor, readout: torch.Tensor | None
) -> Payload:
    """Returns both sides' outputs, always in float32: their small difference is what counts.

    Args:
        step: local step.
        plus: output at theta + eps z, see ``HeadOutput``.
        minus: output at theta - eps z.
        readout: bool [B, S'], which states they are; None where they are logits.
    """
    arrays = parameters_out(_SIDE, {_PLUS: plus, _MINUS: minus})
    return Payload(
        SIDES, step, {}, arrays if readout is None else {**arrays, _READOUT: readout.numpy()}
    )


def read_sides(payload: Payload) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reads both sides and the readout (empty where they are logits).

    Raises:
        WireError: ``wrong-kind``, ``missing``, ``wrong-dtype`` or ``not-finite``.
    """
    require_kind(payload, SIDES)
    found = parameters_in(_SIDE, payload.arrays)
    if set(found) != {_PLUS, _MINUS}:
        raise WireError("missing", f"sides {sorted(found)}, expected {[_MINUS, _PLUS]}")
    readout = payload.arrays.get(_READOUT, np.zeros(0, np.bool_))
    return found[_PLUS], found[_MINUS], torch.from_numpy(readout.copy())


def slope(step: int, value: float) -> Payload:
    """Returns the slope a device measured."""
    return Payload(SLOPE, step, {SLOPE: value})


def read_slope(payload: Payload) -> float:
    """Reads a slope; whether it is a number is judged where it is used.

    Raises:
        WireError: ``wrong-kind`` or ``missing``.
    """
    require_kind(payload, SLOPE)
    value = payload.scalars.get(SLOPE)
    if type(value) is not float:
        raise WireError("missing", f"slope {value!r} should be a float")
    return value


def close(slopes: Sequence[float], loss: float | None) -> Payload:
    """Returns what ends a round.

    Args:
        slopes: of all steps, sent as float32 [num_steps].
        loss: mean of the steps' losses; None where the device knows it itself.
    """
    scalars = {} if loss is None else {_LOSS: loss}
    return Payload(CLOSE, len(slopes), scalars, {_SLOPES: np.array(slopes, np.float32)})


def read_close(payload: Payload, num_steps: int) -> tuple[list[float], float | None]:
    """Reads a round's (slopes, loss).

    Raises:
        WireError: ``wrong-kind``, ``missing``, ``wrong-dtype``, ``wrong-shape`` or ``not-finite``.
    """
    require_kind(payload, CLOSE)
    slopes = _vector(payload, _SLOPES, "float32")
    if len(slopes) != num_steps:
        raise WireError("wrong-shape", f"{len(slopes)} slopes for {num_steps} steps")
    loss = payload.scalars.get(_LOSS)
    return slopes.tolist(), None if loss is None else float(loss)


def _vector(payload: Payload, name: str, dtype: str) -> NDArray[Any]:
    array = payload.arrays.get(name)
    if array is None:
        raise WireError("missing", f"no '{name}'")
    if array.dtype.name != dtype:
        raise WireError("wrong-dtype", f"'{name}' is {array.dtype.name}, must be {dtype}")
    if array.ndim != 1:
        raise WireError("wrong-shape", f"'{name}' has {array.ndim} dimensions, must have 1")
    if not np.isfinite(array).all():
        raise WireError("not-finite", f"'{name}' holds NaN or infinity")
    return array


def _of_step(arrays: Mapping[str, NDArray[Any]], step: int) -> Arrays:
    lead = f"{step}|"
    return {k.removeprefix(lead): v for k, v in arrays.items() if k.startswith(lead)}
