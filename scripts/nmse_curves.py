"""Realised, expected and predicted error of every power control over channel draws.

See ``scripts.air_nmse``, which draws and prints what is measured here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from fl_app.seeding import generator
from fl_app.wireless.aggregate import aggregate
from fl_app.wireless.channel import (
    ChannelState,
    Fading,
    draw_antenna_gains,
    draw_state,
    estimate_gains,
)
from fl_app.wireless.power import (
    CotafScaling,
    OptimalThreshold,
    PhaseOnly,
    PowerControl,
    TruncatedInversion,
    ZeroForcing,
)
from fl_app.wireless.report import AirReport
from fl_app.wireless.simo import beamformed_state
from fl_app.wireless.units import noise_power_from_tx_snr

TX_SNRS_DB = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, math.inf)
CSI_ERRORS = (0.0, 0.1)
NUM_ANTENNAS = 8
FADING = Fading(num_subcarriers=4)
LIMIT = 5.0
"""Standard errors that a point may lie from its expectation."""

_FEWEST_DRAWS = 30
"""With fewer the spread of realised minus predicted is too badly known to refuse a point."""

ROUNDING = 1e-20
"""An NMSE below this is rounding of double precision."""


@dataclass(frozen=True)
class Scheme:
    """One curve.

    Attributes:
        label: words of the legend.
        control: power control.
        colour: of line and points.
        marker: of the points.
        num_antennas: antennas of the server; more than one are combined by a receive beam.
        mean_diverges: the error has no mean over Rayleigh fading, only a median.
    """

    label: str
    control: PowerControl
    colour: str
    marker: str
    num_antennas: int = 1
    mean_diverges: bool = False


SCHEMES: Mapping[str, Scheme] = {
    "zf": Scheme("zero forcing", ZeroForcing(), "#0068a8", "o", mean_diverges=True),
    "truncated": Scheme("truncated inversion", TruncatedInversion(), "#c25100", "s"),
    "optimal": Scheme("optimal threshold", OptimalThreshold(), "#00795a", "^"),
    "cotaf": Scheme("COTAF scaling", CotafScaling(), "#9c4a80", "D"),
    "phase_only": Scheme("phase only", PhaseOnly(), "#8a6d00", "v"),
    "beam": Scheme(
        f"zero forcing, {NUM_ANTENNAS}-antenna beam", ZeroForcing(), "#22262b", "P", NUM_ANTENNAS
    ),
}


@dataclass(frozen=True)
class Point:
    """One point of one curve; NMSEs are linear, over all draws.

    Attributes:
        tx_snr_db: P / sigma^2 in dB, ``inf`` without noise.
        realised_nmse: what happened.
        expected_nmse: its mean over the noise.
        standard_error: closed-form standard deviation of realised minus expected.
        predicted_nmse: the closed form.
        predicted_standard_error: measured standard deviation of realised minus predicted; 0 for one
            draw.
        median_nmse: of a round.
        silent_share: share of devices and channel uses in which a device was not heard.
    """

    tx_snr_db: float
    realised_nmse: float
    expected_nmse: float
    standard_error: float
    predicted_nmse: float
    predicted_standard_error: float
    median_nmse: float
    silent_share: float

    @property
    def errors_off(self) -> float:
        """Standard errors between realised and expected NMSE."""
        return _errors_off(self.realised_nmse, self.expected_nmse, self.standard_error)

    @property
    def predicted_errors_off(self) -> float:
        """Standard errors between realised and predicted NMSE."""
        return _errors_off(self.realised_nmse, self.predicted_nmse, self.predicted_standard_error)


@dataclass(frozen=True)
class Curve:
    """One scheme in one setting; ``points`` follow ``TX_SNRS_DB``."""

    scheme: str
    num_devices: int
    csi_error: float
    num_draws: int
    points: list[Point]

    @property
    def errors_off(self) -> float:
        """Largest distance of realised from expected, in standard errors."""
        return max(point.errors_off for point in self.points)

    @property
    def predicted_errors_off(self) -> float | None:
        """Largest distance of realised from predicted; None where draws are too few to tell."""
        if self.num_draws < _FEWEST_DRAWS:
            return None
        return max(point.predicted_errors_off for point in self.points)

    @property
    def is_ok(self) -> bool:
        """Tells whether no point is refused."""
        return max(self.errors_off, self.predicted_errors_off or 0.0) <= LIMIT


def draw_updates(
    seed: int, draw: int, num_devices: int, num_params: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draws one round's updates, [num_devices, num_params], and weights, [num_devices].

    Weights (1 to 3) and sizes (0.5 to 2) are the devices' own; only the entries differ by draw.
    """
    rng = generator(seed, "devices", num_devices)
    weights, sizes = rng.uniform(1.0, 3.0, num_devices), rng.uniform(0.5, 2.0, num_devices)
    entries = generator(seed, "updates", draw, num_devices).standard_normal(
        (num_devices, num_params)
    )
    return sizes[:, None] * entries, weights


