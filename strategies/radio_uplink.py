"""Uplinks over a fading channel: sums in the air, votes in the air, and digital OFDMA.

Each turns one round's updates into one weighted mean, with what it cost and how far it is off.
Adapters are small, so a whole round is simulated at once; ``fl_app.wireless`` works in chunks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.scheduling.uplinks import Faded
from fl_app.wireless.aggregate import aggregate
from fl_app.wireless.channel import ChannelState
from fl_app.wireless.codes import SIDE_BITS
from fl_app.wireless.control import control_cost
from fl_app.wireless.digital import Ofdma, aggregate_digitally
from fl_app.wireless.digital_held import aggregate_held
from fl_app.wireless.obda import majority_vote
from fl_app.wireless.ofdma import Band
from fl_app.wireless.power import PowerControl
from fl_app.wireless.radio import Radio
from fl_app.wireless.report import AirReport, airtime, safe_ratio
from fl_app.wireless.units import linear_to_db
from fl_app.wireless.votes import VoteReport
from strategies.uplink import Airtime, Received, Sent

_SCALE_BYTES = 4
"""A device's mean entry size of one tensor, as a float32 number."""


class AircompUplink:
    """The channel adds the updates (see ``fl_app.wireless.aggregate``), tensor by tensor.

    Args:
        radio: the channel.
        control: the rule of power control.
        band: the band, and how side information is sent in it.
        peak_power: limit on the power of a single symbol in W; ``inf`` for none.
    """

    is_radio = True

    def __init__(
        self, *, radio: Radio, control: PowerControl, band: Band, peak_power: float
    ) -> None:
        self._radio, self._control = radio, control
        self._band, self._peak_power = band, peak_power

    def receive(self, sent: Sent, rng: np.random.Generator) -> Received:
        """Returns the mean as the server hears it; no row if nobody was heard."""
        state = self._radio.state(sent.round, sent.devices, sent.weights)
        mean, report = aggregate(
            sent.updates,
            sent.weights,
            state,
            self._control,
            rng,
            power=self._radio.power,
            peak_power=self._peak_power,
            blocks=sent.sizes,
            presence=sent.presence,
        )
        side_bytes = _side_bytes(sent, report) + sent.beside
        cost = _air_cost(report, state, self._radio.power, self._band, side_bytes)
        return _received(mean, sent, ~report.is_silent, _errors(report), cost)

    def carry(
        self, server_round: int, devices: Sequence[int], num_bytes: Sequence[int]
    ) -> Airtime | None:
        """See ``Uplink``."""
        return _side_cost(self._radio, self._band, server_round, devices, num_bytes)


class VoteUplink:
    """Devices send signs, the majority decides (see ``fl_app.wireless.obda``).

    A vote has no size. It is given ``step``, or, tensor by tensor, the weighted mean over devices
    of their entries' mean size, which they send digitally.

    Args:
        radio: the channel.
        control: the rule that aligns votes.
        band: the band, and how side information is sent in it.
        step: size of an entry, > 0; None for the updates' own.
    """

    is_radio = True

    def __init__(
        self, *, radio: Radio, control: PowerControl, band: Band, step: float | None
    ) -> None:
        self._radio, self._control = radio, control
        self._band, self._step = band, step

    def receive(self, sent: Sent, rng: np.random.Generator) -> Received:
        """Returns the scaled votes; no row if nobody was heard."""
        state = self._radio.state(sent.round, sent.devices, sent.weights)
        votes, report = majority_vote(
            sent.updates,
            state,
            self._control,
            rng,
            power=self._radio.power,
        )
        own = 0 if self._step is not None else _SCALE_BYTES * len(sent.sizes)
        side_bytes = own + sent.beside
        cost = _air_cost(report, state, self._radio.power, self._band, side_bytes)
        figures = {
            "vote_error_rate": report.realised_error_rate,
            "vote_error_rate_predicted": report.predicted_error_rate,
            "vote_error_rate_deviation": report.predicted_deviation,
        }
        row = None if votes is None else votes * self._sizes(sent)
        exact = sent.weights @ sent.updates / sent.weights.sum()
        off = exact if row is None else row - exact
        figures["nmse"] = safe_ratio(float(off @ off), float(exact @ exact))
        return _received(row, sent, ~report.is_silent, figures, cost)

    def carry(
        self, server_round: int, devices: Sequence[int], num_bytes: Sequence[int]
    ) -> Airtime | None:
        """See ``Uplink``."""
        return _side_cost(self._radio, self._band, server_round, devices, num_bytes)

    def _sizes(self, sent: Sent) -> NDArray[np.float64]:
        """Returns [num_params] the size of every entry's step."""
        if self._step is not None:
            return np.full(sent.updates.shape[1], self._step)
        starts = np.cumsum([0, *sent.sizes[:-1]])
        per_tensor = np.add.reduceat(np.abs(sent.updates, dtype=np.float64), starts, axis=1)
        means = (sent.weights / sent.weights.sum()) @ per_tensor / np.array(sent.sizes)
        return np.repeat(means, sent.sizes)


