"""Time and memory of aggregation in the air: ``python -m scripts.bench_aircomp --params 10000000``.

Aggregates float32 updates through Rayleigh fading on 64 subcarriers with noise, and compares with
the fastest plain weighted mean of the same arrays, ``shares @ updates``, in the same process. They
take 4 * devices * params bytes: 4 GB for 100 devices of 10 M parameters. Every power control is
timed with perfect channel knowledge and with an error of ``--csi-error`` ("_imperfect"), which
misaligns every device: the slow case. Times are medians of alternating repeats; memory is what
NumPy and Python hold at once beyond the inputs, the result included, from one more pass.
"""

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fl_app.wireless.aggregate import aggregate
from fl_app.wireless.channel import ChannelState, Fading, draw_state
from fl_app.wireless.power import OptimalThreshold, PowerControl, TruncatedInversion, ZeroForcing
from fl_app.wireless.units import noise_power_from_tx_snr
from scripts.bench_output import emit

_CONTROLS: dict[str, PowerControl] = {
    "zf": ZeroForcing(),
    "truncated": TruncatedInversion(),
    "optimal": OptimalThreshold(),
}


def bench_aggregation(
    num_devices: int,
    num_params: int,
    *,
    num_subcarriers: int,
    csi_error: float,
    repeats: int,
) -> dict[str, float]:
    """Returns seconds of all ways, ratios, and the peak memory over that of one float32 update.

    Args:
        num_devices: updates to aggregate, >= 1.
        num_params: reals of one update, >= 1.
        num_subcarriers: subcarriers of the fading, >= 1.
        csi_error: see ``estimate_gains``, of the imperfect knowledge.
        repeats: timed passes of each way, >= 1.
    """
    rng = np.random.default_rng(0)
    updates = np.empty((num_devices, num_params), dtype=np.float32)
    for row in updates:  # one by one: a second copy of the inputs might not fit
        rng.standard_normal(dtype=np.float32, out=row)
    weights = rng.uniform(1.0, 3.0, num_devices)
    shares = (weights / weights.sum()).astype(np.float32)
    states = {
        suffix: draw_state(
            Fading(num_subcarriers=num_subcarriers),
            0,
            0,
            mean_gains=np.ones(num_devices),
            noise_power=noise_power_from_tx_snr(20.0),
            csi_error=error,
        )
        for suffix, error in (("", 0.0), ("_imperfect", csi_error))
    }

    def plain() -> object:
        return shares @ updates

    def in_the_air(control: PowerControl, state: ChannelState) -> Callable[[], object]:
        return lambda: aggregate(updates, weights, state, control, rng)[1]

    ways = {
        name + suffix: in_the_air(control, state)
        for suffix, state in states.items()
        for name, control in _CONTROLS.items()
    }
    times: dict[str, list[float]] = {"plain_mean": [], **{name: [] for name in ways}}
    for _ in range(repeats):
        times["plain_mean"].append(_seconds(plain))
        for name, way in ways.items():
            times[name].append(_seconds(way))
    tracemalloc.start()
    ways["zf_imperfect"]()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "num_devices": num_devices,
        "num_params": num_params,
        **{f"{name}_s": value for name, value in medians.items()},
        **{f"{name}_ratio": medians[name] / medians["plain_mean"] for name in ways},
        "peak_over_one_update": peak_bytes / (4.0 * num_params),
    }


def _seconds(action: Callable[[], object]) -> float:
    """Returns the wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main(words: list[str] | None = None) -> None:
    """Parses the command line, prints a line per figure and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--subcarriers", type=int, default=64)
    parser.add_argument("--csi-error", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args(words)
    figures = bench_aggregation(
        chosen.devices,
        chosen.params,
        num_subcarriers=chosen.subcarriers,
        csi_error=chosen.csi_error,
        repeats=chosen.repeats,
    )
    emit(figures, chosen.json)


if __name__ == "__main__":
    main()
