"""Devices' features in the server's memory, sent once per run and kept within a bound."""

from collections.abc import Collection, Sequence

import torch

from fl_app.errors import WireError
from strategies.feature_reader import Arrived

_MEGABYTE = 10**6


class FeatureCache:
    """Features of every local step, by device; who was there longest ago makes room.

    Args:
        max_mb: megabytes (10^6 bytes) kept at most, > 0.
    """

    def __init__(self, max_mb: float) -> None:
        self._max_mb = max_mb
        self._held: dict[int, Sequence[Arrived]] = {}
        """By device; the one used last is last."""

    def holds(self, device: int) -> bool:
        """Tells whether a device's features are here."""
        return device in self._held

    @property
    def num_bytes(self) -> int:
        """Bytes kept."""
        return sum(_size(batches) for batches in self._held.values())

    def keep(self, device: int, batches: Sequence[Arrived], busy: Collection[int]) -> None:
        """Keeps a device's features.

        Args:
            device: whose.
            batches: one for each local step.
            busy: devices whose features this round needs; they do not make room.

        Raises:
            WireError: ``cache-full``.
        """
        room = self._max_mb * _MEGABYTE - _size(batches)
        self._held.pop(device, None)
        idle = [other for other in self._held if other not in busy]
        while self.num_bytes > room and idle:
            del self._held[idle.pop(0)]
        if self.num_bytes > room:
            raise WireError(
                "cache-full",
                f"{_size(batches)} bytes of features do not fit strategy.scalar.max_cached_mb="
                f"{self._max_mb} beside {self.num_bytes} of this round's other devices; raise it, "
                "or lower finetune.max_steps or federation.devices_per_round",
            )
        self._held[device] = batches

    def use(self, device: int) -> Sequence[Arrived]:
        """Returns a device's features, and notes that they were used."""
        self._held[device] = self._held.pop(device)
        return self._held[device]

    def forget(self, device: int) -> None:
        """Throws a device's features away; it will be asked for them again."""
        self._held.pop(device, None)


def _size(batches: Sequence[Arrived]) -> int:
    tensors = (tensor for batch in batches for tensor in _tensors(batch))
    return sum(map(_bytes, tensors)) + sum(batch.counts.nbytes for batch in batches)


def _tensors(batch: Arrived) -> list[torch.Tensor]:
    features = batch.features
    return [
        *features.hidden,
        *features.masks,
        features.readout,
        batch.labels,
        *batch.own.values(),
    ]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