class DigitalUplink:
    """Every device alone on its share of the band (see ``fl_app.wireless.digital``).

    Args:
        radio: the channel.
        setup: bits, bandwidth and rate.
    """

    is_radio = True

    def __init__(self, *, radio: Radio, setup: Ofdma) -> None:
        self._radio, self._setup = radio, setup

    def links(self, server_round: int, devices: Sequence[int]) -> tuple[Faded, float]:
        """Returns [num_devices] uplinks of a round, and the whole band in Hz."""
        state = self._radio.state(server_round, devices, np.ones(len(devices)))
        target = self._setup.target_bits_per_use
        return Faded(state, self._radio.power, self._setup, target), self._setup.bandwidth_hz

    def payload_bits(self, tuned: Mapping[str, NDArray[np.float32]]) -> int:
        """Returns the bits of an update that holds these parameters, side information included."""
        bits = self._setup.bits or 24
        return bits * sum(array.size for array in tuned.values()) + SIDE_BITS * len(tuned)

    def receive(self, sent: Sent, rng: np.random.Generator) -> Received:
        """Returns the mean of what arrived; no row if everybody was in outage."""
        state = self._radio.state(sent.round, sent.devices, sent.weights)
        place: dict[str, Any] = {"power": self._radio.power, "blocks": sent.sizes}
        place["more_bits"] = 8 * sent.beside
        args = sent.updates, sent.weights, state, self._setup, rng
        if sent.presence is None:
            mean, report = aggregate_digitally(*args, **place)
        else:
            given = sent.bandwidths_hz
            shares = None if given is None else given / self._setup.bandwidth_hz
            mean, report = aggregate_held(
                *args, **place, presence=sent.presence, band_shares=shares
            )
        cost = Airtime(
            channel_uses=report.channel_uses + report.control_uses,
            control_uses=report.control_uses,
            seconds=report.seconds,
            joules=report.joules,
            payload_bytes=report.payload_bytes,
            control_bytes=report.control_bytes,
        )
        figures = {
            "bits": float(report.bits),
            "sent_share": report.sent_reals / sent.updates.shape[1],
            "nmse": report.realised_nmse,
            "nmse_predicted": report.predicted_nmse,
            "nmse_expected": safe_ratio(report.expected_mse, report.mean_energy),
        }
        return _received(mean, sent, ~report.is_silent, figures, cost)

    def carry(
        self, server_round: int, devices: Sequence[int], num_bytes: Sequence[int]
    ) -> Airtime | None:
        """See ``Uplink``."""
        return _side_cost(self._radio, self._setup, server_round, devices, num_bytes)


def _air_cost(
    report: AirReport | VoteReport,
    state: ChannelState,
    power: float,
    band: Band,
    side_bytes: NDArray[np.int64],
) -> Airtime:
    """Returns the cost of one superposition; each device sends its ``side_bytes`` before it.

    A device that is silent throughout sends nothing: its numbers would not be used.
    """
    seconds, joules = airtime(report.channel_uses, report.tx_power, band.bandwidth_hz)
    control_bytes = np.where(report.is_silent, 0, side_bytes)
    control = control_cost(state, control_bytes, power, band)
    control_uses = int(control.uses.sum())
    return Airtime(
        channel_uses=report.channel_uses + control_uses,
        control_uses=control_uses,
        seconds=seconds + control.seconds,
        joules=joules + control.joules,
        payload_bytes=np.zeros(len(joules), np.int64),
        control_bytes=control_bytes,
        announced_bytes=report.announced_bytes,
    )


def _side_cost(
    radio: Radio, band: Band, server_round: int, devices: Sequence[int], num_bytes: Sequence[int]
) -> Airtime:
    """Returns the cost of side information that goes alone, as ``_air_cost`` has that beside."""
    sizes = np.array(num_bytes, np.int64)
    state = radio.state(server_round, devices, np.ones(len(devices)))
    cost = control_cost(state, sizes, radio.power, band)
    uses = int(cost.uses.sum())
    return Airtime(
        channel_uses=uses,
        control_uses=uses,
        seconds=cost.seconds,
        joules=cost.joules,
        payload_bytes=np.zeros(len(devices), np.int64),
        control_bytes=sizes,
    )


def _side_bytes(sent: Sent, report: AirReport) -> NDArray[np.int64]:
    """Returns [num_devices] bytes of side information: of every tensor that a device holds."""
    num_devices, num_tensors = len(sent.updates), len(sent.sizes)
    per_tensor = report.control_bytes // (num_devices * num_tensors)
    if sent.presence is None:
        return np.full(num_devices, per_tensor * num_tensors)
    starts = np.cumsum([0, *sent.sizes[:-1]])
    held = np.logical_or.reduceat(sent.presence, starts, axis=1)
    return np.asarray(per_tensor * held.sum(axis=1))


def _errors(report: AirReport) -> dict[str, float]:
    """Returns the errors of a sum, relative to the energy of the exact mean."""
    energy = report.mean_energy
    return {
        "nmse": report.realised_nmse,
        "nmse_predicted": report.predicted_nmse,
        "nmse_expected": safe_ratio(report.expected_mse, energy),
        "nmse_deviation": safe_ratio(report.expected_mse_deviation, energy),
        "nmse_clipping": safe_ratio(report.clipping_mse, energy),
        "aligned_snr_db": linear_to_db(report.aligned_snr),
    }


def _received(
    row: NDArray[Any] | None,
    sent: Sent,
    is_heard: NDArray[np.bool_],
    figures: dict[str, float],
    cost: Airtime,
) -> Received:
    """Wraps one mean, or none."""
    num_rows = 0 if row is None else 1
    rows = np.zeros((0, sent.updates.shape[1])) if row is None else row[None]
    costs = {
        "channel_uses": float(cost.channel_uses),
        "control_uses": float(cost.control_uses),
        "radio_seconds": cost.seconds,
        "radio_joules": float(cost.joules.sum()),
    }
    return Received(
        rows=rows.astype(np.float32),
        weights=np.full(num_rows, sent.weights.sum()),
        is_heard=is_heard & bool(num_rows),
        report={**figures, **costs},
        airtime=cost,
    )
