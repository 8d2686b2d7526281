"""Options of the link between devices and server."""

from dataclasses import dataclass, field
from math import inf

from typing_extensions import override

from fl_app.schema.checks import one_of, require


@dataclass
class ChannelConfig:
    """The link between devices and server."""


@dataclass
class IdealChannel(ChannelConfig):
    """Error-free digital link; only bytes count."""


@dataclass
class CellConfig:
    """Where devices stand, for channel.placement=cell: macro-cell path loss and shadowing."""

    radius_m: float = 500.0
    min_distance_m: float = 35.0
    shadowing_db: float = 8.0
    noise_figure_db: float = 5.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        radius = self.radius_m
        require("channel.cell.radius_m", radius, 0 < radius < inf, "must be > 0 and finite")
        nearest = self.min_distance_m
        inside = 0 < nearest < radius
        require(
            "channel.cell.min_distance_m",
            nearest,
            inside,
            "must be > 0 and below channel.cell.radius_m",
        )
        for key in ("shadowing_db", "noise_figure_db"):
            value = getattr(self, key)
            require(f"channel.cell.{key}", value, 0 <= value < inf, "must be >= 0 and finite")


@dataclass
class RadioChannel(ChannelConfig):
    """What aggregation in the air and its digital baseline share: one fading uplink."""

    fading: str = "rayleigh"
    """awgn (no fading), rayleigh or rician, with E|h|^2 = 1."""
    tx_snr_db: float = 20.0
    """Transmit power over noise power of one channel use, before any fading; inf: no noise. Used
    with placement=equal; in a cell, power, distance and thermal noise decide."""
    num_subcarriers: int = 64
    num_taps: int | None = None
    """Taps of the delay profile, 1 (flat) to num_subcarriers; null: subcarriers fade apart."""
    rician_k: float = 3.0
    """Power of the line of sight over that of the scatter, linear, for fading=rician."""
    correlation: float = 0.0
    """Gauss-Markov correlation between rounds, 0 (block fading) to 1 (static)."""
    csi_error: float = 0.0
    """eps of the channel knowledge sqrt(1 - eps^2) h + eps CN(0, 1), 0 (perfect) to 1."""
    phase_jitter_rad: float = 0.0
    """Standard deviation of a device's unknown phase error in a round."""
    tx_power_dbm: float = 23.0
    """Mean power limit of a device."""
    bandwidth_hz: float = 1e6
    """Complex channel uses a second, over all subcarriers."""
    power: str = "whole"
    """Where a device puts its power when it sends bits in its share of the band: whole (all of it
    in the share: the energy per second that it spends in the air) or density (the power density of
    a device that fills the band)."""
    max_bits_per_use: float = 16.0
    """Cap on the Shannon rate of bits sent, on every subcarrier; 16 only counts beyond 48 dB."""
    outage: float = 0.01
    """Share of packets of bits that may be lost because csi_error promised too much; devices keep
    their rate below what their estimate says, just as far as that takes."""
    placement: str = "equal"
    """equal (mean gain 1 for everybody) or cell."""
    cell: CellConfig = field(default_factory=CellConfig)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        one_of("channel.fading", self.fading, ("awgn", "rayleigh", "rician"))
        one_of("channel.placement", self.placement, ("equal", "cell"))
        snr = self.tx_snr_db
        require("channel.tx_snr_db", snr, -200 < snr <= inf, "must be above -200 dB, inf allowed")
        total, taps = self.num_subcarriers, self.num_taps
        require("channel.num_subcarriers", total, total >= 1, "must be >= 1")
        fits = taps is None or 1 <= taps <= total
        require("channel.num_taps", taps, fits, f"must be 1 to num_subcarriers={total}, or null")
        factor = self.rician_k
        require("channel.rician_k", factor, 0 <= factor < inf, "must be >= 0 and finite")
        for key in ("correlation", "csi_error"):
            value = getattr(self, key)
            require(f"channel.{key}", value, 0 <= value <= 1, "must be in [0, 1]")
        jitter, power = self.phase_jitter_rad, self.tx_power_dbm
        require("channel.phase_jitter_rad", jitter, 0 <= jitter < inf, "must be >= 0 and finite")
        require("channel.tx_power_dbm", power, -inf < power < inf, "must be finite")
        band = self.bandwidth_hz
        require("channel.bandwidth_hz", band, 0 < band < inf, "must be > 0 and finite")
        one_of("channel.power", self.power, ("whole", "density"))
        most, lost = self.max_bits_per_use, self.outage
        require("channel.max_bits_per_use", most, 0 < most < inf, "must be > 0 and finite")
        require("channel.outage", lost, 0 < lost < 1, "must lie between 0 and 1")


