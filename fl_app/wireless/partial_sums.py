"""Partial results of several devices, summed by the channel.

Device k computes z_k = W_k x_k of its own features; the server wants sum_k c_k z_k, m reals. That
is what ``aggregate`` does with weights |c_k| and the signs of c_k in the devices' symbols, so m
reals cost ceil(m / 2) channel uses, whatever the number of devices (Krouka et al. 2021,
arXiv:2106.00999). For a LoRA layer send A x, r reals, and not B A x.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.aggregate import aggregate
from fl_app.wireless.channel import ChannelState
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.power import PowerControl
from fl_app.wireless.report import AirReport


def sum_partials(
    partials: NDArray[Any],
    coefficients: NDArray[np.float64],
    state: ChannelState,
    control: PowerControl,
    rng: np.random.Generator,
    *,
    power: float | NDArray[np.float64] = 1.0,
) -> tuple[NDArray[Any] | None, AirReport]:
    """Receives sum_k c_k z_k.

    A silent device's part is replaced by the weighted mean of the others' (the sum stays the right
    size); the report counts that as error.

    Args:
        partials: [num_devices, num_reals] z_k, float32 or float64; a batch of vectors in a row. Not
            changed.
        coefficients: [num_devices] c_k, any sign, not all 0.
        state: see ``aggregate``.
        control: see ``aggregate``.
        rng: see ``aggregate``.
        power: see ``aggregate``.

    Returns:
        ([num_reals] sum or None if nobody was heard, report with errors and energy of the sum).

    Raises:
        ChannelError: shapes disagree, a value is not finite or all coefficients are 0.
    """
    signs = np.sign(coefficients)
    scale = float(np.abs(coefficients).sum())
    if coefficients.shape != partials.shape[:1] or not 0.0 < scale < np.inf:
        raise ChannelError(
            f"coefficients {coefficients.shape} must be [{len(partials)}], finite and not all 0"
        )
    mean, report = aggregate(
        partials * signs[:, None].astype(partials.dtype),
        np.abs(coefficients),
        state,
        control,
        rng,
        power=power,
    )
    names = (
        "predicted_mse",
        "expected_mse",
        "expected_mse_deviation",
        "realised_mse",
        "noise_mse",
        "noise_free_mse",
        "clipping_mse",
        "predicted_clipping_mse",
        "mean_energy",
    )
    scaled: dict[str, Any] = {name: scale**2 * getattr(report, name) for name in names}
    total = None if mean is None else mean * mean.dtype.type(scale)
    return total, replace(report, **scaled)