def draw_channels(
    seed: int, draw: int, csi_error: float, amplitudes: NDArray[np.float64]
) -> dict[int, ChannelState]:
    """Draws one round's channel by number of antennas; the noise power is still 0.

    Args:
        seed: of the run.
        draw: number of the round.
        csi_error: see ``estimate_gains``.
        amplitudes: [num_devices] weight times spread, for which the beam is designed.
    """
    num_devices = len(amplitudes)
    ones = np.ones(num_devices)
    single = draw_state(FADING, seed, draw, mean_gains=ones, noise_power=0.0, csi_error=csi_error)
    gains = draw_antenna_gains(FADING, seed, draw, range(num_devices), NUM_ANTENNAS)
    known = estimate_gains(gains, csi_error, seed, draw)
    beam = beamformed_state(gains, known, amplitudes, noise_power=0.0, mean_gains=ones)
    return {1: single, NUM_ANTENNAS: beam}


def measure(
    num_devices: int,
    csi_error: float,
    *,
    num_draws: int,
    num_params: int,
    seed: int,
    progress: Progress,
) -> list[Curve]:
    """Runs all schemes at all tx-SNRs of one panel and returns one curve per scheme."""
    setting = f"K = {num_devices}, CSI error {csi_error:g}"
    reports: dict[tuple[str, float], list[AirReport]] = {
        (name, tx_snr_db): [] for name in SCHEMES for tx_snr_db in TX_SNRS_DB
    }
    for draw in progress.track(range(num_draws), description=setting):
        updates, weights = draw_updates(seed, draw, num_devices, num_params)
        channels = draw_channels(seed, draw, csi_error, weights * updates.std(axis=1))
        for (name, tx_snr_db), kept in reports.items():
            scheme = SCHEMES[name]
            noise_power = noise_power_from_tx_snr(tx_snr_db)
            state = replace(channels[scheme.num_antennas], noise_power=noise_power)
            rng = generator(seed, "noise", name, setting, f"{tx_snr_db}", draw)
            kept.append(aggregate(updates, weights, state, scheme.control, rng)[1])
    return [
        Curve(
            name,
            num_devices,
            csi_error,
            num_draws,
            [summarise(tx_snr_db, reports[name, tx_snr_db]) for tx_snr_db in TX_SNRS_DB],
        )
        for name in SCHEMES
    ]


def summarise(tx_snr_db: float, reports: Sequence[AirReport]) -> Point:
    """Turns the reports of all draws at one tx-SNR into a point."""
    count = len(reports)
    energy = float(np.mean([report.mean_energy for report in reports]))
    realised = np.array([report.realised_mse for report in reports]) / energy
    predicted = np.array([report.predicted_mse for report in reports]) / energy
    noise = np.array([report.expected_mse_deviation for report in reports]) / energy
    gaps = realised - predicted
    return Point(
        tx_snr_db=tx_snr_db,
        realised_nmse=float(realised.mean()),
        expected_nmse=float(np.mean([report.expected_mse for report in reports])) / energy,
        standard_error=float(np.sqrt(np.sum(noise**2))) / count,
        predicted_nmse=float(predicted.mean()),
        predicted_standard_error=float(gaps.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0,
        median_nmse=float(np.median([report.realised_nmse for report in reports])),
        silent_share=float(np.mean([report.silent_share for report in reports])),
    )


def _errors_off(value: float, wanted: float, standard_error: float) -> float:
    """Returns the distance in standard errors, 0 for one that is rounding."""
    distance = abs(value - wanted)
    if distance <= 1e-9 * wanted + ROUNDING:
        return 0.0
    return distance / standard_error if standard_error > 0.0 else math.inf
