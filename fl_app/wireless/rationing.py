"""Who sends, and how many bits per real, when channel uses are short.

All who send share the band so that each sends the same entries: an entry that only some had sent
would be the mean of few devices, which is further from the mean of all than 0 is. A device whose
rate would hold the others back is left out if that makes the predicted error smaller. With updates
uncorrelated between devices, n entries of q sent by the devices S, W their weight and D_k(Q) the
error of Q bits,

    MSE = n / q (sum_S (w_k / W)^2 D_k(Q) + (1 / W - 1)^2 sum_S w_k^2 E_k + sum_not_S w_k^2 E_k)
        + (1 - n / q) sum_k w_k^2 E_k,    E_k the mean square of device k's entries.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.codes import CodeBook

Floats = NDArray[np.float64]

PLAN_BITS = 96
"""A device's energy, one-bit error and mean squared span, from which the server plans: float32."""


def choose(
    books: Sequence[CodeBook],
    weights: Floats,
    bits_per_use: Floats,
    uses: float,
    choices: Sequence[int],
) -> NDArray[np.bool_]:
    """Chooses the devices that send: the best n, at whatever bits per real make least error.

    Args:
        books: [num_devices].
        weights: [num_devices] weights of the mean, sum 1.
        bits_per_use: [num_devices] capacity of a device with an equal share, 0 for one that cannot
            send. That its capacity grows as its share shrinks is left out here.
        uses: channel uses of all devices together per real.
        choices: bits per real to choose from.

    Returns:
        [num_devices] who sends.
    """
    order = np.argsort(-bits_per_use, kind="stable")
    rates = bits_per_use[order]
    rates = rates[rates > 0.0]
    sends = np.zeros(len(books), dtype=np.bool_)
    if not len(rates):
        return sends
    energies = np.array([book.energy for book in books])[order]
    shares = weights[order]
    # Devices that share uses in proportion to 1 / C_k have equal rates.
    per_real = uses / np.cumsum(1.0 / rates)
    heard, count = np.cumsum(shares)[: len(rates)], len(rates)
    inverse = np.divide(1.0, heard, out=np.zeros(count), where=heard > 0.0)
    kept = np.cumsum(shares**2 * energies)
    every = float(kept[-1])
    kept = kept[:count]
    errors = np.empty((len(choices), count))
    for row, number in enumerate(choices):
        coding = np.array([book.predicted_error(number) for book in books])[order]
        noise = np.cumsum(shares**2 * coding)[:count]
        sent = noise * inverse**2 + (inverse - 1.0) ** 2 * kept + every - kept
        fraction = np.minimum(1.0, per_real / number)
        errors[row] = fraction * sent + (1.0 - fraction) * every
    last = int(errors.argmin()) % count
    sends[order[: last + 1]] = True
    return sends


def best_bits(
    books: Sequence[CodeBook],
    weights: Floats,
    sends: NDArray[np.bool_],
    bits_per_real: float,
    choices: Sequence[int],
) -> int:
    """Chooses bits per real for devices that can send ``bits_per_real`` on average over entries.

    Args:
        books: [num_devices].
        weights: [num_devices] weights of the mean, sum 1.
        sends: [num_devices] who sends, not nobody.
        bits_per_real: bits that each of them can send, per real of the whole update.
        choices: bits per real to choose from.
    """
    squares = weights**2
    energies = np.array([book.energy for book in books])
    heard = float(weights[sends].sum())
    every = float(squares @ energies)
    kept = float(squares[sends] @ energies[sends])

    def error(bits: int) -> float:
        coding = np.array([book.predicted_error(bits) for book in books])
        noise = float(squares[sends] @ coding[sends]) / heard**2
        fraction = min(1.0, bits_per_real / bits)
        return fraction * (noise + (1.0 / heard - 1.0) ** 2 * kept - kept)

    return min(choices, key=lambda bits: every + error(bits))
