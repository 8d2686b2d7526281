"""The randomised Hadamard rotation."""

import numpy as np
import pytest

from fl_app.wireless.errors import ChannelError
from fl_app.wireless.rotation import Rotation
from tests.oracles.air_mimo import hadamard_entry


@pytest.mark.parametrize("width", [1, 2, 5, 8, 13])
def test_rotation_is_the_signed_hadamard_matrix(width: int) -> None:
    """Column by column against parities; the signs are read off the first row, all ones in H."""
    rotation = Rotation(width, 3)
    matrix = rotation.apply(np.eye(width)).T
    size = rotation.padded_width
    assert size >= width > size // 2
    signs = np.sign(matrix[0])
    for i in range(size):
        for j in range(width):
            expected = hadamard_entry(i, j) * signs[j] / np.sqrt(size)
            assert matrix[i, j] == pytest.approx(expected)


def test_rotating_there_and_back_is_lossless_and_keeps_energy() -> None:
    """Complex vectors too; a product W x survives with both sides rotated."""
    rng = np.random.default_rng(1)
    rotation = Rotation(11, 4)
    vectors = rng.standard_normal((3, 2, 11)) + 1j * rng.standard_normal((3, 2, 11))
    rotated = rotation.apply(vectors)
    assert np.allclose(rotation.undo(rotated), vectors, atol=1e-14)
    assert np.sum(np.abs(rotated) ** 2) == pytest.approx(np.sum(np.abs(vectors) ** 2))
    weight = rng.standard_normal((5, 11))
    assert np.allclose(rotated @ rotation.apply(weight).T, vectors @ weight.T)


def test_rotation_spreads_outliers() -> None:
    """Two entries of 20 among 1024 of 0.1: peak over mean falls from about 500 to below 20."""
    rng = np.random.default_rng(2)
    vector = 0.1 * rng.standard_normal(1024)
    vector[[3, 500]] = 20.0

    def papr(values: np.ndarray) -> float:
        return float(np.max(values**2) / np.mean(values**2))

    assert papr(vector) > 450.0
    assert papr(Rotation(1024, 5).apply(vector)) < 20.0


def test_the_seed_decides_and_two_seeds_do_not_fit_together() -> None:
    vector = np.random.default_rng(3).standard_normal(64)
    assert np.array_equal(Rotation(64, 1).apply(vector), Rotation(64, 1).apply(vector))
    wrong = Rotation(64, 2).undo(Rotation(64, 1).apply(vector))
    assert np.linalg.norm(wrong - vector) > 0.5 * np.linalg.norm(vector)


def test_other_widths_are_refused() -> None:
    with pytest.raises(ChannelError, match="width"):
        Rotation(0, 1)
    with pytest.raises(ChannelError, match="rotated"):
        Rotation(4, 1).apply(np.ones((2, 5)))
    with pytest.raises(ChannelError, match="rotated"):
        Rotation(5, 1).undo(np.ones(5))
