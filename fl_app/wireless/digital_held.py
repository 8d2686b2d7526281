"""The digital baseline where devices hold different entries: each sends its own and no other.

As ``fl_app.wireless.digital``, with every entry divided by the weights of the devices that hold it
and got through. All entries are sent: rationing has one order that all devices share.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.channel import ChannelState
from fl_app.wireless.checks import check_devices
from fl_app.wireless.codes import SIDE_BITS, CodeBook, code_book
from fl_app.wireless.digital import DigitalReport, Ofdma, schedule
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.ofdma import capacity_bits_per_use, send_cost
from fl_app.wireless.standardise import block_bounds, check_updates

Floats = NDArray[np.float64]


def aggregate_held(
    updates: NDArray[Any],
    weights: Floats,
    state: ChannelState,
    setup: Ofdma,
    rng: np.random.Generator,
    *,
    presence: NDArray[np.bool_],
    power: float | NDArray[np.float64] = 1.0,
    blocks: Sequence[int] | None = None,
    band_shares: Floats | None = None,
    more_bits: int | NDArray[np.int64] = 0,
) -> tuple[NDArray[Any] | None, DigitalReport]:
    """Receives the mean of quantised updates, entry by entry over who holds it.

    Args:
        updates: [num_devices, num_params] float32 or float64; not changed.
        weights: [num_devices] >= 0, not all 0.
        state: the round's channel.
        setup: bits, band and rate.
        rng: draws the roundings.
        presence: [num_devices, num_params] bool; what is False is neither looked at nor sent.
        power: transmit power P_k.
        blocks: sizes of consecutive tensors, coded apart; None for one. A device sends no levels of
            a tensor of which it holds nothing.
        band_shares: [num_devices] of the band, >= 0, sum at most 1; None for equal ones.
        more_bits: [num_devices] bits of other side information that go along; 0 for none.

    Returns:
        ([num_params] mean, 0 where nobody was heard, or None if nobody got through at all; report).

    Raises:
        ChannelError: shapes disagree, a value is out of range, an update is not finite, or
            ``setup`` rations entries.
    """
    shares = check_updates(updates, np.asarray(weights, dtype=np.float64))
    num_devices, num_params = updates.shape
    limits, _ = check_devices(num_devices, state, power, None)
    if setup.max_uses_per_real is not None or setup.bits is None:
        raise ChannelError(
            "max_uses_per_real rations entries that all devices hold; leave it out where they "
            "hold different ones, and set bits"
        )
    if presence.shape != updates.shape:
        raise ChannelError(f"presence {presence.shape} must have the shape {updates.shape}")
    parts = [
        _Part(k, row, held, blocks)
        for k, (row, held) in enumerate(zip(updates, presence, strict=True))
    ]
    books = [part.book for part in parts]
    plan = schedule(books, shares, state, setup, limits, num_params, band_shares)
    use_power = setup.use_power(limits, plan.shares)
    true = capacity_bits_per_use(state.gains, state.noise_power, use_power, setup.max_bits_per_use)
    transmits = plan.per_use > 0.0
    arrives = transmits & (plan.per_use <= true * (1.0 + 1e-12))
    payload = np.where(transmits, [plan.bits * part.places.size for part in parts], 0)
    own = np.array([SIDE_BITS * len(part.bounds) for part in parts])
    side = np.where(transmits, own + more_bits, 0)

    heard = _weight(parts, shares * arrives, num_params)
    exact = _sum(parts, shares, num_params) / _or_one(_weight(parts, shares, num_params))
    received, ideal = np.zeros(num_params), np.zeros(num_params)
    predicted, variance = np.zeros(num_params), np.zeros(num_params)
    for k in np.flatnonzero(arrives).tolist():
        part, ratio = parts[k], shares[k] / heard[parts[k].places]
        decoded, coding, rounding = part.send(plan.bits, rng)
        received[part.places] += ratio * decoded
        ideal[part.places] += ratio * part.values
        predicted[part.places] += ratio**2 * coding
        variance[part.places] += ratio**2 * rounding
    lacking = float(np.mean((ideal - exact) ** 2))
    realised = float(np.mean((received - exact) ** 2))
    whole = send_cost(payload + side, plan.per_use, plan.shares, limits, setup)
    report = DigitalReport(
        predicted_mse=lacking + float(predicted.mean()),
        expected_mse=realised if plan.bits == 1 else lacking + float(variance.mean()),
        realised_mse=realised,
        mean_energy=float(np.mean(exact**2)),
        is_silent=~arrives & (shares > 0.0),
        rates_bps=setup.bandwidth_hz * plan.shares * plan.per_use,
        seconds=whole.seconds,
        joules=whole.joules,
        tx_power=np.where(transmits, use_power, 0.0),
        channel_uses=int(send_cost(payload, plan.per_use, plan.shares, limits, setup).uses.sum()),
        control_uses=int(send_cost(side, plan.per_use, plan.shares, limits, setup).uses.sum()),
        payload_bytes=-(-payload // 8),
        control_bytes=-(-side // 8),
        bits=plan.bits,
        sent_reals=int(np.count_nonzero(heard)),
    )
    return (received.astype(updates.dtype) if arrives.any() else None), report


class _Part:
    """What one device holds: its entries one after the other, and where its tensors end."""

    def __init__(
        self, device: int, row: NDArray[Any], held: NDArray[np.bool_], blocks: Sequence[int] | None
    ) -> None:
        self.places = np.flatnonzero(held)
        self.values = row[held].astype(np.float64)
        bounds = block_bounds(blocks, len(row))
        ends = np.concatenate([[0], np.cumsum(held)])
        inside = [(int(ends[start]), int(ends[end])) for start, end in bounds]
        self.bounds = [(start, end) for start, end in inside if end > start]
        self.book: CodeBook = code_book(device, row[held], self.bounds) if self.bounds else _EMPTY

    def send(self, bits: int, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
        """Returns decoded entries, their predicted squared error, and their rounding variance."""
        decoded, coding, rounding = (np.zeros(self.values.size) for _ in range(3))
        for tensor, (start, end) in enumerate(self.bounds):
            part = self.values[start:end]
            decoded[start:end], rounding[start:end] = self.book.code(tensor, bits).send(part, rng)
            low, high = self.book.spans[tensor]
            step = (high - low) / (2**bits - 1)
            missed = (decoded[start:end] - part) ** 2
            coding[start:end] = missed if bits == 1 else step**2 / 6.0
        return decoded, coding, rounding


_EMPTY = CodeBook(signs=[], spans=[], energy=0.0, sign_error=0.0, squared_spans=0.0)


def _weight(parts: Sequence[_Part], shares: Floats, num_params: int) -> Floats:
    total = np.zeros(num_params)
    for part, share in zip(parts, shares, strict=True):
        total[part.places] += share
    return total


def _sum(parts: Sequence[_Part], shares: Floats, num_params: int) -> Floats:
    total = np.zeros(num_params)
    for part, share in zip(parts, shares, strict=True):
        total[part.places] += share * part.values
    return total


def _or_one(weights: Floats) -> Floats:
    return np.where(weights > 0.0, weights, 1.0)
