"""Rates against their closed form and limits, and prices against sums by hand."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from fl_app.resources.devices import DEVICE_CLASSES, DeviceClass, device_class
from fl_app.resources.errors import ResourceError
from fl_app.resources.families import architecture_of
from fl_app.resources.links import Link, bandwidth_hz, d2d_path_loss_db, rate_bps, snr_hz
from fl_app.resources.price import Pricer
from fl_app.resources.step import StepModel
from fl_app.resources.tuning import lora
from tests.fl_app.resources.tuned_models import config_of

_SNR = st.floats(1e3, 1e12)
_SHARE = st.floats(1e-4, 0.999)


def test_rate_of_a_band_by_hand() -> None:
    assert rate_bps(1e6, 7e6) == pytest.approx(3e6, rel=1e-12)  # log2(8) bits a hertz
    assert rate_bps(0.0, 7e6) == 0.0
    assert rate_bps(math.inf, 7e6) == pytest.approx(7e6 / math.log(2.0), rel=1e-12)
    # 1 W at gain 1e-10 over -174 + 4 dBm/Hz
    assert snr_hz(1.0, 1e-10, 4.0) == pytest.approx(1e-10 / 1e-20, rel=1e-12)


@settings(deadline=None)
@given(_SNR, st.floats(1.0, 1e9), st.floats(1.0001, 100.0))
def test_rate_rises_and_its_slope_falls_towards_the_limit(
    snr: float, band: float, factor: float
) -> None:
    low, high = float(rate_bps(band, snr)), float(rate_bps(band * factor, snr))
    assert low < high * (1.0 + 1e-12) <= snr / math.log(2.0) * (1.0 + 1e-9)
    middle = float(rate_bps(band * (1.0 + factor) / 2.0, snr))
    assert middle >= (low + high) / 2.0 * (1.0 - 1e-12)


@settings(deadline=None)
@given(_SNR, _SHARE)
def test_band_of_a_rate_is_the_root_a_numerical_solver_finds(snr: float, share: float) -> None:
    rate = share * snr / math.log(2.0)
    band = float(bandwidth_hz(rate, snr))
    # snr / B lies between 1 - share and e^(2 / share)
    root = brentq(
        lambda log_band: float(rate_bps(math.exp(log_band), snr)) - rate,
        math.log(snr) - 3.0 / share if share > 0.01 else math.log(snr) - 40.0,
        math.log(snr / (1.0 - share)) + 1.0,
        xtol=1e-13,
    )
    assert band == pytest.approx(math.exp(root), rel=1e-7)
    assert float(rate_bps(band, snr)) == pytest.approx(rate, rel=1e-9)


def test_band_near_and_beyond_the_limit() -> None:
    limit = 1e6 / math.log(2.0)
    assert bandwidth_hz(0.0, 1e6) == 0.0
    assert bandwidth_hz(limit, 1e6) == math.inf
    assert bandwidth_hz(2.0 * limit, 1e6) == math.inf
    for rest in (1e-5, 2e-6, 1e-6, 5e-7, 1e-8):  # both sides of the change of formula
        band = bandwidth_hz(limit * (1.0 - rest), 1e6)
        assert float(rate_bps(band, 1e6)) == pytest.approx(limit * (1.0 - rest), rel=1e-9)
        assert float(band) == pytest.approx(1e6 / (2.0 * rest), rel=1e-2)


def test_path_loss_between_devices() -> None:
    assert d2d_path_loss_db(1000.0) == 148.0
    assert d2d_path_loss_db(100.0) == pytest.approx(108.0, abs=1e-9)
    with pytest.raises(ResourceError, match=r"distance_m=0.0 must be finite and > 0"):
        d2d_path_loss_db(0.0)


def test_price_of_a_layout_by_hand() -> None:
    shapes = architecture_of(config_of("gpt2"))
    step = StepModel(shapes, lora("c_attn"), batch=2, sequence=5)
    device = DeviceClass(
        name="toy", memory_bytes=1e9, flops_per_s=1e6, compute_power_w=3.0, tx_power_w=0.5
    )
    up = Link(bandwidth_hz=1e5, tx_power_w=0.5, loss_db=100.0)
    down = Link(bandwidth_hz=1e6, tx_power_w=20.0, loss_db=100.0)
    pricer = Pricer(step, device, uplink=up, downlink=down, num_steps=4, value_bytes=2.0)
    sizes = [0, 1, 0, 3, 0]
    price, cost = pricer(sizes), step.cost(sizes)
    payload = 2 * (1 + 3) * (16 + 48)
    assert price.uplink_bytes == price.downlink_bytes == payload
    assert price.step_s == pytest.approx(cost.flops / 1e6)
    up_s, down_s = 8 * payload / up.rate_bps, 8 * payload / down.rate_bps
    assert price.round_s == pytest.approx(down_s + 4 * price.step_s + up_s)
    assert price.joules == pytest.approx(
        3.0 * 4 * price.step_s + 0.5 * up_s + 1.0 * (up_s + down_s)
    )
    assert up.joules(payload) == pytest.approx(0.5 * up_s)
    assert price.memory_bytes == cost.memory_bytes
    assert price.as_dict()["params"] == cost.tuned_params == payload // 2


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: device_class("toaster"), "device 'toaster' is unknown; choose one of"),
        (lambda: Link(bandwidth_hz=0.0, tx_power_w=1.0, loss_db=1.0), "bandwidth_hz=0.0 must be"),
        (lambda: Link(bandwidth_hz=1.0, tx_power_w=1.0, loss_db=math.nan), "loss_db=nan must be"),
        (
            lambda: DeviceClass(
                name="x", memory_bytes=0.0, flops_per_s=1.0, compute_power_w=1.0, tx_power_w=1.0
            ),
            "memory_bytes=0.0 of device class 'x' must be finite and > 0",
        ),
    ],
)
def test_impossible_devices_and_links_are_named(build: Any, words: str) -> None:
    with pytest.raises(ResourceError, match=words):
        build()


def test_device_classes_get_stronger() -> None:
    speeds = [DEVICE_CLASSES[name].flops_per_s for name in ("phone", "jetson", "laptop")]
    assert np.all(np.diff(speeds) > 0.0)
