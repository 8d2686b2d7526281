"""Features as devices send them, checked one by one so that no device can hurt the others."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.errors import ModelError, WireError
from fl_app.features_wire import ERROR, OWN, FeatureWire, parameters_in
from fl_app.fomo.features import Features
from fl_app.fomo.trunk import Trunk
from fl_app.payload import Payload
from fl_app.wire import MAX_FIGURE
from strategies.label_rule import LabelRule

Layout = Mapping[str, tuple[int, ...]]
"""Shapes of parameters by canonical name."""


@dataclass(frozen=True)
class Arrived:
    """One device's features, read.

    Attributes:
        features: as the trunk takes them.
        own: its values of parameters that sit here while computing.
        labels: of the batch, where labels are at the server; empty otherwise.
        counts: its examples of each class, where the loss depends on them; empty otherwise.
        error: relative error that coding made, as the device measured it, >= 0.
    """

    features: Features
    own: dict[str, torch.Tensor]
    labels: torch.Tensor
    counts: NDArray[np.int64]
    error: float

    @property
    def num_terms(self) -> int:
        """Terms its loss is the mean of: one a state the head reads."""
        return int(self.features.readout.sum())


class FeatureReader:
    """Reads one local step's features.

    Args:
        trunk: what they must fit.
        wire: how they travel.
        num_stacks: of the model.
        num_prompt: m, tokens of the soft prompt devices send; 0 without one.
        max_rows: the most examples of one local step, >= 1.
        max_length: the most positions of a text, the prompt's not counted; None for images, which
            have as many as the trunk says.
        labels: what labels may be, where they are at the server.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        wire: FeatureWire,
        num_stacks: int,
        num_prompt: int,
        max_rows: int,
        max_length: int | None,
        labels: LabelRule,
    ) -> None:
        self._trunk, self._wire, self._labels = trunk, wire, labels
        self._num_stacks, self._num_prompt = num_stacks, num_prompt
        self._max_rows = max_rows
        self._max_length = math.inf if max_length is None else max_length

    def read(self, payload: Payload, own: Layout, *, with_labels: bool) -> Arrived:
        """Reads a payload.

        Args:
            payload: as it came.
            own: parameters the device must send along.
            with_labels: whether labels are at the server.

        Raises:
            WireError: something is missing, not finite, or does not fit the trunk.
        """
        features = self._wire.read_features(payload, self._num_stacks)
        if features.num_prompt != self._num_prompt:
            raise WireError(
                "wrong-shape", f"a prompt of {features.num_prompt}, expected {self._num_prompt}"
            )
        self._require_bounds(features)
        try:
            self._trunk.require_fit(features)
        except ModelError as error:
            raise WireError("wrong-shape", str(error)) from error
        self._require_readout(features)
        values = parameters_in(OWN, payload.arrays)
        require_layout(values, own)
        labels, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        if with_labels:
            labels, counts = self._labels.read(payload.arrays, features.masks[-1].shape)
        measured = payload.scalars.get(ERROR)
        if type(measured) is not float or not 0 <= measured <= MAX_FIGURE:
            raise WireError("missing", f"'{ERROR}'={measured!r} must be a float32 >= 0")
        return Arrived(features, values, torch.from_numpy(labels), counts, measured)

    def _require_bounds(self, features: Features) -> None:
        """Checks sizes, which a device could choose to fill the server's memory."""
        rows = len(features.readout)
        longest = max(mask.shape[1] for mask in features.masks)
        if rows > self._max_rows or longest > self._max_length:
            raise WireError(
                "wrong-shape",
                f"{rows} rows of {longest} positions, at most {self._max_rows} "
                f"(finetune.batch_size, prompt's rows) of {self._max_length} (model.max_length)",
            )

    def _require_readout(self, features: Features) -> None:
        """Checks which states are asked for: a text's one, or any of its tokens, never a prompt's.

        So what comes back is no more than what was sent.
        """
        if self._labels.per_token:
            num_prompt = self._num_prompt if self._num_stacks == 1 else 0
            is_fit = not bool(features.readout[:, :num_prompt].any())
        else:
            is_fit = bool((features.readout.sum(1) <= 1).all())
        if not is_fit:
            raise WireError("wrong-shape", "it reads more states than its loss depends on")


def require_layout(given: Mapping[str, torch.Tensor], wanted: Layout) -> None:
    """Checks names and shapes, which a device could choose to hurt the others.

    Raises:
        WireError: ``missing`` or ``wrong-shape``.
    """
    if set(given) != set(wanted):
        raise WireError("missing", f"parameters {sorted(given)[:3]}, expected {sorted(wanted)[:3]}")
    for name, shape in wanted.items():
        if given[name].shape != shape:
            raise WireError(
                "wrong-shape", f"'{name}' is {list(given[name].shape)}, expected {list(shape)}"
            )
