"""A small adapter that steps of pairs change, and the roundings of its arithmetic."""

import numpy as np

from fl_app.updates import Update

SHAPES = {"b": (4,), "a": (2, 3)}
EPS32, EPS64 = float(np.finfo(np.float32).eps), float(np.finfo(np.float64).eps)
THETA: Update = {
    name: np.random.default_rng(3).normal(0, 1, shape).astype(np.float32)
    for name, shape in SHAPES.items()
}


def flat(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Returns all entries in float64, arrays in the order of their names."""
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)]).astype(np.float64)
