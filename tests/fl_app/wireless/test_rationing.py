"""The digital baseline when channel uses are short: never worse than sending nothing."""

import math
from typing import Any

import numpy as np
import pytest

from fl_app.wireless.channel import ChannelState, Fading, draw_state
from fl_app.wireless.codes import SIDE_BITS, code_book
from fl_app.wireless.digital import DigitalReport, Ofdma, aggregate_digitally
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.rationing import PLAN_BITS, best_bits, choose

_SIZES = [400, 30, 900, 64, 1]


def _updates(shared: float, num_devices: int = 10) -> np.ndarray:
    """Tensors of different sizes; ``shared`` is the size of what all devices have in common."""
    rng = np.random.default_rng(5)
    own = rng.standard_normal((num_devices, sum(_SIZES)))
    rows = own + shared * rng.standard_normal(sum(_SIZES))
    return (rows * np.repeat([1.0, 10.0, 0.3, 4.0, 2.0], _SIZES)).astype(np.float32)


def _state(noise_power: float, num_subcarriers: int = 64, num_devices: int = 10) -> ChannelState:
    fading = Fading(num_subcarriers=num_subcarriers)
    return draw_state(fading, 1, 0, mean_gains=np.ones(num_devices), noise_power=noise_power)


def _round(
    updates: np.ndarray, state: ChannelState, **options: Any
) -> tuple[np.ndarray | None, DigitalReport]:
    setup = Ofdma(**{"max_uses_per_real": 0.5, "bits": None, **options})
    weights = np.arange(1.0, len(updates) + 1.0)
    rng = np.random.default_rng(0)
    return aggregate_digitally(updates, weights, state, setup, rng, blocks=_SIZES)


@pytest.mark.parametrize("num_subcarriers", [1, 64])
@pytest.mark.parametrize("bits", [None, 1])
@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_half_a_use_per_real_helps_more_the_higher_the_snr(
    shared: float, bits: int | None, num_subcarriers: int
) -> None:
    """Below the energy of the mean, which is what sending nothing costs."""
    updates = _updates(shared)
    errors = []
    for noise_power in (10.0, 1.0, 0.01, 0.0):
        state = _state(noise_power, num_subcarriers)
        report = _round(updates, state, bits=bits)[1]
        assert report.channel_uses <= 0.5 * updates.shape[1]
        errors.append(report.realised_nmse)
    assert errors[0] < 1.0
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.6


def test_the_prediction_is_met_by_uncorrelated_updates() -> None:
    """Over 40 draws of Gaussian updates, within five standard errors of the mean difference."""
    rng, gaps = np.random.default_rng(7), []
    for draw in range(40):
        updates = rng.standard_normal((4, 500))
        setup = Ofdma(bits=1, max_uses_per_real=0.5)
        report = aggregate_digitally(
            updates, np.ones(4), _state(0.1, 4, num_devices=4), setup, np.random.default_rng(draw)
        )[1]
        gaps.append(report.realised_mse - report.predicted_mse)
        assert report.expected_mse == report.realised_mse
    assert abs(np.mean(gaps)) <= 5.0 * np.std(gaps, ddof=1) / math.sqrt(40)


def test_whole_power_spends_the_airs_energy_and_sends_more() -> None:
    """P per second on air for half a use per real: P q / (2 B), less what rounding leaves unused.

    The density P / B in 1 / K of the band is a tenth of that.
    """
    updates, state = _updates(0.0), _state(0.1)
    whole = _round(updates, state, power="whole", bandwidth_hz=1e3)[1]
    thin = _round(updates, state, power="density", bandwidth_hz=1e3)[1]
    side = SIDE_BITS * len(_SIZES) + PLAN_BITS
    budget = updates.shape[1] / 2.0 / 1e3
    for report, radiated in ((whole, 1.0), (thin, 0.1)):
        assert report.sent_reals < updates.shape[1]
        payload = report.joules * report.sent_reals / (report.sent_reals + side)  # one bit each
        assert payload.sum() == pytest.approx(radiated * 10 * budget, rel=0.02)
    assert whole.sent_reals > thin.sent_reals
    assert whole.realised_nmse < thin.realised_nmse


