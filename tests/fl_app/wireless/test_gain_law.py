"""Laws of gains, the long-term power limits that follow, and what antennas are worth to them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import exp1, gammaincc

from fl_app.wireless.channel import Fading, draw_state, known_law
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.gain_law import RAYLEIGH, RicianLaw, SampledLaw
from fl_app.wireless.power import CotafScaling, TruncatedInversion
from fl_app.wireless.radio import Radio
from fl_app.wireless.simo import balanced_law
from tests.oracles.air_power import rician_inverse_mean

_MANY = 40_000


@pytest.mark.parametrize("floor", [0.01, 0.1, 0.9, 1.5])
@pytest.mark.parametrize("factor", [0.0, 0.3, 3.0, 40.0])
def test_rician_expectation_is_the_series(factor: float, floor: float) -> None:
    """The oracle's own integral is good for 1e-4 at the smallest floor."""
    wanted = rician_inverse_mean(factor, floor)
    assert RicianLaw(factor).mean_inverse_above(floor) == pytest.approx(wanted, rel=2e-4)


def test_ends_of_the_rician_law() -> None:
    assert RAYLEIGH.mean_inverse_above(0.2) == exp1(0.2)
    assert RAYLEIGH.heard_share(0.2) == pytest.approx(math.exp(-0.2))
    still = RicianLaw(math.inf)
    assert [still.mean_inverse_above(floor) for floor in (0.5, 1.0, 1.5)] == [1.0, 1.0, 0.0]
    assert [still.heard_share(floor) for floor in (0.5, 1.5)] == [1.0, 0.0]
    # both ends are limits
    assert RicianLaw(1e-9).mean_inverse_above(0.2) == pytest.approx(exp1(0.2), rel=1e-7)
    assert RicianLaw(1e5).mean_inverse_above(0.5) == pytest.approx(1.0, rel=1e-4)
    with pytest.raises(ChannelError, match="factor"):
        RicianLaw(-1.0)


def test_a_sampled_law_counts() -> None:
    law = SampledLaw(np.array([0.25, 0.75, 1.0, 2.0]))
    assert law.heard_share(0.75) == 0.75
    assert law.mean_inverse_above(0.75) == pytest.approx((4.0 / 3.0 + 1.0 + 0.5) / 4.0)
    assert law.mean_inverse_above(3.0) == 0.0


@pytest.mark.parametrize("csi_error", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["awgn", "rayleigh", "rician"])
def test_the_law_of_estimates_is_the_law_of_what_is_drawn(kind: Any, csi_error: float) -> None:
    """Mean 1, share above a floor and inverse, within five standard errors of 40000 gains."""
    fading = Fading(kind=kind, rician_k=3.0, num_subcarriers=_MANY)
    state = draw_state(
        fading, 4, 0, mean_gains=np.array([2.0]), noise_power=0.1, csi_error=csi_error
    )
    assert state.law == known_law(fading, csi_error)
    gains = np.abs(state.known_gains[0]) ** 2 / 2.0
    figures: list[tuple[Callable[..., Any], float]] = [
        (lambda g: g, 1.0),
        (lambda g: g >= 0.6, state.law.heard_share(0.6)),
        (lambda g: np.where(g >= 0.6, 1.0 / g, 0.0), state.law.mean_inverse_above(0.6)),
    ]
    for of, wanted in figures:
        error = float(of(gains).std()) / math.sqrt(_MANY)
        assert abs(float(of(gains).mean()) - wanted) <= 5.0 * error + 1e-12


