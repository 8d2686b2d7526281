"""Seconds and joules of a round: JSON against closed forms in plain Python."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.wireless.cell import Cell
from fl_app.wireless.channel import ChannelState
from fl_app.wireless.codes import SIDE_BITS
from fl_app.wireless.digital import Ofdma, aggregate_digitally
from scripts import latency_costs
from tests.oracles.air_digital import air_seconds, ofdma_seconds

_SIDE = 3 * SIDE_BITS


def test_fixed_snr_seconds_and_joules(latency: tuple[Any, Path]) -> None:
    """1001 reals of 12 bits at 7 dB; every channel use costs P / B."""
    snr, power_w = 10.0**0.7, 10.0 ** ((23.0 - 30.0) / 10.0)
    rows = latency[0]["settings"]["fixed SNR"]
    assert [row["num_devices"] for row in rows] == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    for row in rows:
        count = row["num_devices"]
        air = 501 / 1e6
        seconds = ofdma_seconds(count, 1001, 12, _SIDE, 1e6, snr)
        control = ofdma_seconds(count, 0, 12, _SIDE, 1e6, snr)
        identity = air * 2 * count * 12 / math.log2(1.0 + snr)
        assert row["symbols_s"]["mean"] == pytest.approx(air)
        assert row["seconds"]["aircomp"]["mean"] == pytest.approx(air + control)
        assert air == pytest.approx(air_seconds(1001, 1e6), rel=1e-3)  # half a use more
        assert row["seconds"]["ofdma"]["mean"] == pytest.approx(seconds)
        assert row["identity_s"]["mean"] == pytest.approx(identity)
        # 3 times 64 bits of side information beside 12012, and half a use.
        assert seconds == pytest.approx(identity * (12012 + _SIDE) / 12012 * 1001 / 1002)
        uses = (12012 + _SIDE) / math.log2(1.0 + snr)
        assert row["joules"]["ofdma"]["mean"] == pytest.approx(count * power_w * uses / 1e6)
        told = power_w * count * _SIDE / math.log2(1.0 + snr) / 1e6
        assert row["joules"]["aircomp"]["mean"] == pytest.approx(count * power_w * air + told)
        assert row["aircomp_nmse"]["mean"] == pytest.approx(1.0 / (count * snr))


def test_cell_seconds_and_joules(latency: tuple[Any, Path]) -> None:
    """Placement by placement, device by device; inverting costs the others less power."""
    power_w = 10.0 ** ((23.0 - 30.0) / 10.0)
    cell = Cell(bandwidth_hz=1e6)
    noise_w = 10.0 ** ((-174.0 + 60.0 + 5.0 - 30.0) / 10.0)
    for row in latency[0]["settings"]["cell"]:
        count, bits = row["num_devices"], 12012 + _SIDE
        found: dict[str, list[float]] = {
            name: [] for name in ("s", "own_s", "air_s", "j", "own_j", "air_j")
        }
        for seed in (5, 6):
            snrs = (power_w * cell.mean_gains(seed, range(count)) / noise_w).tolist()
            share = 1e6 / count
            times = [bits / (share * math.log2(1.0 + snr)) for snr in snrs]
            own = [bits / (share * math.log2(1.0 + count * snr)) for snr in snrs]
            found["s"].append(max(times))
            found["own_s"].append(max(own))
            uses = [bits / math.log2(1.0 + snr) for snr in snrs]
            found["j"].append(math.fsum(power_w * use / 1e6 for use in uses))
            found["own_j"].append(math.fsum(power_w * time for time in own))
            spent = [power_w * min(snrs) / snr for snr in snrs]
            told = [power_w * _SIDE / math.log2(1.0 + snr) / 1e6 for snr in snrs]
            found["air_j"].append(math.fsum(spent) * 501 / 1e6 + math.fsum(told))
            found["air_s"].append(
                501 / 1e6 + max(_SIDE / (share * math.log2(1.0 + snr)) for snr in snrs)
            )
        for name, kind, way in (
            ("s", "seconds", "ofdma"),
            ("own_s", "seconds", "ofdma_all_power"),
            ("air_s", "seconds", "aircomp"),
            ("j", "joules", "ofdma"),
            ("own_j", "joules", "ofdma_all_power"),
            ("air_j", "joules", "aircomp"),
        ):
            spread = row[kind][way]
            assert spread["mean"] == pytest.approx(math.fsum(found[name]) / 2)
            assert spread["smallest"] == pytest.approx(min(found[name]))
            assert spread["largest"] == pytest.approx(max(found[name]))


def test_the_digital_baseline_takes_as_long() -> None:
    """The very seconds that a simulated round reports."""
    gains = np.array([1.0, 0.25, 3.0])
    load = latency_costs.Payload(num_params=40, num_tensors=1, bits=8, bandwidth_hz=2e5)
    cost = latency_costs.round_cost(gains, 0.05, 0.2, load)
    updates = np.random.default_rng(0).standard_normal((3, 40))
    roots = np.sqrt(gains).astype(np.complex128)[:, None]
    _, sent = aggregate_digitally(
        updates,
        np.ones(3),
        ChannelState(roots, roots, 0.05, gains),
        Ofdma(bits=8, bandwidth_hz=2e5, power="density"),
        np.random.default_rng(1),
        power=0.2,
    )
    assert cost["seconds"]["ofdma"] == pytest.approx(sent.seconds)
    assert cost["joules"]["ofdma"] == pytest.approx(sent.joules.sum())
