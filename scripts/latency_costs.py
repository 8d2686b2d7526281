"""What a round takes in the air and over OFDMA; see ``scripts.air_latency``, which draws it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from fl_app.wireless.cell import Cell
from fl_app.wireless.channel import ChannelState
from fl_app.wireless.codes import SIDE_BITS
from fl_app.wireless.ofdma import Band, capacity_bits_per_use, send_cost
from fl_app.wireless.power import ZeroForcing
from fl_app.wireless.report import airtime
from fl_app.wireless.units import db_to_linear

Floats = NDArray[np.float64]

NUM_DEVICES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
FIXED, CELL = "fixed SNR", "cell"
KINDS = ("seconds", "joules")
WAYS = ("aircomp", "ofdma", "ofdma_all_power")


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What a device sends, and the band it is sent in.

    Attributes:
        num_params: reals q of one update, >= 1.
        num_tensors: tensors of one update, each with two float32 numbers of side information, >= 1.
        bits: bits Q per real over OFDMA, 1 to 24.
        bandwidth_hz: complex channel uses a second, B, > 0.
    """

    num_params: int
    num_tensors: int
    bits: int
    bandwidth_hz: float


def round_cost(gains: Floats, noise_w: float, power_w: float, load: Payload) -> dict[str, Any]:
    """Returns what one round costs with devices of these gains.

    Args:
        gains: [num_devices] power gains |h|^2, > 0.
        noise_w: noise power over the whole band in W, > 0.
        power_w: transmit power of a device in W, > 0.
        load: payload and band.

    Returns:
        ``seconds`` and ``joules`` (of all devices together) by way, ``identity_s`` the line's
        seconds for ``ofdma``, ``symbols_s`` AirComp's without side information, and the linear
        ``aircomp_nmse``.
    """
    num_devices = len(gains)
    amplitudes = np.sqrt(gains).astype(np.complex128)[:, None]
    state = ChannelState(amplitudes, amplitudes, noise_w, gains)
    limits = np.full(num_devices, power_w)
    plan = ZeroForcing().plan(state, np.full(num_devices, 1.0 / num_devices), limits)
    tx_power = (np.abs(plan.precoders) ** 2).mean(axis=1)
    air_s, air_joules = airtime(-(-load.num_params // 2), tx_power, load.bandwidth_hz)
    side = np.full(num_devices, SIDE_BITS * load.num_tensors)
    bits, equal = load.bits * load.num_params + side, np.full(num_devices, 1.0 / num_devices)
    costs = {}
    for name, what, power in (
        ("control", side, "density"),
        ("ofdma", bits, "density"),
        ("ofdma_all_power", bits, "whole"),
    ):
        band = Band(bandwidth_hz=load.bandwidth_hz, power=power)  # type: ignore[arg-type]
        use_power = band.use_power(limits, equal)
        per_use = capacity_bits_per_use(amplitudes, noise_w, use_power)
        costs[name] = send_cost(what, per_use, equal, limits, band)
    weakest = float(np.log2(1.0 + power_w * gains.min() / noise_w))
    return {
        "seconds": {
            "aircomp": air_s + costs["control"].seconds,
            "ofdma": costs["ofdma"].seconds,
            "ofdma_all_power": costs["ofdma_all_power"].seconds,
        },
        "joules": {
            "aircomp": float((air_joules + costs["control"].joules).sum()),
            "ofdma": float(costs["ofdma"].joules.sum()),
            "ofdma_all_power": float(costs["ofdma_all_power"].joules.sum()),
        },
        "symbols_s": air_s,
        "identity_s": air_s * 2.0 * num_devices * load.bits / weakest,
        # Exact sums: only noise is left. Independent updates of equal size have energy 1 / K.
        "aircomp_nmse": float(plan.sum_mse.mean()) * num_devices,
    }


def summarise(num_devices: int, costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns mean, smallest and largest figure over placements for one number of devices."""
    row: dict[str, Any] = {"num_devices": num_devices}
    for kind in KINDS:
        row[kind] = {way: _spread([cost[kind][way] for cost in costs]) for way in WAYS}
    for name in ("symbols_s", "identity_s", "aircomp_nmse"):
        row[name] = _spread([cost[name] for cost in costs])
    return row


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "smallest": min(values), "largest": max(values)}


def measure(
    load: Payload,
    *,
    snr_db: float,
    power_w: float,
    num_placements: int,
    seed: int,
    progress: Progress,
) -> dict[str, list[dict[str, Any]]]:
    """Returns one row per number of devices, at the fixed SNR and in the cell.

    Args:
        load: payload and band.
        snr_db: receive SNR P |h|^2 / sigma^2 of every device in dB, power at density P / B.
        power_w: transmit power of a device in W.
        num_placements: independent placements averaged in the cell, >= 1.
        seed: the first placement's seed; the others count on from it.
        progress: shows how far placements are.
    """
    cell = Cell(bandwidth_hz=load.bandwidth_hz)
    noise_w = cell.noise_power_w()
    # A placement of K devices is the first K of the largest one.
    placements = [
        cell.mean_gains(seed + number, range(max(NUM_DEVICES)))
        for number in progress.track(range(num_placements), description="placements")
    ]
    fixed = np.full(max(NUM_DEVICES), db_to_linear(snr_db) * noise_w / power_w)
    return {
        setting: [
            summarise(count, [round_cost(gains[:count], noise_w, power_w, load) for gains in drawn])
            for count in NUM_DEVICES
        ]
        for setting, drawn in ((FIXED, [fixed]), (CELL, placements))
    }
