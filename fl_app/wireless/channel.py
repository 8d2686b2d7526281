"""Fading: drawing channel coefficients, knowing them imperfectly, and receiver noise.

Coefficients are constant within a round and independent between rounds (block fading), or follow
the Gauss-Markov recursion h_{t+1} = rho h_t + sqrt(1 - rho^2) CN(0, 1). Each comes from a stream
named by (seed, round, device), so no draw depends on the order of calls or on who takes part.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_app.seeding import generator
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.gain_law import RAYLEIGH, GainLaw, RicianLaw

Complex = NDArray[np.complex128]
Kind = Literal["ideal", "awgn", "rayleigh", "rician"]


@dataclass(frozen=True, kw_only=True)
class Fading:
    """Small-scale fading with E|h|^2 = 1 on every subcarrier and antenna pair.

    Attributes:
        kind: "ideal" and "awgn" have h = 1 (an ideal link has no noise either); "rayleigh" is
            CN(0, 1); "rician" adds a line of sight to it.
        num_subcarriers: subcarriers M, >= 1.
        num_taps: taps of the power-delay profile, 1 (flat) to M, or None for subcarriers that fade
            independently.
        decay_taps: the profile is exp(-l / decay_taps) at tap l, > 0.
        rician_k: power of the line of sight over that of the scatter, linear, >= 0.
        correlation: rho of the Gauss-Markov recursion, 0 (block fading) to 1 (static).
    """

    kind: Kind = "rayleigh"
    num_subcarriers: int = 1
    num_taps: int | None = None
    decay_taps: float = 3.0
    rician_k: float = 0.0
    correlation: float = 0.0

    def __post_init__(self) -> None:
        """Raises ChannelError on a value out of range."""
        if self.kind not in ("ideal", "awgn", "rayleigh", "rician"):
            raise ChannelError(f"fading kind={self.kind!r}; choose ideal, awgn, rayleigh or rician")
        if self.num_subcarriers < 1:
            raise ChannelError(f"fading num_subcarriers={self.num_subcarriers} must be >= 1")
        if self.num_taps is not None and not 1 <= self.num_taps <= self.num_subcarriers:
            raise ChannelError(
                f"fading num_taps={self.num_taps} must be 1..num_subcarriers={self.num_subcarriers}"
            )
        if not (self.decay_taps > 0.0 and math.isfinite(self.decay_taps)):
            raise ChannelError(f"fading decay_taps={self.decay_taps} must be finite and > 0")
        if not (self.rician_k >= 0.0 and math.isfinite(self.rician_k)):
            raise ChannelError(f"fading rician_k={self.rician_k} must be finite and >= 0")
        if not 0.0 <= self.correlation <= 1.0:
            raise ChannelError(f"fading correlation={self.correlation} must be 0..1")


@dataclass(frozen=True)
class ChannelState:
    """What one round's transmission meets.

    Attributes:
        gains: [num_devices, num_subcarriers] complex coefficients h, path loss included.
        known_gains: same shape; what devices and server believe h to be.
        noise_power: sigma^2 of the complex noise of one channel use, >= 0.
        mean_gains: [num_devices] E|h|^2 of each device over rounds, > 0.
        csi_error: eps of ``estimate_gains``, 0 (known gains are true) to 1.
        law: of |known gain|^2 / mean gain over rounds, the same for all devices.
    """

    gains: Complex
    known_gains: Complex
    noise_power: float
    mean_gains: NDArray[np.float64]
    csi_error: float = 0.0
    law: GainLaw = RAYLEIGH

    def __post_init__(self) -> None:
        """Raises ChannelError if shapes disagree or a value is not finite."""
        if self.gains.ndim != 2 or self.gains.shape != self.known_gains.shape:
            raise ChannelError(
                f"gains {self.gains.shape} and known_gains {self.known_gains.shape} must be equal "
                "and [num_devices, num_subcarriers]"
            )
        if self.mean_gains.shape != self.gains.shape[:1]:
            raise ChannelError(f"mean_gains {self.mean_gains.shape} must be [num_devices]")
        if not (np.isfinite(self.gains).all() and np.isfinite(self.known_gains).all()):
            raise ChannelError("gains and known_gains must be finite")
        if not ((self.mean_gains > 0.0).all() and np.isfinite(self.mean_gains).all()):
            raise ChannelError("mean_gains must be finite and > 0")
        if not (self.noise_power >= 0.0 and math.isfinite(self.noise_power)):
            raise ChannelError(f"noise_power={self.noise_power} must be finite and >= 0")
        if not 0.0 <= self.csi_error <= 1.0:
            raise ChannelError(f"csi_error={self.csi_error} must be 0..1")

    def of(self, devices: NDArray[np.bool_]) -> "ChannelState":
        """Returns the channel of the devices where a [num_devices] mask is True."""
        return replace(
            self,
            gains=self.gains[devices],
            known_gains=self.known_gains[devices],
            mean_gains=self.mean_gains[devices],
        )


def complex_normal(
    rng: np.random.Generator, shape: tuple[int, ...], variance: float = 1.0
) -> Complex:
    """Draws CN(0, variance): each real dimension has half of ``variance``."""
    parts = rng.standard_normal((*shape, 2))
    parts *= math.sqrt(variance / 2.0)
    drawn: Complex = parts.view(np.complex128)[..., 0]
    return drawn


def draw_gains(fading: Fading, seed: int, round: int, devices: Iterable[int]) -> Complex:
    """Draws [num_devices, num_subcarriers] coefficients of single-antenna devices and server."""
    return np.stack([draw_mimo_gains(fading, seed, round, k, 1, 1)[:, 0, 0] for k in devices])


def draw_antenna_gains(
    fading: Fading, seed: int, round: int, devices: Iterable[int], num_antennas: int
) -> Complex:
    """Draws [num_devices, num_subcarriers, num_antennas] towards a server with many antennas."""
    return np.stack(
        [draw_mimo_gains(fading, seed, round, k, num_antennas, 1)[:, :, 0] for k in devices]
    )


def draw_mimo_gains(
    fading: Fading, seed: int, round: int, device: int, num_rx: int, num_tx: int
) -> Complex:
    """Draws one device's channel matrices of one round.

    Args:
        fading: the model.
        seed: the run's seed.
        round: server round, >= 0. A Gauss-Markov channel is recomputed from round 0, which takes
            time proportional to ``round`` and keeps no state.
        device: partition index, >= 0.
        num_rx: receive antennas.
        num_tx: transmit antennas.

    Returns:
        [num_subcarriers, num_rx, num_tx] coefficients with E|h|^2 = 1.
    """
    num_sub = fading.num_subcarriers
    shape = (num_sub if fading.num_taps is None else fading.num_taps, num_rx, num_tx)
    if fading.kind in ("ideal", "awgn"):
        return np.ones((num_sub, num_rx, num_tx), dtype=np.complex128)
    rho = fading.correlation
    first = 0 if rho > 0.0 else round
    scatter = complex_normal(generator(seed, "fading", first, device), shape)
    for number in range(first + 1, round + 1):
        fresh = complex_normal(generator(seed, "fading", number, device), shape)
        scatter = rho * scatter + math.sqrt(1.0 - rho * rho) * fresh
    if fading.num_taps is not None:
        profile = np.exp(-np.arange(fading.num_taps) / fading.decay_taps)
        scatter = scatter * np.sqrt(profile / profile.sum())[:, None, None]
        scatter = np.fft.fft(scatter, n=num_sub, axis=0)
    if fading.kind == "rayleigh":
        return scatter
    # Half-wavelength linear arrays; a device does not move, so angles and phase never change.
    phase, towards, away = generator(seed, "line-of-sight", device).uniform(-np.pi, np.pi, 3)
    at_rx = np.exp(1j * np.pi * np.sin(towards) * np.arange(num_rx))
    at_tx = np.exp(1j * np.pi * np.sin(away) * np.arange(num_tx))
    sight = np.exp(1j * phase) * np.outer(at_rx, at_tx)
    share = fading.rician_k / (1.0 + fading.rician_k)
    mixed: Complex = math.sqrt(share) * sight + math.sqrt(1.0 - share) * scatter
    return mixed


def estimate_gains(
    gains: Complex, csi_error: float, seed: int, round: int, devices: Iterable[int] | None = None
) -> Complex:
    """Returns CSI: sqrt(1 - eps^2) h + eps CN(0, 1), device by device.

    Args:
        gains: [num_devices, ...] small-scale coefficients, unit mean power.
        csi_error: eps, 0 (perfect) to 1 (worthless).
        seed: the run's seed.
        round: server round.
        devices: partition indices of the rows; None for 0, 1, 2...

    Raises:
        ChannelError: ``csi_error`` is out of range.
    """
    if not 0.0 <= csi_error <= 1.0:
        raise ChannelError(f"csi_error={csi_error} must be 0..1")
    if csi_error == 0.0:
        return gains.copy()
    errors = np.stack(
        [
            complex_normal(generator(seed, "csi", round, k), gains.shape[1:])
            for k in (range(len(gains)) if devices is None else devices)
        ]
    )
    known: Complex = math.sqrt(1.0 - csi_error**2) * gains + csi_error * errors
    return known


def known_law(fading: Fading, csi_error: float) -> RicianLaw:
    """Returns the law of the estimates that ``estimate_gains`` makes: errors add to the scatter."""
    sight = {"ideal": 1.0, "awgn": 1.0, "rayleigh": 0.0}.get(
        fading.kind, fading.rician_k / (1.0 + fading.rician_k)
    )
    certain = 1.0 - csi_error**2
    scatter = certain * (1.0 - sight) + csi_error**2
    return RicianLaw(certain * sight / scatter if scatter > 0.0 else math.inf)


def jitter_phase(
    gains: Complex, jitter_rad: float, seed: int, round: int, devices: Iterable[int] | None = None
) -> Complex:
    """Turns each device's coefficients by one angle N(0, jitter_rad^2): imperfect synchronisation.

    Arguments as for ``estimate_gains``.

    Raises:
        ChannelError: ``jitter_rad`` is negative or not finite.
    """
    if not (jitter_rad >= 0.0 and math.isfinite(jitter_rad)):
        raise ChannelError(f"jitter_rad={jitter_rad} must be finite and >= 0")
    angles = [
        jitter_rad * generator(seed, "phase", round, k).standard_normal()
        for k in (range(len(gains)) if devices is None else devices)
    ]
    turned: Complex = gains * np.exp(1j * np.array(angles)).reshape(-1, *[1] * (gains.ndim - 1))
    return turned


def draw_state(
    fading: Fading,
    seed: int,
    round: int,
    *,
    mean_gains: NDArray[np.float64],
    noise_power: float,
    csi_error: float = 0.0,
    jitter_rad: float = 0.0,
    devices: Sequence[int] | None = None,
) -> ChannelState:
    """Draws one round's channel: fading, path loss, CSI and the phase error after estimation.

    Args:
        fading: the model; for kind "ideal" ``noise_power`` is ignored and becomes 0.
        seed: the run's seed.
        round: server round, >= 0.
        mean_gains: [num_devices] large-scale power gains, > 0 (ones without a cell).
        noise_power: sigma^2 of the complex noise of one channel use, >= 0.
        csi_error: see ``estimate_gains``.
        jitter_rad: see ``jitter_phase``; nobody knows this angle.
        devices: partition indices of the devices; None for 0, 1, 2...

    Raises:
        ChannelError: a value is out of range.
    """
    chosen = range(len(mean_gains)) if devices is None else devices
    small = draw_gains(fading, seed, round, chosen)
    scale = np.sqrt(mean_gains)[:, None]
    return ChannelState(
        gains=scale * jitter_phase(small, jitter_rad, seed, round, chosen),
        known_gains=scale * estimate_gains(small, csi_error, seed, round, chosen),
        noise_power=0.0 if fading.kind == "ideal" else noise_power,
        mean_gains=mean_gains,
        csi_error=csi_error,
        law=known_law(fading, csi_error),
    )