@dataclass
class AircompChannel(RadioChannel):
    """Over-the-air computation: the channel adds the updates up."""

    scheme: str = "zf"
    """Power control: zf (channel inversion), truncated (per subcarrier), optimal (threshold policy
    of least error), cotaf, phase (phase only, full power), or obda (one bit, majority vote)."""
    gain_floor: float = 0.1
    """Devices below this times their mean gain (behind the receive beam if there is one) keep
    silent (truncated, cotaf, obda), > 0."""
    budget: str = "long_term"
    """What the power limit of truncated and obda is about: long_term (the mean over the law of the
    fading) or per_use (every channel use)."""
    num_antennas: int = 1
    """Receive antennas; above 1 a receive beam per subcarrier comes before power control."""
    peak_to_mean_db: float = inf
    """Limit on a symbol's power above tx_power_dbm, in dB; louder symbols are clipped."""
    vote_step: float | None = None
    """Size of a step by majority vote (obda); null: the mean size of the updates' entries, tensor
    by tensor, sent digitally."""

    @override
    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        schemes = ("zf", "truncated", "optimal", "cotaf", "phase", "obda")
        one_of("channel.scheme", self.scheme, schemes)
        floor, peak, step = self.gain_floor, self.peak_to_mean_db, self.vote_step
        require("channel.gain_floor", floor, 0 < floor < inf, "must be > 0 and finite")
        one_of("channel.budget", self.budget, ("long_term", "per_use"))
        antennas = self.num_antennas
        require("channel.num_antennas", antennas, antennas >= 1, "must be >= 1")
        require("channel.peak_to_mean_db", peak, peak >= 0, "must be >= 0 dB, inf allowed")
        fits = step is None or 0 < step < inf
        require("channel.vote_step", step, fits, "must be > 0 and finite, or null")


@dataclass
class DigitalChannel(RadioChannel):
    """The honest rival: OFDMA, each device alone on its share, at its Shannon rate."""

    bits: int | None = 8
    """Bits per real, each tensor apart: stochastic rounding, or at 1 the side of the mean with the
    mean of each side. null, with max_uses_per_real: those of least predicted error every round."""
    target_bits_per_use: float | None = None
    """Spectral efficiency everybody codes for, below it is outage; null: what known gains allow."""
    gain_floor: float = 0.0
    """Devices whose mean gain falls below this times its long-term value keep silent."""
    max_uses_per_real: float | None = None
    """Channel uses of all devices together per real of the update, side information apart (AirComp
    spends 0.5); what does not fit is not sent. null: no limit."""

    @override
    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        bits, is_short = self.bits, self.max_uses_per_real is not None
        fits = is_short if bits is None else 1 <= bits <= 24
        require("channel.bits", bits, fits, "must be 1 to 24; or null with max_uses_per_real")
        for key in ("target_bits_per_use", "max_uses_per_real"):
            value = getattr(self, key)
            fits = value is None or 0 < value < inf
            require(f"channel.{key}", value, fits, "must be > 0 and finite, or null")
        floor = self.gain_floor
        require("channel.gain_floor", floor, 0 <= floor < inf, "must be >= 0 and finite")