@pytest.mark.parametrize("gain_floor", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("csi_error", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["awgn", "rayleigh", "rician"])
def test_truncated_inversion_keeps_its_mean_power_over_every_law(
    kind: Any, csi_error: float, gain_floor: float
) -> None:
    """E|b|^2 = P for the device that sets eta and less for others, within 5 standard errors."""
    fading = Fading(kind=kind, rician_k=3.0, num_subcarriers=_MANY)
    large, targets, power = np.array([0.5, 2.0]), np.array([1.0, 0.7]), np.array([2.0, 2.0])
    state = draw_state(fading, 5, 0, mean_gains=large, noise_power=0.1, csi_error=csi_error)
    plan = TruncatedInversion(gain_floor=gain_floor).plan(state, targets, power)
    spent = np.abs(plan.precoders) ** 2
    error = spent.std(axis=1) / math.sqrt(_MANY)
    assert abs(spent[0].mean() - 2.0) <= 5.0 * error[0] + 1e-12
    limits = power * large / targets**2
    assert abs(spent[1].mean() - 2.0 * limits[0] / limits[1]) <= 5.0 * error[1] + 1e-12


def test_a_floor_above_every_gain_silences_all() -> None:
    state = draw_state(Fading(kind="awgn"), 1, 0, mean_gains=np.ones(2), noise_power=0.1)
    plan = TruncatedInversion(gain_floor=1.5).plan(state, np.ones(2), np.ones(2))
    assert not plan.is_heard.any()
    assert plan.sum_mse.tolist() == [0.0]
    with pytest.raises(ChannelError, match="above every gain"):
        TruncatedInversion(gain_floor=1.5, knows_silence=False).plan(state, np.ones(2), np.ones(2))


# --- behind a receive beam ---------------------------------------------------------------------


@pytest.mark.parametrize("num_antennas", [2, 4, 8])
def test_one_device_behind_its_beam_has_a_gamma_gain(num_antennas: int) -> None:
    """Shape n and mean n; E[1/g; g >= th] over the unit mean is n Gamma(n - 1, n th) / Gamma(n).

    Five standard errors of the 2048 gains drawn, from the closed second moments.
    """
    n, floor = num_antennas, 0.3
    mean, law = balanced_law(1, n, Fading(), 0.0)
    assert abs(mean - n) <= 5.0 * math.sqrt(n / 2048)
    wanted = n / (n - 1.0) * gammaincc(n - 1, n * floor)
    inverses = np.where(law.gains >= floor, 1.0 / law.gains, 0.0)
    error = inverses.std() / math.sqrt(2048)
    # the law is divided by the mean that was drawn, which moves the floor and the scale a little
    scale = 5.0 * (1.0 + floor) * math.sqrt(1.0 / n / 2048)
    assert abs(law.mean_inverse_above(floor) - wanted) <= 5.0 * error + scale * wanted


def _radio(num_antennas: int, **more: Any) -> Radio:
    fading = Fading(num_subcarriers=16)
    return Radio(
        fading=fading,
        seed=3,
        power=1.0,
        noise_power=0.1,
        num_antennas=num_antennas,
        treats_alike=True,
        **more,
    )


@pytest.mark.parametrize("num_devices", [1, 5])
def test_more_antennas_make_less_error_where_power_is_a_long_term_limit(num_devices: int) -> None:
    """Truncated inversion and COTAF; for one device the closed forms, within the law's error.

    COTAF's eta is P g_th times the mean gain n; truncated inversion's is P n over the expectation,
    which for one antenna is E1(g_th).
    """
    weights = np.arange(1.0, num_devices + 1.0)
    targets, power, floor = weights / weights.sum(), np.ones(num_devices), 0.1
    errors: dict[str, list[float]] = {"truncated": [], "cotaf": []}
    for n in (1, 2, 4, 8):
        state = _radio(n).state(0, range(num_devices), weights)
        plans = {
            "truncated": TruncatedInversion(gain_floor=floor).plan(state, targets, power),
            "cotaf": CotafScaling(gain_floor=floor).plan(state, targets, power),
        }
        for name, plan in plans.items():
            errors[name].append(float(plan.sum_mse.max()))
        if num_devices > 1:
            continue
        inverse = exp1(floor) if n == 1 else n / (n - 1.0) * gammaincc(n - 1, n * floor)
        slack = 5.0 * math.sqrt(1.0 / n / 2048) * (1.0 + floor) * 3.0 if n > 1 else 1e-12
        listens = np.isfinite(plans["truncated"].denoising)
        assert plans["truncated"].denoising[listens] == pytest.approx(n / inverse, rel=slack)
        assert plans["cotaf"].denoising[listens] == pytest.approx(n * floor, rel=slack)
    for found in errors.values():
        assert found == sorted(found, reverse=True)
        assert found[0] > (3.0 if num_devices == 1 else 1.3) * found[-1]


@pytest.mark.parametrize("kind", ["awgn", "rayleigh"])
def test_the_power_limit_holds_behind_the_beam(kind: Any) -> None:
    """Over 40 rounds of 16 subcarriers that the law was not drawn from; five standard errors of
    both, rounds being independent."""
    fading = Fading(kind=kind, num_subcarriers=16)
    radio = Radio(
        fading=fading, seed=8, power=1.0, noise_power=0.1, num_antennas=4, treats_alike=True
    )
    control, ones = TruncatedInversion(gain_floor=0.4), np.ones(4)
    spent = [
        (np.abs(control.plan(radio.state(r, range(4), ones), ones, ones).precoders) ** 2).mean()
        for r in range(40)
    ]
    law = balanced_law(4, 4, fading, 0.0)[1]
    inverses = np.where(law.gains >= 0.4, 1.0 / law.gains, 0.0)
    own = inverses.std() / inverses.mean() / math.sqrt(law.gains.size / 4)
    error = math.hypot(np.std(spent, ddof=1) / math.sqrt(40), own)
    assert abs(np.mean(spent) - 1.0) <= 5.0 * error + 1e-12


def test_devices_at_any_distance_are_treated_alike() -> None:
    """A mean gain scales a device's channel and nothing else."""
    radio = _radio(4)
    equal = radio.state(2, [0, 5], np.array([1.0, 9.0]))
    again = radio.state(2, [0, 5], np.array([7.0, 1.0]))
    assert np.array_equal(equal.gains, again.gains)
    gain, law = balanced_law(2, 4, radio.fading, 0.0)
    assert equal.law is law
    assert equal.mean_gains.tolist() == [gain, gain]
