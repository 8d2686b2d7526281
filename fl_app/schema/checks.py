"""Checks of option values, with errors that say what is allowed."""

from typing import Any

from fl_app.errors import ConfigError

MISSING: Any = "???"
"""What Hydra takes for "must be given"; the literal keeps this module free of Hydra."""


def require(key: str, value: object, ok: bool, allowed: str) -> None:
    """Raises ``ConfigError`` naming key, value and what is allowed, unless ``ok``."""
    if not ok:
        raise ConfigError(f"{key}={value!r} is not allowed; {allowed}")


def one_of(key: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ``ConfigError`` unless ``value`` is one of ``choices``."""
    require(key, value, value in choices, f"choose one of {', '.join(choices)}")
