"""Prices of layouts: bytes as they are sent, and the seconds and joules of these bytes."""

import math

import numpy as np
import pytest

from fl_app import updates
from fl_app.records import to_blob
from fl_app.schema import DeviceConfig
from fl_app.updates import blob_bytes, num_reals
from tests.allocation_fixtures import allocated, sent_bytes
from tests.fixtures_models import TinyModels


@pytest.mark.parametrize("aggregation", ["freeze-a", "factors"])
@pytest.mark.parametrize("channel", ["ideal", "digital", "aircomp"])
def test_what_is_broadcast_is_priced_as_it_is_sent(
    tiny: TinyModels, channel: str, aggregation: str
) -> None:
    """A serialised adapter, whatever channel the updates take; and seconds go by its bytes."""
    words = ("peft=lora_linear_up", f"channel={channel}", f"peft.aggregation={aggregation}")
    made, adapter, prices = allocated(tiny, *words)
    near, far = (DeviceConfig(distance_m=distance) for distance in (100, 2000))
    price = prices.of(near)(list(made.server.values()))
    assert price.downlink_bytes == sent_bytes(adapter.read())
    small = prices.of(near)([0, 0, 0, 1])
    ratio = price.downlink_bytes / small.downlink_bytes
    assert price.downlink_s == pytest.approx(ratio * small.downlink_s, rel=1e-12)
    assert prices.of(far)([0, 0, 0, 1]).downlink_s > small.downlink_s


@pytest.mark.parametrize("channel", ["ideal", "digital", "aircomp"])
def test_factors_in_turn_are_priced_by_the_larger_half(tiny: TinyModels, channel: str) -> None:
    """B is sent in odd rounds and A in even ones; both are broadcast in every round."""
    words = ("peft=lora_linear_up", "peft.targets=[all-linear]", f"channel={channel}")
    made, adapter, prices = allocated(tiny, *words, "peft.aggregation=alternate")
    parameters = adapter.read()
    halves = [updates.travelling(parameters, "alternate", number) for number in (1, 2)]
    assert 0 < num_reals(halves[0]) != num_reals(parameters)
    sent = {
        "ideal": max(map(sent_bytes, halves)),
        "digital": max(map(num_reals, halves)),  # 8 bits a real
        "aircomp": 4 * max(map(num_reals, halves)),
    }[channel]
    device = DeviceConfig()
    price = prices.of(device)(list(made.server.values()))
    assert price.uplink_bytes == sent
    assert price.downlink_bytes == sent_bytes(parameters)
    assert price.params == num_reals(parameters)
    whole = allocated(tiny, *words, "peft.aggregation=factors")[2].of(device)
    both = whole(list(made.server.values()))
    per_byte = both.uplink_s / both.uplink_bytes
    assert price.uplink_s == pytest.approx(sent * per_byte, rel=1e-9)
    parts = price.uplink_s + price.compute_s + price.downlink_s
    assert price.round_s == pytest.approx(parts, rel=1e-9)


@pytest.mark.parametrize("channel", ["ideal", "digital"])
@pytest.mark.parametrize("aggregation", ["freeze-a", "factors", "alternate"])
def test_joules_are_those_of_what_is_sent(tiny: TinyModels, channel: str, aggregation: str) -> None:
    """P_compute t_compute + P_tx t_up + P_circuit (t_up + t_down), rates by Shannon's formula."""
    words = (f"channel={channel}", f"peft.aggregation={aggregation}", "finetune.max_steps=3")
    made, adapter, prices = allocated(tiny, "peft=lora_linear_up", *words)
    parameters, band = adapter.read(), 2e5
    device = DeviceConfig(distance_m=700, bandwidth_hz=band, tx_power_dbm=20.0, flops_per_s=1e9)
    price = prices.of(device)(list(made.server.values()))
    halves = [updates.travelling(parameters, aggregation, number) for number in (1, 2)]
    sent = max(map(sent_bytes if channel == "ideal" else num_reals, halves))  # 8 bits a real
    loss_db = 128.1 + 37.6 * math.log10(0.7)
    noise_w = 10 ** ((-174.0 + 5.0 - 30.0) / 10) * band

    def seconds(num_bytes: int, dbm: float) -> float:
        snr = 10 ** ((dbm - 30.0 - loss_db) / 10) / noise_w
        return 8 * num_bytes / (band * math.log2(1 + snr))

    compute_s = 3 * price.flops / 1e9
    up_s, down_s = seconds(sent, 20.0), seconds(sent_bytes(parameters), 43.0)
    assert price.uplink_bytes == sent
    assert price.joules == pytest.approx(5 * compute_s + 0.1 * up_s + up_s + down_s, rel=1e-9)
    assert price.round_s == pytest.approx(down_s + compute_s + up_s, rel=1e-9)


@pytest.mark.parametrize("shapes", [{}, {"a": (2, 3)}, {"b.é": (1,), "a": (0, 4), "c": (7, 5, 3)}])
def test_bytes_of_a_blob_are_known_from_its_shapes(shapes: dict[str, tuple[int, ...]]) -> None:
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    assert blob_bytes(shapes) == len(to_blob(arrays))