def test_all_who_send_send_the_same_entries_and_the_rest_stays_zero() -> None:
    updates = _updates(0.0)
    mean, report = _round(updates, _state(0.1), bits=12, max_uses_per_real=5.0)
    assert mean is not None
    assert not report.is_silent.any()
    assert np.count_nonzero(mean) == report.sent_reals < mean.size
    weights = np.arange(1.0, 11.0) / 55.0
    step = np.repeat(
        [
            np.ptp(part, axis=1).max() / 4095
            for part in np.split(updates, np.cumsum(_SIZES)[:-1], 1)
        ],
        _SIZES,
    )
    sent = mean != 0.0
    assert (np.abs(mean - weights @ updates) <= step + 1e-6)[sent].all()
    uses = report.payload_bytes * 8 / 12
    assert (np.abs(uses - report.sent_reals) < 1).all()


def test_chosen_bits_have_the_least_predicted_error() -> None:
    """Against a round with every number of bits up to 12; what is chosen is not always one bit."""
    updates, chosen = _updates(0.0, 3), []
    for limit in (0.3, 1.0, 3.0):
        state = _state(0.01, 8, num_devices=3)
        best = _round(updates, state, max_uses_per_real=limit)[1]
        tried = [
            _round(updates, state, max_uses_per_real=limit, bits=bits)[1].predicted_mse
            for bits in range(1, 13)
        ]
        assert best.bits < 12
        # The choice goes by capacities of equal shares, and does not know which entries are last
        # in the order; a wrong number of bits costs a factor of two and more.
        assert best.predicted_mse <= 1.2 * min(tried)
        chosen.append(best.bits)
    assert chosen == sorted(chosen)
    assert chosen[0] == 1 < chosen[-1]


def test_a_device_in_a_deep_fade_does_not_hold_the_others_back() -> None:
    gains = np.ones((6, 1), complex)
    gains[2] = 1e-4
    state = ChannelState(gains, gains, 0.01, np.ones(6))
    updates = _updates(0.0, 6)
    report = _round(updates, state)[1]
    assert report.is_silent.tolist() == [False, False, True, False, False, False]
    assert report.joules[2] == 0.0
    whole = aggregate_digitally(
        updates[[0, 1, 3, 4, 5]],
        np.array([1.0, 2.0, 4.0, 5.0, 6.0]),
        ChannelState(gains[:5] * 0 + 1, gains[:5] * 0 + 1, 0.01, np.ones(5)),
        Ofdma(bits=report.bits, max_uses_per_real=0.5),
        np.random.default_rng(0),
        blocks=_SIZES,
    )[1]
    assert report.sent_reals == whole.sent_reals


def test_the_choice_is_that_of_the_closed_form_by_loops() -> None:
    """All sets of best devices and all bits, term by term."""
    updates, weights = _updates(0.0, 4), np.array([0.1, 0.2, 0.3, 0.4])
    bounds = [(0, updates.shape[1])]
    books = [code_book(k, row, bounds) for k, row in enumerate(updates)]
    for rates in ([1.0, 2.0, 0.5, 1e-3], [5.0, 4.0, 3.0, 2.0], [0.1, 0.0, 0.2, 0.3]):
        order = sorted((k for k in range(4) if rates[k] > 0.0), key=lambda k: -rates[k])
        energy = [weights[k] ** 2 * books[k].energy for k in range(4)]
        best: tuple[float, int, list[int]] = (math.inf, 0, [])
        for bits in range(1, 25):
            for count in range(1, len(order) + 1):
                kept = order[:count]
                heard = math.fsum(weights[k] for k in kept)
                error = 0.0
                for k in range(4):
                    if k in kept:
                        error += (weights[k] / heard) ** 2 * books[k].predicted_error(bits)
                        error += (1.0 / heard - 1.0) ** 2 * energy[k]
                    else:
                        error += energy[k]
                reals = 0.7 / math.fsum(1.0 / rates[k] for k in kept) / bits
                total = min(1.0, reals) * error + (1.0 - min(1.0, reals)) * math.fsum(energy)
                best = min(best, (total, bits, sorted(kept)))
        sends = choose(books, weights, np.array(rates), 0.7, range(1, 25))
        assert np.flatnonzero(sends).tolist() == best[2]
        per_real = 0.7 / math.fsum(1.0 / rates[k] for k in best[2])
        assert best_bits(books, weights, sends, per_real, range(1, 25)) == best[1]
    assert not choose(books, weights, np.zeros(4), 0.7, range(1, 25)).any()


def test_bits_can_only_be_chosen_where_uses_are_short() -> None:
    with pytest.raises(ChannelError, match="max_uses_per_real"):
        Ofdma(bits=None)
