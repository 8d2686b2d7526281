"""The digital baseline: OFDMA with Shannon rates, quantisation tensor by tensor, and outage.

See ``fl_app.wireless.ofdma`` for rates and ``fl_app.wireless.codes`` for bits. Against aggregation
in the air at the same B and receive SNR g of every device in its share, q reals of Q bits take
T_OFDMA / T_Air = 2 K Q / log2(1 + g) as long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fl_app.wireless.channel import ChannelState
from fl_app.wireless.checks import check_devices
from fl_app.wireless.codes import SIDE_BITS, CodeBook, code_book
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.ofdma import (
    Band,
    capacity_bits_per_use,
    matched_shares,
    planned_bits_per_use,
    send_cost,
)
from fl_app.wireless.rationing import PLAN_BITS, best_bits, choose
from fl_app.wireless.report import Relative
from fl_app.wireless.standardise import block_bounds, check_updates

Floats = NDArray[np.float64]

_CHUNK_REALS = 1 << 13
"""Entries quantised together; float64 temporaries of this size stay in the cache."""


@dataclass(frozen=True)
class DigitalReport(Relative):
    """Figures of one digital round; errors are against the mean of all scheduled devices.

    Attributes:
        predicted_mse: closed form: coding errors that are uncorrelated between devices, plus what
            outage and unsent entries take away, which is known only once the round is over.
        expected_mse: the mean over the roundings for the very entries that were sent; equal to the
            realised one for one bit, where nothing is rounded at random.
        realised_mse: what happened.
        mean_energy: mean square of the exact weighted mean.
        is_silent: [num_devices] bool; in outage, left out, or lost.
        rates_bps: [num_devices] rate in bit/s that a device transmits at; 0 if it keeps silent.
        seconds: until the last device is done, side information included; 0 if nobody transmits.
        joules: [num_devices] transmit energy, side information included. A failed packet costs as
            much.
        tx_power: [num_devices] power of the device's own channel uses; 0 if it keeps silent.
        channel_uses: complex symbols spent on entries by all devices together.
        control_uses: the same for side information.
        payload_bytes: [num_devices] bytes of coded entries sent.
        control_bytes: [num_devices] bytes of side information sent.
        bits: bits per real.
        sent_reals: entries sent; the others stay 0.
    """

    predicted_mse: float
    expected_mse: float
    realised_mse: float
    mean_energy: float
    is_silent: NDArray[np.bool_]
    rates_bps: Floats
    seconds: float
    joules: Floats
    tx_power: Floats
    channel_uses: int
    control_uses: int
    payload_bytes: NDArray[np.int64]
    control_bytes: NDArray[np.int64]
    bits: int
    sent_reals: int


@dataclass(frozen=True, kw_only=True)
class Ofdma(Band):
    """How a digital round is set up; see ``Band`` for the options of the band.

    Attributes:
        bits: bits per real, 1 to 24; None for those of least predicted error, where uses are
            limited.
        target_bits_per_use: spectral efficiency that everybody codes for, > 0; a device whose
            channel carries less is in outage. None adapts to the known channel.
        gain_floor: devices with a known mean gain below this times their long-term one keep silent.
        max_uses_per_real: channel uses of all devices together per real of the update, side
            information apart, > 0; None for no limit and equal shares of the band (aggregation in
            the air spends 1/2). Devices then send the first entries, as many as the limit allows,
            of one random order that all share (Konečný et al. 2016, arXiv:1610.05492), in shares of
            the band that make all rates equal (``fl_app.wireless.rationing``).
    """

    bits: int | None = 8
    target_bits_per_use: float | None = None
    gain_floor: float = 0.0
    max_uses_per_real: float | None = None

    @override
    def __post_init__(self) -> None:
        """Raises ChannelError on a value out of range."""
        super().__post_init__()
        if self.bits is not None and not 1 <= self.bits <= 24:
            raise ChannelError(f"bits={self.bits} must be 1..24, or None")
        target = self.target_bits_per_use
        if target is not None and not 0.0 < target < np.inf:
            raise ChannelError(f"target_bits_per_use={target} must be finite and > 0, or None")
        if not 0.0 <= self.gain_floor < np.inf:
            raise ChannelError(f"gain_floor={self.gain_floor} must be finite and >= 0")
        limit = self.max_uses_per_real
        if limit is not None and not 0.0 < limit < np.inf:
            raise ChannelError(f"max_uses_per_real={limit} must be finite and > 0, or None")
        if self.bits is None and limit is None:
            raise ChannelError("bits=None chooses where uses are short; set max_uses_per_real")


@dataclass(frozen=True)
class Schedule:
    """Who sends what: [num_devices] shares of the band and bits per use, 0 for who does not."""

    shares: Floats
    per_use: Floats
    bits: int
    entries: int


def aggregate_digitally(
    updates: NDArray[Any],
    weights: NDArray[np.float64],
    state: ChannelState,
    setup: Ofdma,
    rng: np.random.Generator,
    *,
    power: float | NDArray[np.float64] = 1.0,
    blocks: Sequence[int] | None = None,
    is_lost: NDArray[np.bool_] | None = None,
    more_bits: int | NDArray[np.int64] = 0,
) -> tuple[NDArray[Any] | None, DigitalReport]:
    """Receives the weighted mean of quantised updates, device by device.

    Args:
        updates: [num_devices, num_params] float32 or float64, any scale; not changed.
        weights: [num_devices] >= 0, not all 0; those of devices in outage are left out.
        state: the round's channel; the tx-SNR is ``power / state.noise_power``.
        setup: bits, band and rate.
        rng: draws the roundings and the order of entries, and nothing else.
        power: transmit power P_k, one for all or [num_devices], > 0.
        blocks: sizes of consecutive tensors, coded apart; None for one.
        is_lost: [num_devices] bool; devices that fail after rates were announced.
        more_bits: [num_devices] bits of other side information that go along; 0 for none.

    Returns:
        ([num_params] mean in the type of ``updates``, or None if nobody got through, and a report).

    Raises:
        ChannelError: shapes disagree, a value is out of range, or an update is not finite (the text
            names the device).
    """
    shares = check_updates(updates, np.asarray(weights, dtype=np.float64))
    num_devices, num_params = updates.shape
    limits, lost = check_devices(num_devices, state, power, is_lost)
    bounds = block_bounds(blocks, num_params)
    books = [code_book(k, row, bounds) for k, row in enumerate(updates)]
    plan = schedule(books, shares, state, setup, limits, num_params)
    use_power = setup.use_power(limits, plan.shares)
    true = capacity_bits_per_use(state.gains, state.noise_power, use_power, setup.max_bits_per_use)
    per_use = np.where(lost, 0.0, plan.per_use)
    transmits = per_use > 0.0
    arrives = transmits & (per_use <= true * (1.0 + 1e-12))

    mean, sums = _receive(updates, shares, arrives, books, plan, bounds, rng)
    side_bits = SIDE_BITS * len(bounds) + (0 if setup.max_uses_per_real is None else PLAN_BITS)
    payload = np.where(transmits, plan.bits * plan.entries, 0)
    side = np.where(transmits, side_bits + more_bits, 0)
    whole = send_cost(payload + side, per_use, plan.shares, limits, setup)
    ratios = np.where(arrives, shares, 0.0) / max(shares[arrives].sum(), 1e-300)
    coding = float(ratios**2 @ [book.predicted_error(plan.bits) for book in books])
    lacking, variance, realised, energy = (sums / num_params).tolist()
    report = DigitalReport(
        predicted_mse=lacking + coding * plan.entries / num_params,
        expected_mse=realised if plan.bits == 1 else lacking + variance,
        realised_mse=realised,
        mean_energy=energy,
        is_silent=~arrives & (shares > 0.0),
        rates_bps=setup.bandwidth_hz * plan.shares * per_use,
        seconds=whole.seconds,
        joules=whole.joules,
        tx_power=np.where(transmits, use_power, 0.0),
        channel_uses=int(send_cost(payload, per_use, plan.shares, limits, setup).uses.sum()),
        control_uses=int(send_cost(side, per_use, plan.shares, limits, setup).uses.sum()),
        payload_bytes=-(-payload // 8),
        control_bytes=-(-side // 8),
        bits=plan.bits,
        sent_reals=plan.entries if arrives.any() else 0,
    )
    return (mean if arrives.any() else None), report


def schedule(
    books: Sequence[CodeBook],
    weights: Floats,
    state: ChannelState,
    setup: Ofdma,
    limits: Floats,
    num_params: int,
    band_shares: Floats | None = None,
) -> Schedule:
    """Plans a round from what is known before it; given shares replace equal ones."""
    equal = np.full(len(books), 1.0 / len(books)) if band_shares is None else band_shares
    cap, target = setup.max_bits_per_use, setup.target_bits_per_use
    known = capacity_bits_per_use(
        state.known_gains, state.noise_power, setup.use_power(limits, equal), cap
    )
    gains = (np.abs(state.known_gains) ** 2).mean(axis=1)
    sends = (known > 0.0) & (gains >= setup.gain_floor * state.mean_gains) & (weights > 0.0)
    if setup.max_uses_per_real is None:
        shares, bits, entries = np.where(sends, equal, 0.0), setup.bits or 24, num_params
        return Schedule(shares, _coded(state, setup, limits, shares), bits, entries)
    choices = range(1, 25) if setup.bits is None else (setup.bits,)
    rates = np.where(sends, known if target is None else target, 0.0)
    sends = choose(books, weights, rates, setup.max_uses_per_real, choices)
    shares = np.zeros(len(books))
    if not sends.any():
        return Schedule(shares, shares, choices[0], 0)
    shares[sends] = (
        matched_shares(state.of(sends), limits[sends], setup)
        if target is None
        else 1.0 / sends.sum()
    )
    per_use = _coded(state, setup, limits, shares)
    uses = np.floor(setup.max_uses_per_real * num_params * shares[sends])
    budget = float((uses * per_use[sends]).min())
    bits = best_bits(books, weights, sends, budget / num_params, choices)
    entries = min(num_params, int(budget // bits))
    return Schedule(shares, per_use if entries else np.zeros_like(per_use), bits, entries)


def _coded(state: ChannelState, setup: Ofdma, limits: Floats, shares: Floats) -> Floats:
    """Returns [num_devices] bits per use that devices code for; 0 without a share."""
    planned = planned_bits_per_use(state, setup.use_power(limits, shares), setup)
    target = setup.target_bits_per_use
    return np.where(shares > 0.0, planned if target is None else target, 0.0)


def _receive(
    updates: NDArray[Any],
    shares: Floats,
    arrives: NDArray[np.bool_],
    books: Sequence[CodeBook],
    plan: Schedule,
    bounds: list[tuple[int, int]],
    rng: np.random.Generator,
) -> tuple[NDArray[Any], Floats]:
    """Returns the mean, and sums: what is lacking, rounding variance, realised error, energy."""
    num_params = updates.shape[1]
    is_rationed = plan.entries < num_params
    places = rng.permutation(num_params) if is_rationed else np.zeros(num_params, np.int64)
    heard = np.flatnonzero(arrives)
    ratios = shares[heard] / max(shares[heard].sum(), 1e-300)
    mean, sums = np.zeros(num_params, dtype=updates.dtype), np.zeros(4)
    for tensor, (start, end) in enumerate(bounds):
        codes = [books[k].code(tensor, plan.bits) for k in heard.tolist()]
        for lo in range(start, end, _CHUNK_REALS):
            hi = min(lo + _CHUNK_REALS, end)
            part = updates[:, lo:hi].astype(np.float64)
            is_sent = places[lo:hi] < plan.entries
            count, exact = int(np.count_nonzero(is_sent)), shares @ part
            received, lacking = np.zeros(hi - lo), exact.copy()
            lacking[is_sent] -= ratios @ part[np.ix_(heard, is_sent)]
            for ratio, code, row in zip(ratios, codes, part[heard], strict=True):
                if count:
                    decoded, variance = code.send(row[is_sent], rng)
                    received[is_sent] += ratio * decoded
                    sums[1] += ratio**2 * variance * count
            sums[[0, 2, 3]] += lacking @ lacking, np.sum((received - exact) ** 2), exact @ exact
            mean[lo:hi] = received
    return mean, sums
