"""Epsilon of features against the Gaussian mechanism's exact curve and Renyi's closed form."""

import sys

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fl_app.errors import ConfigError
from fl_app.privacy import DELTA, features_epsilon, require_accountant

CASES = [(z, releases) for z in (0.1, 0.5, 2.0, 8.0, 50.0) for releases in (1, 5, 60)]


def exact_epsilon(sensitivity_over_deviation: float, delta: float) -> float:
    """Solves Balle and Wang 2018 (arXiv:1805.06530), theorem 8, for epsilon."""
    mu = sensitivity_over_deviation

    def excess(epsilon: float) -> float:
        tail = np.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
        return float(norm.cdf(mu / 2 - epsilon / mu) - tail - delta)

    return float(brentq(excess, 0.0, 10 * mu**2 + 50 * mu + 50))


@pytest.mark.parametrize(("z", "releases"), CASES)
def test_it_bounds_the_exact_epsilon_from_above_and_not_by_much(z: float, releases: int) -> None:
    """T Gaussian mechanisms of sensitivity 2 C, deviation z C, are one with mu = 2 sqrt(T) / z.

    Renyi accounting tells no less than that; by Mironov's conversion with the best order it tells
    at most mu^2 / 2 + mu sqrt(2 log(1 / delta)).
    """
    mu = 2 * np.sqrt(releases) / z
    epsilon = features_epsilon(z, releases)
    assert epsilon >= exact_epsilon(mu, DELTA)
    # the table of orders is discrete: the best lies within 5 % of the best real order
    assert epsilon <= 1.05 * (mu**2 / 2 + mu * np.sqrt(2 * np.log(1 / DELTA)))


def test_nothing_sent_tells_nothing_and_more_tells_more() -> None:
    assert features_epsilon(1.0, 0) == 0.0
    assert features_epsilon(1.0, 1) < features_epsilon(1.0, 2) < features_epsilon(0.9, 2)


def test_noise_without_an_accountant_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_accountant()
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(ConfigError, match="pip install"):
        require_accountant()
