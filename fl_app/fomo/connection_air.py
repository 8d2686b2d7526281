"""What designed and learned connections share: channel draws, noise streams and the book."""

from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import nn

from fl_app.errors import ModelError
from fl_app.fomo.connection_link import LinkSpec
from fl_app.seeding import torch_seed
from fl_app.wireless.report import safe_ratio


@dataclass
class ConnectionBook:
    """What crossed a connection since the book was opened.

    Attributes:
        forward_uses: channel uses (complex symbols in time) from device to server.
        backward_uses: channel uses from server to device.
        forward_bytes: digital side information from device to server.
        backward_bytes: digital side information from server to device.
    """

    forward_uses: int = 0
    backward_uses: int = 0
    forward_bytes: int = 0
    backward_bytes: int = 0

    def __add__(self, other: "ConnectionBook") -> "ConnectionBook":
        """Adds two books."""
        return ConnectionBook(
            self.forward_uses + other.forward_uses,
            self.backward_uses + other.backward_uses,
            self.forward_bytes + other.forward_bytes,
            self.backward_bytes + other.backward_bytes,
        )


@dataclass
class MeasuredErrors:
    """Errors of what arrived at the server in measured passes, summed over all entries.

    Attributes:
        num_reals: entries received.
        energy: of the exact output.
        error: energy of received less exact output.
        clipping: energy of the clipped-off signal after the receiver's scaling, a part of it.
        num_symbols: symbols of single antennas that a peak limit applied to.
        num_clipped: of these clipped.
    """

    num_reals: int = 0
    energy: float = 0.0
    error: float = 0.0
    clipping: float = 0.0
    num_symbols: int = 0
    num_clipped: int = 0

    def __add__(self, other: "MeasuredErrors") -> "MeasuredErrors":
        """Adds two accounts."""
        mine, theirs = astuple(self), astuple(other)
        return MeasuredErrors(*(a + b for a, b in zip(mine, theirs, strict=True)))

    def figures(self) -> dict[str, float]:
        """Returns the round's figures; none where nothing was measured.

        ``connection_nmse``, and with a peak limit ``connection_clipping_nmse`` and
        ``connection_clipped_share``.
        """
        if self.num_reals == 0:
            return {}
        found = {"connection_nmse": safe_ratio(self.error, self.energy)}
        if self.num_symbols:
            found["connection_clipping_nmse"] = safe_ratio(self.clipping, self.energy)
            found["connection_clipped_share"] = self.num_clipped / self.num_symbols
        return found


class AirModule(nn.Module, ABC):
    """What designed and learned connections share: channel draws, noise streams, the book.

    Args:
        spec: the link.
        seed: the run's seed.
        name: tells connections of one model apart; they share channels, never noise.
    """

    def __init__(self, *, spec: LinkSpec, seed: int, name: str) -> None:
        super().__init__()
        self.spec = spec
        self.book = ConnectionBook()
        self.measured = MeasuredErrors()
        self._seed, self._name = seed, name
        self._pass: int | None = None
        self._is_drawn = False

    def redraw(self, round: int, *, device: int = 0) -> None:
        """Draws the channel of one round and device, and starts the noise of that round anew.

        Args:
            round: server round, >= 0.
            device: partition index, >= 0.
        """
        self._pass = None
        self._draw("local", round, device)
        self._start_noise("local", round, device)

    def measure(self) -> None:
        """From here on every pass meets a channel of its own, from a stream kept for measuring.

        Measuring twice gives the same figures, whatever happened in between. Errors are counted
        from here on in ``measured``, where the connection has an exact output to compare with.
        """
        self._pass = 0
        self.measured = MeasuredErrors()

    @property
    def is_measuring(self) -> bool:
        """Tells whether passes are measured; tuning spends no time on it."""
        return self._pass is not None

    def _draw(self, purpose: str, number: int, device: int) -> None:
        self._meet(*self.spec.draw(self._seed, purpose, number, device))
        self._is_drawn = True

    def _start_noise(self, purpose: str, number: int, device: int) -> None:
        path = ("connection-noise", self._name, purpose, number, device)
        self._forward_noise, self._backward_noise = (
            torch.Generator().manual_seed(torch_seed(self._seed, *path, way))
            for way in ("forward", "backward")
        )

    def _draw_to_measure(self, number: int) -> None:
        """Takes the channel of one measured pass."""
        self._draw("measure", number, 0)

    def _begin_pass(self) -> None:
        """Draws the next channel and noise while measuring.

        Raises:
            ModelError: no channel has been drawn yet.
        """
        if self._pass is not None:
            self._draw_to_measure(self._pass)
            self._start_noise("measure", self._pass, 0)
            self._pass += 1
        elif not self._is_drawn:
            raise ModelError(
                "a connection needs a channel: call redraw(round) before tuning, or measure()"
            )

    @abstractmethod
    def _meet(self, true: Any, known: Any) -> None:
        """Takes a channel [num_rx, num_tx] and what is known of it."""
