"""The error-free link hands every update over, bit for bit, without chance."""

import numpy as np

from fl_app.schema import IdealChannel
from strategies.build_uplink import build_uplink
from strategies.uplink import IdealUplink, Sent


def test_the_ideal_uplink_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 7)).astype(np.float32)
    weights = np.array([3.0, 1.0, 2.0])
    kept, kept_weights = rows.copy(), weights.copy()
    state = rng.bit_generator.state
    sent = Sent(updates=rows, weights=weights, round=1, devices=[0, 1, 4], sizes=[3, 4])
    received = IdealUplink().receive(sent, rng)
    assert received.is_heard.tolist() == [True] * 3
    assert received.airtime is None
    assert np.array_equal(received.rows, kept)
    assert received.rows.dtype == np.float32
    assert np.array_equal(received.weights, kept_weights)
    assert np.array_equal(rows, kept)
    assert received.report == {}
    assert rng.bit_generator.state == state  # nothing was drawn


def test_the_ideal_channel_is_the_ideal_uplink() -> None:
    assert isinstance(build_uplink(IdealChannel(), 0), IdealUplink)
