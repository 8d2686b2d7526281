"""Power control: how loud each device speaks so that the channel's sum is the wanted sum.

Device k holds unit-power symbols and shall enter the sum with target amplitude a_k >= 0 (weight
times standard deviation of its update). It sends b_k c_k; the server divides the sum by sqrt(eta),
eta the denoising factor. Per real entry of the sum the error is

    MSE = sum_k |h_k b_k / sqrt(eta) - a_k|^2 + sigma^2 / eta

for uncorrelated symbols. Every rule here decides from *known* gains; subcarriers are independent.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.channel import ChannelState, Complex
from fl_app.wireless.errors import ChannelError

Floats = NDArray[np.float64]

_DEAD_GAIN = 1e-150
"""Below this |h|^2 an inversion overflows; such a device cannot be heard by any rule."""


@dataclass(frozen=True)
class PowerPlan:
    """What is announced before a transmission.

    Attributes:
        precoders: [num_devices, num_subcarriers] complex b; |b|^2 is the mean transmit power.
        denoising: [num_subcarriers] eta; ``inf`` where nobody has anything to send.
        is_heard: [num_devices, num_subcarriers] bool; False for a silent device. A device whose
            target is 0 sends nothing and yet is heard: its mean arrives digitally.
        sum_mse: [num_subcarriers] closed-form MSE per real entry of the sum over heard devices, if
            the known gains are true. What silence does to the mean is not in it.
        num_announced: numbers that the server must tell the devices: distinct denoising factors.
        heard_share: None if the server knows who is silent and divides by the weights heard; else
            the share of the weights that it expects to hear.
    """

    precoders: Complex
    denoising: Floats
    is_heard: NDArray[np.bool_]
    sum_mse: Floats
    num_announced: int
    heard_share: float | None = None


class PowerControl(Protocol):
    """One rule of power control."""

    @property
    def removes_mean(self) -> bool:
        """Tells whether updates are centred before sending, their means travelling digitally."""
        ...

    def plan(self, state: ChannelState, targets: Floats, power: Floats) -> PowerPlan:
        """Plans one transmission.

        Args:
            state: only known gains, noise power and mean gains are looked at.
            targets: [num_devices] amplitudes a_k, >= 0.
            power: [num_devices] limits P_k on the mean power of a channel use, > 0.
        """
        ...


@dataclass(frozen=True)
class ZeroForcing:
    """Channel inversion: everybody is aligned exactly, the weakest device sets eta.

    eta = min_k P_k |h_k|^2 / a_k^2 and MSE = sigma^2 / eta, on every subcarrier. Devices whose gain
    is 0 to machine precision are silent.
    """

    removes_mean: bool = True

    def plan(self, state: ChannelState, targets: Floats, power: Floats) -> PowerPlan:
        """See ``PowerControl.plan``."""
        floor = np.full(len(targets), _DEAD_GAIN)
        heard = _is_heard(state, targets, floor)
        return _invert(state, targets, heard, _weakest(state, targets, heard, power))


@dataclass(frozen=True)
class TruncatedInversion:
    """Truncated channel inversion (Zhu, Wang, Huang 2020, arXiv:1812.11494), per subcarrier.

    Silent wherever |h|^2 < ``gain_floor`` times the device's mean gain. With the "long_term" budget
    eta = min_k P_k gbar_k / (a_k^2 E[1/g; g >= g_th]), g the gain over its mean, which keeps every
    device's power at or below P_k on average over the channel's law but not in every round; for
    Rayleigh fading the expectation is E1(g_th). With "per_use" the weakest heard device sets eta
    and no use exceeds P_k.

    Attributes:
        gain_floor: g_th, linear, > 0: E1 diverges at 0.
        budget: over what the power is averaged.
        knows_silence: the server divides by the weights it heard. If False it counts everybody's
            mean and divides the received sum by the share that the channel's law lets through,
            exp(-g_th) for Rayleigh fading: unbiased over rounds, but with more variance.
        removes_mean: see ``PowerControl``.
    """

    gain_floor: float = 0.1
    budget: Literal["long_term", "per_use"] = "long_term"
    knows_silence: bool = True
    removes_mean: bool = True

    def __post_init__(self) -> None:
        """Raises ChannelError on a value out of range."""
        _check_floor(self.gain_floor)
        if self.budget not in ("long_term", "per_use"):
            raise ChannelError(f"budget={self.budget!r}; choose long_term or per_use")

    def plan(self, state: ChannelState, targets: Floats, power: Floats) -> PowerPlan:
        """See ``PowerControl.plan``."""
        heard = _is_heard(state, targets, self.gain_floor * state.mean_gains)
        share = None if self.knows_silence else state.law.heard_share(self.gain_floor)
        if share == 0.0:
            raise ChannelError(f"gain_floor={self.gain_floor} is above every gain; lower it")
        if self.budget == "per_use":
            return _invert(state, targets, heard, _weakest(state, targets, heard, power), share)
        inverse = state.law.mean_inverse_above(self.gain_floor)
        limit = _ratio(power * state.mean_gains, targets) / inverse if inverse else np.inf
        eta = np.full(heard.shape[1], np.min(limit))
        return _invert(state, targets, heard, eta, share)


@dataclass(frozen=True)
class CotafScaling:
    """COTAF (Sery, Shlezinger, Cohen, Eldar 2021, arXiv:2009.12787) with fading.

    Updates are sent as they are, means included, all with one scale that follows the largest
    update: sqrt(eta) = min_k sqrt(P_k g_min) / a_k, g_min the gain floor. As updates shrink over
    the rounds, so does the noise. Devices below the floor are silent; power stays within P_k.

    Attributes:
        gain_floor: g_min relative to a device's mean gain, > 0.
    """

    gain_floor: float = 0.1

    def __post_init__(self) -> None:
        """Raises ChannelError on a value out of range."""
        _check_floor(self.gain_floor)

    @property
    def removes_mean(self) -> bool:
        """COTAF's means travel in the air."""
        return False

    def plan(self, state: ChannelState, targets: Floats, power: Floats) -> PowerPlan:
        """See ``PowerControl.plan``."""
        floor = self.gain_floor * state.mean_gains
        limit = _ratio(power * floor, targets)
        eta = np.full(state.known_gains.shape[1], limit.min())
        return _invert(state, targets, _is_heard(state, targets, floor), eta)


