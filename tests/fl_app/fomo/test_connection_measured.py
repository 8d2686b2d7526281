"""What a connection says of its own error while it is measured."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.fomo.connection import Connection
from fl_app.wireless.mimo_design import design_connection
from tests.connection_fixtures import spec_of, vectors_of, weight_of, white_batch


def measuring(width: int = 16, weight: torch.Tensor | None = None, **changes: Any) -> Connection:
    """A connection that meets the same channels and the same noise whatever its options."""
    connection = Connection(width=width, spec=spec_of(**changes), seed=0, weight=weight)
    connection.measure()
    return connection


def energy(values: torch.Tensor) -> float:
    return float(values.double().square().sum())


@pytest.mark.parametrize("options", [{}, {"csi_error": 0.2}, {"peak_db": 3.0}, {"rotation": True}])
@pytest.mark.parametrize("outputs", [None, 5])
def test_the_nmse_is_that_of_what_came_out(options: dict[str, Any], outputs: int | None) -> None:
    """Over all passes together, padding left out; recomputed from inputs and outputs."""
    weight = None if outputs is None else weight_of(outputs, 16)
    connection = measuring(weight=weight, tx_snr_db=8.0, **options)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    error = total = 0.0
    for seed in range(3):
        vectors = vectors_of(2, 4, 16, seed=seed).detach()
        exact = vectors if weight is None else vectors @ weight.T
        error += energy((connection(vectors, mask) - exact)[mask])
        total += energy(exact[mask])
    figures = connection.measured.figures()
    assert figures["connection_nmse"] == pytest.approx(error / total, rel=1e-5)
    assert error > 0.0
    connection.measure()
    assert connection.measured.figures() == {}  # nothing has been measured yet


def test_for_white_vectors_it_is_the_closed_form() -> None:
    """Mean over 300 channels of the realised less the predicted NMSE; five standard errors."""
    connection = measuring(tx_snr_db=10.0)
    vectors, differences = white_batch(37, 16), []
    before = 0.0
    for _ in range(300):
        connection(vectors)
        realised = connection.measured.error - before
        before = connection.measured.error
        differences.append(realised / energy(vectors) - connection.predicted_nmse())
    assert abs(np.mean(differences)) <= 5.0 * np.std(differences, ddof=1) / math.sqrt(300)
    nmse = connection.measured.figures()["connection_nmse"]
    # squares are float32's
    assert nmse == pytest.approx(before / energy(vectors) / 300, rel=1e-6)


@pytest.mark.parametrize("rotation", [False, True])
def test_clipping_is_an_error_term_of_its_own(rotation: bool) -> None:
    """With noise: the difference to the same pass without a limit. Share: antennas in NumPy."""
    vectors = vectors_of(200, 16).detach()
    options: dict[str, Any] = {"power_per_use": False, "rotation": rotation, "tx_snr_db": 12.0}
    limited, free = measuring(peak_db=3.0, **options), measuring(**options)
    lost = limited(vectors) - free(vectors)
    figures = limited.measured.figures()
    wanted = energy(lost) / energy(vectors)
    assert wanted > 0.0
    # the difference of two float32 outputs is rounded in both
    assert figures["connection_clipping_nmse"] == pytest.approx(wanted, rel=1e-4)
    assert set(free.measured.figures()) == {"connection_nmse"}
    true, _ = limited.spec.draw(0, "measure", 0, 0)
    design = design_connection(np.eye(16), true, power=1.0)
    unit = vectors.double().numpy() - float(vectors.double().mean())
    if limited._rotation is not None:
        unit = unit @ limited._rotation.double().numpy()
    sent = np.abs(np.einsum("uti,bi->but", design.precoders, unit)) ** 2
    limit = 10.0**0.3 * sent.mean()  # one scale for all uses and antennas
    assert figures["connection_clipped_share"] == pytest.approx(float(np.mean(sent > limit)))
    assert 0.0 < figures["connection_clipped_share"] < 0.5


def test_tuning_is_not_measured() -> None:
    connection = Connection(width=16, spec=spec_of(tx_snr_db=5.0, peak_db=3.0), seed=0)
    connection.redraw(0)
    connection(vectors_of(4, 16)).sum().backward()
    assert connection.measured.figures() == {}
    connection.measure()
    vectors = vectors_of(4, 16)
    connection(vectors).sum().backward()
    once = connection.measured.figures()
    connection.redraw(1)
    connection(vectors).sum().backward()
    assert connection.measured.figures() == once  # gradients and tuning leave them alone


def test_without_noise_the_error_is_0_and_a_constant_counts() -> None:
    connection = measuring()
    assert torch.equal(connection(torch.full((2, 16), 3.7)), torch.full((2, 16), 3.7))
    connection(vectors_of(4, 16))
    assert connection.measured.figures() == {"connection_nmse": 0.0}
    assert connection.measured.energy == pytest.approx(
        energy(torch.full((2, 16), 3.7)) + energy(vectors_of(4, 16).detach()), rel=1e-6
    )
