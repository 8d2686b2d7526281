"""Rates of radio links and the band that a rate takes (Shannon).

With snr_hz = p g / N0, the receive SNR of a band of one hertz, a share of B hertz carries

    R(B) = B log2(1 + snr_hz / B)   bit/s,

concave and rising in B towards snr_hz / ln 2. All power is put into the share, so a narrow share
has a high SNR. Coding is ideal, fading is averaged out.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import lambertw

from fl_app.resources.errors import ResourceError
from fl_app.wireless.cell import THERMAL_NOISE_DBM_HZ
from fl_app.wireless.units import db_to_linear, dbm_to_watt

Floats = NDArray[np.float64]

_CLOSE_TO_LIMIT = 0.01
_NEWTON_STEPS = 4


def snr_hz(tx_power_w: ArrayLike, gain: ArrayLike, noise_figure_db: float = 5.0) -> Floats:
    """Returns p g / N0 in Hz.

    Args:
        tx_power_w: transmit power in W, >= 0.
        gain: linear power gain of the path, >= 0.
        noise_figure_db: of the receiver, >= 0.
    """
    noise_w_hz = dbm_to_watt(THERMAL_NOISE_DBM_HZ + noise_figure_db)
    product = np.asarray(tx_power_w, dtype=np.float64) * np.asarray(gain, dtype=np.float64)
    return np.asarray(product / noise_w_hz)


def rate_bps(bandwidth_hz: ArrayLike, link_snr_hz: ArrayLike) -> Floats:
    """Returns R(B) in bit/s; 0 where the band is 0.

    Args:
        bandwidth_hz: share B in Hz, >= 0; may be infinite.
        link_snr_hz: p g / N0 in Hz, >= 0.
    """
    band = np.asarray(bandwidth_hz, dtype=np.float64)
    snr = np.asarray(link_snr_hz, dtype=np.float64)
    finite = np.where((band > 0.0) & np.isfinite(band), band, 1.0)
    rate = finite * np.log1p(snr / finite) / math.log(2.0)
    rate = np.where(np.isinf(band), snr / math.log(2.0), rate)
    return np.asarray(np.where(band > 0.0, rate, 0.0))


def bandwidth_hz(rate: ArrayLike, link_snr_hz: ArrayLike) -> Floats:
    """Returns the band in Hz that carries a rate, the inverse of ``rate_bps``.

    With a = R ln 2 / snr_hz, y = 1 + snr_hz / B solves ln y = a (y - 1): y = -W(-a e^-a) / a on
    Lambert's lower branch.

    Args:
        rate: bit/s, >= 0.
        link_snr_hz: p g / N0 in Hz, >= 0.

    Returns:
        Broadcast shape; 0 for rate 0, ``inf`` for a rate at or above snr_hz / ln 2.
    """
    rates, snr = np.broadcast_arrays(
        np.asarray(rate, dtype=np.float64), np.asarray(link_snr_hz, dtype=np.float64)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        load = np.where(rates > 0.0, rates * math.log(2.0) / snr, 0.0)
    inner = np.clip(load, 1e-300, 1.0 - _CLOSE_TO_LIMIT)
    ratio = -lambertw(-inner * np.exp(-inner), k=-1).real / inner - 1.0
    # Near the limit the branch is steep: there ln(1 + x) / x = 1 - x / 2 + x^2 / 3 - ..., polished.
    rest = 1.0 - load
    ratio = np.where(rest < _CLOSE_TO_LIMIT, 2.0 * rest + 8.0 / 3.0 * rest**2, ratio)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(_NEWTON_STEPS):
            ratio = ratio - (np.log1p(ratio) - load * ratio) / (1.0 / (1.0 + ratio) - load)
        band = np.where(load >= 1.0, np.inf, snr / ratio)
    return np.asarray(np.where(rates > 0.0, band, 0.0))


def d2d_path_loss_db(distance_m: float) -> float:
    """Returns the loss 148 + 40 log10(d / km) dB between two devices (3GPP TR 36.843).

    Raises:
        ResourceError: a distance that is not above 0.
    """
    if not 0.0 < distance_m < math.inf:
        raise ResourceError(f"distance_m={distance_m} must be finite and > 0")
    return 148.0 + 40.0 * math.log10(distance_m / 1000.0)


@dataclass(frozen=True, kw_only=True)
class Link:
    """One direction of one radio link.

    Attributes:
        bandwidth_hz: share of the band, > 0.
        tx_power_w: power that the sender radiates, > 0.
        loss_db: path loss and shadowing in dB.
        noise_figure_db: of the receiver, >= 0.
    """

    bandwidth_hz: float
    tx_power_w: float
    loss_db: float
    noise_figure_db: float = 5.0

    def __post_init__(self) -> None:
        """Raises ResourceError on a value out of range."""
        for name in ("bandwidth_hz", "tx_power_w"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ResourceError(f"{name}={getattr(self, name)} must be finite and > 0")
        if not math.isfinite(self.loss_db) or not 0.0 <= self.noise_figure_db < math.inf:
            raise ResourceError(
                f"loss_db={self.loss_db} must be finite and noise_figure_db="
                f"{self.noise_figure_db} finite and >= 0"
            )

    @property
    def rate_bps(self) -> float:
        """Rate in bit/s."""
        snr = snr_hz(self.tx_power_w, db_to_linear(-self.loss_db), self.noise_figure_db)
        return float(rate_bps(self.bandwidth_hz, snr))

    def seconds(self, num_bytes: float) -> float:
        """Returns the airtime in s of a payload."""
        return 8.0 * num_bytes / self.rate_bps

    def joules(self, num_bytes: float) -> float:
        """Returns the radiated energy in J of a payload."""
        return self.tx_power_w * self.seconds(num_bytes)
