"""Precoders and combiners in closed form, for a neural connection over a known MIMO channel.

With W = sum_i w_i a_i v_i^H and H = sum_j sigma_j p_j q_j^H, channel use u carries the components
I_u, the strongest on the strongest eigenchannel, and with t_i = sqrt(w_i / sigma_j(i)) and
alpha_u^2 = P / sum_{I_u} t_i^2

    P_u = alpha_u sum t_i q_j(i) v_i^H,    C_u^H = alpha_u^-1 sum t_i a_i p_j(i)^H.

For white x of unit power E|P_u x|^2 = P, and noise CN(0, sigma^2) per antenna leaves

    E|y_hat - W x|^2 = sigma^2 / P sum_u (sum_{I_u} w_i / sigma_j(i))^2,

half of it if W and x are real and the real part is kept. No other split t does better
(Cauchy-Schwarz), no other pairing within a use (rearrangement). Any I_u of at most n = rank H
components will do; U = ceil(rank W / n) uses are needed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.channel import Complex
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.mimo import NeuralConnection

Floats = NDArray[np.float64]


def design_connection(
    weight: NDArray[Any], channel: Complex, *, power: float, num_streams: int | None = None
) -> NeuralConnection:
    """Designs precoders and combiners that make a channel compute W.

    Args:
        weight: [num_outputs, num_inputs] W, real or complex, of any rank; rank 0 needs no uses.
        channel: [num_rx, num_tx] known H.
        power: mean transmit power P of a channel use, summed over antennas, > 0.
        num_streams: components per use, 1 to rank H; None for rank H. Fewer avoid weak
            eigenchannels at the price of more uses.

    Raises:
        ChannelError: a shape is wrong, a value is not finite or out of range, or H is 0.
    """
    if weight.ndim != 2 or 0 in weight.shape or not np.isfinite(weight).all():
        raise ChannelError(f"weight {weight.shape} must be a finite matrix that is not empty")
    if channel.ndim != 2 or 0 in channel.shape or not np.isfinite(channel).all():
        raise ChannelError(f"channel {channel.shape} must be a finite [num_rx, num_tx] matrix")
    if not 0.0 < power < np.inf:
        raise ChannelError(f"power={power} must be finite and > 0")
    into_rx, sigmas, from_tx = np.linalg.svd(channel, full_matrices=False)
    num_eigen = _rank(sigmas, channel.shape)
    if num_eigen == 0:
        raise ChannelError("the channel is 0: a device in such a fade cannot be connected")
    streams = num_eigen if num_streams is None else num_streams
    if not 1 <= streams <= num_eigen:
        raise ChannelError(f"num_streams={num_streams} must be 1..{num_eigen}, the channel's rank")
    lefts, strengths, rights = np.linalg.svd(weight, full_matrices=False)
    groups = group_components(strengths[: _rank(strengths, weight.shape)], sigmas[:streams])
    precoders = np.zeros((len(groups), channel.shape[1], weight.shape[1]), dtype=np.complex128)
    combiners = np.zeros((len(groups), weight.shape[0], channel.shape[0]), dtype=np.complex128)
    use_gains = np.zeros(len(groups))
    for u, group in enumerate(groups):
        ratio = strengths[group] / sigmas[: len(group)]
        split = np.sqrt(ratio)
        alpha = np.sqrt(power / ratio.sum())
        to_antennas = from_tx[: len(group)].conj().T * split
        precoders[u] = alpha * to_antennas @ rights[group]
        combiners[u] = (lefts[:, group] * split) @ into_rx[:, : len(group)].conj().T / alpha
        use_gains[u] = ratio.sum() ** 2 / power
    return NeuralConnection(
        weight, precoders, combiners, use_gains, channel.astype(np.complex128), power
    )


def group_components(strengths: Floats, sigmas: Floats) -> list[NDArray[np.int64]]:
    """Shares components among ceil(rank / n) channel uses so that little noise comes through.

    Noise grows with sum_u (sum_{I_u} w_i / sigma_j)^2, which likes equal inner sums. Two ways are
    tried: consecutive components, and dealing out one eigenchannel after the other, the strongest
    component left to the use with the smallest sum so far. The better one is returned.

    Args:
        strengths: [rank] singular values w of the map, descending, > 0.
        sigmas: [n] singular values of the channel, descending, > 0.

    Returns:
        Indices into ``strengths`` for every use, descending strength, at most n each.
    """
    rank, num_streams = len(strengths), len(sigmas)
    num_uses = -(-rank // num_streams)
    if num_uses == 0:
        return []
    consecutive = [
        np.arange(u * num_streams, min((u + 1) * num_streams, rank)) for u in range(num_uses)
    ]
    dealt: list[list[int]] = [[] for _ in range(num_uses)]
    sums = np.zeros(num_uses)
    for level, start in enumerate(range(0, rank, num_uses)):
        quietest = np.argsort(sums, kind="stable")
        for component, use in zip(
            range(start, min(start + num_uses, rank)), quietest, strict=False
        ):
            dealt[use].append(component)
            sums[use] += strengths[component] / sigmas[level]
    plans = (consecutive, [np.array(group) for group in dealt])
    return min(
        plans,
        key=lambda plan: sum(
            float(np.sum(strengths[group] / sigmas[: len(group)])) ** 2 for group in plan
        ),
    )


def _rank(values: Floats, shape: tuple[int, ...]) -> int:
    """Returns how many singular values are not rounding noise."""
    return int(np.count_nonzero(values > values[0] * max(shape) * np.finfo(np.float64).eps))
