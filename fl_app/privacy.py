"""What Gaussian noise on features is worth: (epsilon, delta) from Opacus' accountant."""

from typing import Any

from fl_app.errors import ConfigError

DELTA = 1e-5
"""Of every epsilon reported."""
SENSITIVITY = 2.0
"""Of one example's features, in clipping norms: any two clipped rows are that close."""
_ORDERS = [
    *(1 + 2.0**-i for i in range(30, 4, -1)),
    *(1 + i / 20 for i in range(1, 200)),
    *(2.0**i for i in range(4, 17)),
]
"""Renyi orders the best of which is taken; wide, so that the best is never at an end."""


def features_epsilon(noise_multiplier: float, releases: int, *, delta: float = DELTA) -> float:
    """Returns the epsilon of one example's features, sent several times.

    Two data sets are neighbours if they differ in one example, replaced by another with equally
    many tokens. Renyi accounting (Mironov 2017, arXiv:1702.07476) of ``releases`` Gaussian
    mechanisms. No amplification by sampling is claimed: batches are drawn without replacement from
    a seed the server knows.

    Args:
        noise_multiplier: z, the noise's deviation over the clipping norm, > 0.
        releases: how often the example's features were sent, >= 0.
        delta: in (0, 1).

    Raises:
        ConfigError: Opacus is not installed.
    """
    if releases == 0:
        return 0.0
    return float(_accountant(noise_multiplier, releases).get_epsilon(delta, alphas=_ORDERS))


def require_accountant() -> None:
    """Refuses noise nobody can account for, before the work.

    Raises:
        ConfigError: Opacus is not installed.
    """
    _accountant(1.0, 1)


def _accountant(noise_multiplier: float, releases: int) -> Any:
    try:  # seconds and many modules, which only runs with noise need
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise ConfigError(
            "strategy.privacy.noise_multiplier > 0 is accounted for by Opacus, which is not "
            "installed: pip install -c constraints.txt opacus, or set it to 0"
        ) from error
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier / SENSITIVITY, 1.0, releases)]
    return accountant