@dataclass(frozen=True)
class OptimalThreshold:
    """Least MSE under per-use power limits (Cao, Zhu, Xu, Huang 2020, arXiv:1906.06858).

    With r_k = sqrt(P_k) |h_k|, sort devices by r_k / a_k. Then 1 / sqrt(eta) is the largest of
    sum_{i<=n} a_i r_i / (sigma^2 + sum_{i<=n} r_i^2) over n; devices with r_k < a_k sqrt(eta) send
    at full power, the others invert. (The derivative of the convex MSE in x = 1 / sqrt(eta)
    vanishes at its full-power set and lies above that of any other set.)
    """

    removes_mean: bool = True

    def plan(self, state: ChannelState, targets: Floats, power: Floats) -> PowerPlan:
        """See ``PowerControl.plan``."""
        heard = _is_heard(state, targets, np.full(len(targets), _DEAD_GAIN))
        amplitude = np.abs(state.known_gains)
        speaks = heard & (targets > 0.0)[:, None]
        reach = np.where(speaks, np.sqrt(power)[:, None] * amplitude, 0.0)
        wanted = np.where(speaks, targets[:, None], 0.0)
        order = np.argsort(_ratio(reach**2, wanted), axis=0)
        reach_sorted = np.take_along_axis(reach, order, axis=0)
        wanted_sorted = np.take_along_axis(wanted, order, axis=0)
        energy = state.noise_power + np.cumsum(reach_sorted**2, axis=0)
        product = np.cumsum(wanted_sorted * reach_sorted, axis=0)
        inverse_root = np.divide(
            product, energy, out=np.zeros_like(product), where=energy > 0.0
        ).max(axis=0)
        eta = np.full(inverse_root.shape, np.inf)
        np.divide(1.0, inverse_root**2, out=eta, where=inverse_root > 0.0)
        level = np.zeros_like(reach)
        np.multiply(wanted, np.sqrt(eta), out=level, where=speaks)
        np.minimum(level, reach, out=level)
        return _finish(state, targets, heard, level, eta)


