"""Clipping at a device's antennas, against antenna by antenna in NumPy."""

from typing import Any

import numpy as np
import pytest
import torch

from fl_app.fomo.connection import Connection
from fl_app.wireless.mimo_design import design_connection
from tests.connection_fixtures import rounding_bound, spec_of, vectors_of


def clipped_by_antenna(connection: Connection, vectors: torch.Tensor) -> Any:
    """The oracle: [num_vectors, width] without noise, one scale for all uses, in float64."""
    true, _ = connection.spec.draw(0, "local", 0, 0)
    design = design_connection(np.eye(connection.width), true, power=1.0)
    exact = vectors.detach().double().numpy()
    turn = np.eye(connection.width)
    if connection._rotation is not None:
        turn = connection._rotation.double().numpy()
    sent = np.einsum("uti,bi->but", design.precoders, (exact - exact.mean()) @ turn)
    assert connection.spec.peak_db is not None
    peak = 10.0 ** (connection.spec.peak_db / 10.0)
    limit = np.sqrt(peak * np.mean(np.abs(sent) ** 2))
    kept = sent * np.minimum(1.0, limit / np.maximum(np.abs(sent), 1e-300))
    heard = np.einsum("uor,rt,but->bo", design.combiners, true, kept).real
    return exact.mean() + heard @ turn.T


@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("peak_db", [0.0, 3.0, 60.0])
@pytest.mark.parametrize("width", [4, 16])
def test_antennas_stay_below_the_limit(width: int, peak_db: float, rotation: bool) -> None:
    """At 60 dB nothing is so loud, and what arrives is what was sent."""
    spec = spec_of(peak_db=peak_db, rotation=rotation, power_per_use=False)
    connection = Connection(width=width, spec=spec, seed=0)
    connection.redraw(0)
    vectors = vectors_of(50, width).detach()
    wanted, bound = clipped_by_antenna(connection, vectors), rounding_bound(connection, vectors)
    assert np.abs(connection(vectors).numpy() - wanted).max() <= bound
    error = np.abs(wanted - vectors.double().numpy()).max()
    assert (error > 2.0 * bound) == (peak_db < 60.0)


def test_rotation_heals_what_clipping_does_to_outliers() -> None:
    """As much as the oracle says, and that is more than what rounding may do."""
    vectors = vectors_of(200, 16).detach()
    errors, oracle = {}, {}
    for rotation in (False, True):
        spec = spec_of(power_per_use=False, peak_db=3.0, rotation=rotation)
        connection = Connection(width=16, spec=spec, seed=0)
        connection.redraw(0)
        errors[rotation] = float((connection(vectors) - vectors).norm())
        lost = clipped_by_antenna(connection, vectors) - vectors.double().numpy()
        oracle[rotation] = float(np.linalg.norm(lost))
        bound = rounding_bound(connection, vectors) * np.sqrt(vectors.numel())
        assert abs(errors[rotation] - oracle[rotation]) <= bound
    assert errors[True] + bound < errors[False]
