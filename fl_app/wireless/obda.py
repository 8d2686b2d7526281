"""One-bit over-the-air aggregation with majority vote (Zhu, Du, Gündüz, Huang, arXiv:2001.05713).

Device k sends the signs of its update, two to a QPSK symbol c = (s_0 + j s_1) / sqrt(2), with
truncated channel inversion: its symbols arrive with amplitude sqrt(rho), or not at all. The server
keeps the signs of the received sum. If k_+ of K heard devices vote for one sign, noise of variance
sigma^2 / 2 per real dimension turns that vote around with probability

    Q((2 k_+ - K) sqrt(rho) / sigma).

Nobody transmits how large an entry is: the caller applies a learning rate to the votes. Weights do
not enter, each device has one vote. An entry that is exactly 0 abstains.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

from fl_app.wireless.channel import ChannelState
from fl_app.wireless.checks import check_devices
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.power import PowerControl, PowerPlan
from fl_app.wireless.standardise import check_updates
from fl_app.wireless.votes import VoteReport

_CHUNK_USES = 1 << 13
"""Channel uses simulated together; temporaries of this length stay in the cache."""


def majority_vote(
    updates: NDArray[Any],
    state: ChannelState,
    control: PowerControl,
    rng: np.random.Generator,
    *,
    power: float | NDArray[np.float64] = 1.0,
    is_lost: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int8] | None, VoteReport]:
    """Receives the majority of the signs of all updates through one round's channel.

    Args:
        updates: [num_devices, num_params] float32 or float64; not changed.
        state: the round's channel; the tx-SNR is ``power / state.noise_power``.
        control: the rule that aligns votes, normally ``TruncatedInversion``; every device wants
            amplitude 1.
        rng: draws the receiver's noise, and nothing else.
        power: mean power limit P_k of a channel use, one for all or [num_devices], > 0.
        is_lost: [num_devices] bool; devices that fail after power control was announced.

    Returns:
        ([num_params] votes -1, 0 or 1, report). A vote of 0 means that nobody was heard, or a tie
        without noise. The votes are None if nobody was heard on any entry.

    Raises:
        ChannelError: shapes disagree, ``power`` is not > 0, or an update is not finite (the text
            names the device).
    """
    num_devices, num_params = updates.shape if updates.ndim == 2 else (0, 0)
    check_updates(updates, np.ones(num_devices))
    limits, lost = check_devices(num_devices, state, power, is_lost)
    for k, row in enumerate(updates):
        if not np.isfinite(row).all():
            raise ChannelError(f"the update of device {k} is not finite; leave it out")

    plan = control.plan(state, np.ones(num_devices), limits)
    sent = np.where(lost[:, None], 0.0, plan.precoders)
    is_heard = np.any(plan.is_heard & ~lost[:, None], axis=0)[:, None]
    coefficients = state.gains * sent / np.sqrt(plan.denoising)
    deviation = np.where(is_heard, np.sqrt(state.noise_power / plan.denoising)[:, None], 0.0)
    num_sub = state.gains.shape[1]
    step = 2 * max(1, _CHUNK_USES // num_sub) * num_sub
    votes = np.zeros(num_params, dtype=np.int8)
    sums = np.zeros(3)  # errors predicted, their variance, errors realised
    decided, unheard, active = 0, 0, np.zeros(num_devices)
    for lo in range(0, num_params, step):
        signs = np.sign(updates[:, lo : lo + step])
        size = signs.shape[1]
        received = _superpose(signs, coefficients)
        spread = np.broadcast_to(deviation, received.shape)
        noisy = received + spread * rng.standard_normal(received.shape)
        noisy *= is_heard
        votes[lo : lo + size] = np.sign(noisy).ravel()[:size]
        truth = np.sign(signs.sum(axis=0, dtype=np.float64))
        chance = _error_chance(received.ravel()[:size] * truth, spread.ravel()[:size])
        chance = np.where(truth == 0.0, 0.0, chance)
        wrong = (votes[lo : lo + size] != truth) & (truth != 0.0)
        sums += (chance.sum(), (chance * (1.0 - chance)).sum(), wrong.sum())
        decided += int(np.count_nonzero(truth))
        unheard += int(np.broadcast_to(~is_heard, received.shape).ravel()[:size].sum())
        active += _active_power(signs, sent)
    report = _report(plan, lost, num_params, sums, max(1, decided))
    uses = 0 if not np.abs(plan.precoders).any() else -(-num_params // 2)
    filled = VoteReport(
        **report,
        decided_reals=decided,
        tx_power=active / max(1, uses),
        channel_uses=uses,
        announced_bytes=4 * plan.num_announced,
        unheard_reals=unheard,
    )
    return (None if unheard == num_params else votes), filled


def _pack(signs: NDArray[Any], num_sub: int) -> NDArray[Any]:
    """Returns [num_devices, rows, num_subcarriers, 2]; padding abstains."""
    rows = -(-signs.shape[1] // (2 * num_sub))
    packed = np.zeros((len(signs), rows * num_sub * 2))
    packed[:, : signs.shape[1]] = signs
    return packed.reshape(len(signs), rows, num_sub, 2)


def _superpose(signs: NDArray[Any], coefficients: NDArray[Any]) -> NDArray[np.float64]:
    """Returns [rows, num_subcarriers, 2] the received sum of votes without noise."""
    packed = _pack(signs, coefficients.shape[1])
    rows, num_sub = packed.shape[1:3]
    total = np.zeros((rows, num_sub), dtype=np.complex128)
    for votes, coefficient in zip(packed, coefficients, strict=True):
        total += votes.view(np.complex128)[..., 0] * coefficient
    return total.view(np.float64).reshape(rows, num_sub, 2)


def _active_power(signs: NDArray[Any], sent: NDArray[Any]) -> NDArray[np.float64]:
    """Returns [num_devices] the energy spent on one chunk; an abstention halves its symbol's."""
    energy = (_pack(signs, sent.shape[1]) ** 2).sum(axis=(1, 3)) / 2.0
    spent: NDArray[np.float64] = (energy * np.abs(sent) ** 2).sum(axis=1)
    return spent


def _error_chance(
    margin: NDArray[np.float64], deviation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns Q(margin / deviation); without noise 1 where the margin is not positive."""
    ratio = np.divide(margin, deviation, out=np.zeros_like(margin), where=deviation > 0.0)
    chance: NDArray[np.float64] = np.where(
        deviation > 0.0, 0.5 * erfc(ratio / np.sqrt(2.0)), margin <= 0.0
    )
    return chance


def _report(
    plan: PowerPlan,
    lost: NDArray[np.bool_],
    num_params: int,
    sums: NDArray[np.float64],
    decided: int,
) -> dict[str, Any]:
    """Returns the rates and who was silent."""
    num_sub = plan.is_heard.shape[1]
    num_uses = -(-num_params // 2)
    per_sub = (num_uses - np.arange(num_sub) + num_sub - 1) // num_sub
    silent = (~plan.is_heard | lost[:, None]) @ per_sub
    return {
        "predicted_error_rate": float(sums[0]) / decided,
        "predicted_deviation": float(np.sqrt(sums[1])) / decided,
        "realised_error_rate": float(sums[2]) / decided,
        "is_silent": silent == num_uses,
        "silent_share": silent / num_uses,
    }