@dataclass(frozen=True)
class PhaseOnly:
    """Everybody turns its phase and sends at full power; only the server scales.

    With r_k = sqrt(P_k) |h_k| the MSE is least at 1 / sqrt(eta) = sum_k a_k r_k / (sigma^2 + sum_k
    r_k^2). Devices need their phase but no amplitude; the mean is biased towards strong channels.
    """

    removes_mean: bool = True

    def plan(self, state: ChannelState, targets: Floats, power: Floats) -> PowerPlan:
        """See ``PowerControl.plan``."""
        heard = _is_heard(state, targets, np.full(len(targets), _DEAD_GAIN))
        speaks = heard & (targets > 0.0)[:, None]
        reach = np.where(speaks, np.sqrt(power)[:, None] * np.abs(state.known_gains), 0.0)
        eta = np.full(reach.shape[1], np.inf)
        energy = state.noise_power + (reach**2).sum(axis=0)
        product = (targets[:, None] * reach).sum(axis=0)
        np.divide(energy, product, out=eta, where=product > 0.0)
        # Devices send at full power whatever the server divides by.
        return replace(_finish(state, targets, heard, reach, eta**2), num_announced=0)


def _check_floor(gain_floor: float) -> None:
    """Refuses a floor at which the average power of an inversion diverges."""
    if not 0.0 < gain_floor < np.inf:
        raise ChannelError(
            f"gain_floor={gain_floor} must be finite and > 0: the mean power of inverting a "
            "Rayleigh channel diverges at 0"
        )


def _is_heard(state: ChannelState, targets: Floats, floor: Floats) -> NDArray[np.bool_]:
    """Returns [num_devices, num_subcarriers]; devices with nothing to send need no gain."""
    gains = np.abs(state.known_gains) ** 2
    heard: NDArray[np.bool_] = gains >= np.maximum(floor, _DEAD_GAIN)[:, None]
    heard |= (targets == 0.0)[:, None]
    return heard


def _ratio(limit: Floats, targets: Floats) -> Floats:
    """Returns limit / targets^2, ``inf`` where the target is 0."""
    out = np.full(np.broadcast_shapes(limit.shape, targets.shape), np.inf)
    np.divide(limit, targets**2, out=out, where=targets > 0.0)
    return out


def _invert(
    state: ChannelState,
    targets: Floats,
    heard: NDArray[np.bool_],
    denoising: Floats,
    heard_share: float | None = None,
) -> PowerPlan:
    """Inverts the channels of heard devices at the given denoising factors."""
    level = np.zeros(heard.shape)
    speaks = heard & (targets > 0.0)[:, None]
    np.multiply(targets[:, None], np.sqrt(denoising), out=level, where=speaks)
    return _finish(state, targets, heard, level, denoising, heard_share)


def _weakest(
    state: ChannelState, targets: Floats, heard: NDArray[np.bool_], power: Floats
) -> Floats:
    """Returns [num_subcarriers] the largest eta that every heard device's power allows."""
    limit = _ratio(power[:, None] * np.abs(state.known_gains) ** 2, targets[:, None])
    eta: Floats = np.where(heard, limit, np.inf).min(axis=0)
    return eta


def _finish(
    state: ChannelState,
    targets: Floats,
    heard: NDArray[np.bool_],
    level: Floats,
    denoising: Floats,
    heard_share: float | None = None,
) -> PowerPlan:
    """Turns the amplitudes ``level`` wanted at the receiver into precoders and their MSE."""
    # A server that knows that nobody speaks does not listen, so no noise is taken in.
    if heard_share is None:
        denoising = np.where((level > 0.0).any(axis=0), denoising, np.inf)
    amplitude = np.abs(state.known_gains)
    phase = np.divide(
        state.known_gains.conj(), amplitude, out=np.zeros_like(state.known_gains), where=level > 0.0
    )
    precoders = phase * np.divide(level, amplitude, out=np.zeros_like(level), where=level > 0.0)
    misaligned = np.where(heard, level / np.sqrt(denoising) - targets[:, None], 0.0)
    return PowerPlan(
        precoders=precoders,
        denoising=denoising,
        is_heard=heard,
        sum_mse=(misaligned**2).sum(axis=0) + state.noise_power / denoising,
        num_announced=len(np.unique(denoising[np.isfinite(denoising)])),
        heard_share=heard_share,
    )
