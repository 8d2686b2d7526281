"""Aggregation in the air: one weighted mean of all updates from one superposition.

Zhu, Wang, Huang 2020 (arXiv:1812.11494) with per-device standardisation: with means m_k and spreads
nu_k sent digitally, device k transmits b_k (s_{2i} + j s_{2i+1}) / sqrt(2), s = (u - m) / nu, and
the server forms sqrt(2) (Re, Im)(y) / sqrt(eta) + sum_k w_k m_k, divided by the weights it heard.
Channel use i travels on subcarrier i mod M. Symbol timing is perfect; interference and the cost of
pilots are not modelled.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.channel import ChannelState
from fl_app.wireless.checks import check_devices
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.link import BlockLink
from fl_app.wireless.power import PowerControl
from fl_app.wireless.receiver import Superposition, Tally
from fl_app.wireless.report import AirReport
from fl_app.wireless.standardise import block_bounds, check_updates, moments

_CHUNK_USES = 1 << 13
"""Channel uses simulated together: a handful of buffers of twice this length fit the cache."""


def aggregate(
    updates: NDArray[Any],
    weights: NDArray[np.float64],
    state: ChannelState,
    control: PowerControl,
    rng: np.random.Generator,
    *,
    power: float | NDArray[np.float64] = 1.0,
    peak_power: float = np.inf,
    blocks: Sequence[int] | None = None,
    presence: NDArray[np.bool_] | None = None,
    is_lost: NDArray[np.bool_] | None = None,
    loss_is_known: bool = True,
) -> tuple[NDArray[Any] | None, AirReport]:
    """Receives the weighted mean of updates through one round's channel.

    Memory beyond the inputs and the result does not grow with the length of an update. Sums are
    taken in the precision of the updates: float32 updates give errors of some 1e-7 of their size.

    Args:
        updates: [num_devices, num_params] float32 or float64, any scale; not changed.
        weights: [num_devices] >= 0, not all 0; need not sum to 1.
        state: the round's channel; the tx-SNR is ``power / state.noise_power``.
        control: the rule of power control.
        rng: draws the receiver's noise, and nothing else.
        power: mean power limit P_k of a channel use, one for all or [num_devices], > 0.
        peak_power: limit on the power of every single symbol; louder ones keep their phase and are
            clipped to it. ``inf`` for none.
        blocks: sizes of consecutive blocks, standardised and planned apart; None for one block.
            Each block is padded to whole channel uses.
        presence: [num_devices, num_params] bool for layouts that differ between devices; every
            entry is then divided by the weights of the devices that hold it.
        is_lost: [num_devices] bool; devices that fail after power control was announced.
        loss_is_known: whether the server knows of it and renormalises; if not, their means and
            weights stay counted and only their signal is missing.

    Returns:
        ([num_params] mean in the type of ``updates``, report). The mean is None if no entry was
        heard; the caller then keeps its value. Single unheard entries are 0.

    Raises:
        ChannelError: shapes disagree, a limit is out of range, an update is not finite (the text
            names the device), or ``peak_power`` meets ``presence``, for which there is no model.
    """
    shares = check_updates(updates, np.asarray(weights, dtype=np.float64))
    num_devices, num_params = updates.shape
    limits, lost = check_devices(num_devices, state, power, is_lost)
    if not peak_power > 0.0:
        raise ChannelError(f"peak_power={peak_power} must be > 0; use inf for no limit")
    if presence is not None and presence.shape != updates.shape:
        raise ChannelError(f"presence {presence.shape} must have the shape {updates.shape}")
    if presence is not None and peak_power < np.inf:
        raise ChannelError("peak_power with presence has no closed form; leave one of them out")

    bounds = block_bounds(blocks, num_params)
    # Everything is looked at before anything is sent.
    sides = [
        moments(
            updates[:, start:end],
            None if presence is None else presence[:, start:end],
            control.removes_mean,
        )
        for start, end in bounds
    ]
    mean = np.zeros(num_params, dtype=updates.dtype)
    tally, num_announced = Tally.empty(num_devices), 0
    num_sub = state.gains.shape[1]
    max_rows = max(1, _CHUNK_USES // num_sub)
    step = 2 * max_rows * num_sub
    for (start, end), side in zip(bounds, sides, strict=True):
        plan = control.plan(state, shares * side.spreads, limits)
        num_announced += plan.num_announced
        link = BlockLink.build(
            state, plan, shares, side, lost=lost, loss_is_known=loss_is_known, peak_power=peak_power
        )
        superposition = Superposition(link, updates.dtype, max_rows, is_masked=presence is not None)
        tally.book_block(link, end - start)
        for lo in range(start, end, step):
            hi = min(lo + step, end)
            sums = superposition.chunk(
                updates[:, lo:hi], None if presence is None else presence[:, lo:hi]
            )
            noise = rng.standard_normal(sums.shape, dtype=updates.dtype.type)
            mean[lo:hi] = tally.book_chunk(link, sums, noise, hi - lo)
    side_numbers = len(bounds) * num_devices * (2 if control.removes_mean else 1)
    report: AirReport = tally.report(
        num_params,
        control_bytes=updates.dtype.itemsize * side_numbers,
        announced_bytes=4 * num_announced,
    )
    return (None if report.unheard_reals == num_params else mean), report
