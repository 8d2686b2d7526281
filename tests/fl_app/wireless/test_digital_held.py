"""Digital rounds in which devices hold different entries."""

import math
from typing import Any

import numpy as np
import pytest

from fl_app.wireless.channel import ChannelState
from fl_app.wireless.codes import SIDE_BITS
from fl_app.wireless.digital import DigitalReport, Ofdma, aggregate_digitally
from fl_app.wireless.digital_held import aggregate_held
from fl_app.wireless.errors import ChannelError

SIZES = [40, 6, 90]
WEIGHTS = np.array([1.0, 3.0, 2.0, 5.0])


def _flat(noise_power: float = 0.1) -> ChannelState:
    ones = np.ones((len(WEIGHTS), 2), complex)
    return ChannelState(ones, ones, noise_power, np.ones(len(WEIGHTS)))


def _updates() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((len(WEIGHTS), sum(SIZES)))


def _held() -> np.ndarray[Any, Any]:
    """Device 0 lacks the second tensor, device 1 two thirds of the third; nobody has the last."""
    held = np.ones((len(WEIGHTS), sum(SIZES)), dtype=np.bool_)
    held[0, 40:46] = False
    held[1, 76:] = False
    held[:, -1] = False
    return held


def _receive(held: Any, draw: int = 0, **changes: Any) -> tuple[Any, DigitalReport]:
    updates = _updates()
    updates[~held] = np.nan  # never looked at
    setup = Ofdma(bandwidth_hz=1e6, **({"bits": 8} | changes))
    rng = np.random.default_rng(draw)
    return aggregate_held(updates, WEIGHTS, _flat(), setup, rng, presence=held, blocks=SIZES)


def _exact(held: Any) -> Any:
    weights = WEIGHTS[:, None] * held
    total = weights.sum(axis=0)
    return (weights * _updates()).sum(axis=0) / np.where(total > 0, total, 1)


def test_everybody_with_everything_costs_and_errs_as_before() -> None:
    held = np.ones((len(WEIGHTS), sum(SIZES)), dtype=np.bool_)
    for bits in (1, 4, 8):
        _, one = _receive(held, bits=bits)
        setup = Ofdma(bandwidth_hz=1e6, bits=bits)
        rng = np.random.default_rng(0)
        _, two = aggregate_digitally(_updates(), WEIGHTS, _flat(), setup, rng, blocks=SIZES)
        for name in ("payload_bytes", "control_bytes", "joules", "tx_power", "rates_bps"):
            assert np.allclose(getattr(one, name), getattr(two, name), rtol=1e-12)
        assert (one.channel_uses, one.control_uses) == (two.channel_uses, two.control_uses)
        assert one.seconds == pytest.approx(two.seconds, rel=1e-12)
        assert one.mean_energy == pytest.approx(two.mean_energy, rel=1e-9)
        for name in ("predicted_mse", "expected_mse"):
            assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-9)


def test_an_entry_is_divided_by_the_weights_that_hold_it() -> None:
    """At 24 bits to a rounding of 2^-24 of a span; nobody's entry is 0."""
    held = _held()
    mean, report = _receive(held, bits=24)
    assert np.abs(mean - _exact(held)).max() <= 8 / 2**24
    assert mean[-1] == 0
    assert report.sent_reals == sum(SIZES) - 1


def test_bytes_are_those_of_the_entries_held() -> None:
    held = _held()
    _, report = _receive(held, bits=5)
    assert report.payload_bytes.tolist() == [math.ceil(5 * n / 8) for n in held.sum(axis=1)]
    tensors = [2, 3, 3, 3]
    assert report.control_bytes.tolist() == [SIDE_BITS // 8 * n for n in tensors]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_what_is_realised_is_what_is_expected(bits: int) -> None:
    """Within five standard errors over 400 roundings; for one bit nothing is random."""
    held = _held()
    reports = [_receive(held, draw, bits=bits)[1] for draw in range(400)]
    realised = np.array([report.realised_mse for report in reports])
    error = realised.std(ddof=1) / math.sqrt(len(realised))
    assert abs(realised.mean() - reports[0].expected_mse) <= 5 * error + 1e-12
    assert reports[0].realised_mse == pytest.approx(
        float(np.mean((_receive(held, 0, bits=bits)[0] - _exact(held)) ** 2)), rel=1e-9
    )


def test_a_device_without_any_entry_sends_nothing() -> None:
    held = _held()
    held[2] = False
    mean, report = _receive(held, bits=24)
    assert np.abs(mean - _exact(held)).max() <= 8 / 2**24
    assert report.payload_bytes[2] == report.control_bytes[2] == 0


def test_rationing_and_other_shapes_are_refused() -> None:
    with pytest.raises(ChannelError, match="max_uses_per_real"):
        _receive(_held(), max_uses_per_real=0.5)
    with pytest.raises(ChannelError, match="presence"):
        aggregate_held(
            _updates(),
            WEIGHTS,
            _flat(),
            Ofdma(bandwidth_hz=1e6, bits=8),
            np.random.default_rng(0),
            presence=_held()[:, 1:],
            blocks=SIZES,
        )
