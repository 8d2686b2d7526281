"""A layer shared out among devices: partial results are added up by the channel.

Device k computes z_k = W_k x_k of its own features and the server needs y = sum_k c_k z_k
(tensor-parallel layers; Krouka et al. 2021, arXiv:2106.00999). Forward all devices transmit at
once, m reals in ceil(m / 2) channel uses whatever their number; backward the server sends dL/dy
once and all devices hear it over the reciprocal channel. The air itself is computed by
``fl_app.wireless.partial_sums`` and ``fl_app.wireless.broadcast``, which are the reference.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from typing_extensions import override

from fl_app.errors import ModelError
from fl_app.fomo.connection_air import ConnectionBook
from fl_app.seeding import generator, torch_seed
from fl_app.wireless.broadcast import broadcast
from fl_app.wireless.channel import ChannelState, Fading, draw_state
from fl_app.wireless.partial_sums import sum_partials
from fl_app.wireless.power import PowerControl, ZeroForcing
from fl_app.wireless.report import AirReport
from fl_app.wireless.units import noise_power_from_tx_snr


class AirSum(nn.Module):
    """y = sum_k c_k z_k over the air; transmit power P is 1 on all sides, one antenna each.

    Args:
        coefficients: c_k of every device, any sign, not all 0.
        tx_snr_db: tx-SNR P / sigma^2 of a device, in dB before fading; ``inf`` for no noise.
        gradient_tx_snr_db: the same of the server, which sends gradients back.
        seed: the run's seed.
        name: tells sums of one model apart; they share channels, never noise.
        fading: small-scale fading.
        csi_error: relative error of channel knowledge, 0 to 1.
        control: power control of the devices. A device that it keeps silent on a subcarrier gets
            no gradient there either.

    Raises:
        ModelError: the coefficients are not finite or all 0.
    """

    def __init__(
        self,
        *,
        coefficients: Sequence[float],
        tx_snr_db: float,
        gradient_tx_snr_db: float,
        seed: int,
        name: str = "",
        fading: Fading | None = None,
        csi_error: float = 0.0,
        control: PowerControl | None = None,
    ) -> None:
        super().__init__()
        self.coefficients = np.array(coefficients, np.float64)
        if not 0.0 < float(np.abs(self.coefficients).sum()) < np.inf:
            raise ModelError(f"coefficients={list(coefficients)} must be finite and not all 0")
        self.book = ConnectionBook()
        self.report: AirReport | None = None
        self._noise = noise_power_from_tx_snr(tx_snr_db)
        self._gradient_noise = noise_power_from_tx_snr(gradient_tx_snr_db)
        self._seed, self._name = seed, name
        self._fading, self._csi_error = fading or Fading(), csi_error
        self._control: PowerControl = control or ZeroForcing()
        self._state: ChannelState | None = None

    def redraw(self, round: int) -> None:
        """Draws every device's channel of one round, and starts the noise of that round anew."""
        num_devices = len(self.coefficients)
        self._state = draw_state(
            self._fading,
            torch_seed(self._seed, "connection-sum"),
            round,
            mean_gains=np.ones(num_devices),
            noise_power=1.0,
            csi_error=self._csi_error,
        )
        self._forward_noise, self._backward_noise = (
            generator(self._seed, "connection-noise", self._name, round, way)
            for way in ("forward", "backward")
        )

    def state(self, noise_power: float) -> ChannelState:
        """Returns the round's channel with a noise power.

        Raises:
            ModelError: no channel has been drawn yet.
        """
        if self._state is None:
            raise ModelError("a sum over the air needs a channel: call redraw(round) first")
        return ChannelState(
            gains=self._state.gains,
            known_gains=self._state.known_gains,
            noise_power=noise_power,
            mean_gains=self._state.mean_gains,
        )

    @override
    def forward(self, partials: torch.Tensor) -> torch.Tensor:
        """Adds up; backward gives every device its gradient c_k dL/dy.

        The figures of the last pass are kept in ``report``; where nobody is heard the sum is 0.

        Args:
            partials: [num_devices, ..., m] z_k, float32 or float64; not changed.

        Returns:
            [..., m].

        Raises:
            ModelError: no channel was drawn, or the number of devices is wrong.
            ChannelError: a value is not finite.
        """
        if partials.ndim < 2 or len(partials) != len(self.coefficients):
            raise ModelError(
                f"partials {tuple(partials.shape)} must be [{len(self.coefficients)}, ..., m]"
            )
        out: torch.Tensor = _Sum.apply(partials, self)  # type: ignore[no-untyped-call]
        return out

    def add(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Returns [num_reals], what the server makes of [num_devices, num_reals]."""
        total, self.report = sum_partials(
            rows, self.coefficients, self.state(self._noise), self._control, self._forward_noise
        )
        self.book.forward_uses += self.report.channel_uses
        self.book.forward_bytes += self.report.control_bytes
        return np.zeros(rows.shape[1], rows.dtype) if total is None else total

    def send_back(self, gradient: NDArray[Any]) -> NDArray[Any]:
        """Returns [num_devices, num_reals] gradients, received by all of one [num_reals] sent."""
        state = self.state(self._gradient_noise)
        ones = np.ones(len(self.coefficients))
        is_heard = self._control.plan(state, ones, ones).is_heard
        received, report = broadcast(gradient, state, is_heard, self._backward_noise)
        self.book.backward_uses += report.channel_uses
        self.book.backward_bytes += report.control_bytes
        return self.coefficients[:, None] * received


class SplitLinear(nn.Module):
    """y = sum_k W_k x_k, W's columns shared out among devices, which tune their own part.

    Args:
        weight: [num_outputs, width] W to start from; copied.
        sizes: features of every device, >= 1, in all ``width``.
        air: adds up, with one coefficient per device.

    Raises:
        ModelError: the sizes do not fit.
    """

    def __init__(self, weight: torch.Tensor, sizes: Sequence[int], air: AirSum) -> None:
        super().__init__()
        fits = len(sizes) == len(air.coefficients) and min(sizes, default=0) >= 1
        if weight.ndim != 2 or not fits or sum(sizes) != weight.shape[1]:
            raise ModelError(
                f"sizes={list(sizes)} must be >= 1, {len(air.coefficients)} in number and add up "
                f"to the width of the weight {tuple(weight.shape)}"
            )
        self.sizes, self.air = list(sizes), air
        parts = torch.split(weight.detach(), self.sizes, dim=1)
        self.parts = nn.ParameterList([nn.Parameter(part.clone()) for part in parts])

    @override
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Returns [..., num_outputs] of [..., width] vectors; device k holds its features alone."""
        held = torch.split(vectors, self.sizes, dim=-1)
        partials = [x @ part.T for x, part in zip(held, self.parts, strict=True)]
        out: torch.Tensor = self.air(torch.stack(partials))
        return out


class _Sum(torch.autograd.Function):
    """Superposition forward, broadcast backward."""

    @staticmethod
    @override
    def forward(ctx: Any, partials: torch.Tensor, air: AirSum) -> torch.Tensor:
        ctx.air = air
        total = air.add(partials.detach().cpu().flatten(1).numpy())
        return torch.from_numpy(total).to(partials).view(partials.shape[1:])

    @staticmethod
    @override
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        received = ctx.air.send_back(gradient.detach().cpu().flatten().numpy())
        return torch.from_numpy(received).to(gradient).view(-1, *gradient.shape), None
