"""Random updates, channel states and power controls for the tests of sums in the air."""

import numpy as np

from fl_app.wireless.channel import ChannelState, Fading, draw_state
from fl_app.wireless.power import (
    CotafScaling,
    OptimalThreshold,
    PhaseOnly,
    PowerControl,
    TruncatedInversion,
    ZeroForcing,
)

CONTROLS: list[PowerControl] = [
    ZeroForcing(),
    OptimalThreshold(),
    PhaseOnly(),
    CotafScaling(gain_floor=0.05),
    TruncatedInversion(gain_floor=0.2),
    TruncatedInversion(gain_floor=0.2, budget="per_use"),
    TruncatedInversion(gain_floor=0.2, knows_silence=False),
]


def random_updates(seed: int, num_devices: int, num_params: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns updates and weights: both signs, unequal scales, means and weights."""
    rng = np.random.default_rng(seed)
    scale, offset = rng.uniform(0.2, 2.0, (num_devices, 1)), rng.normal(size=(num_devices, 1))
    updates = scale * rng.standard_normal((num_devices, num_params)) + offset
    return updates, rng.uniform(0.5, 3.0, num_devices)


def random_state(
    seed: int, num_devices: int, noise_power: float = 0.0, num_subcarriers: int = 3, **errors: float
) -> ChannelState:
    """Returns a fading channel; devices' mean gains differ."""
    return draw_state(
        Fading(num_subcarriers=num_subcarriers),
        seed,
        0,
        mean_gains=np.random.default_rng(seed + 7).uniform(0.5, 2.0, num_devices),
        noise_power=noise_power,
        **errors,
    )


def rng_of(seed: int = 0) -> np.random.Generator:
    """Returns the generator a round draws its noise from."""
    return np.random.default_rng(seed)
