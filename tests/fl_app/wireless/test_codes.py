"""How tensors become bits: signs with two levels, even levels, and what they promise."""

import math

import numpy as np
import pytest

from fl_app.wireless.codes import code_book
from fl_app.wireless.errors import ChannelError
from tests.oracles.air_digital import sign_code

_BOUNDS = [(0, 300), (300, 301), (301, 2301)]


def _row(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale = np.repeat([1.0, 5.0, 0.01], [300, 1, 2000])
    return (scale * (rng.standard_normal(2301) + 0.3)).astype(np.float32)


def test_one_bit_is_the_mean_of_the_entrys_side_tensor_by_tensor() -> None:
    """Levels travel as float32, so they are right to half of its steps."""
    row, rng = _row(1), np.random.default_rng(0)
    book = code_book(0, row, _BOUNDS)
    squares = 0.0
    for tensor, (start, end) in enumerate(_BOUNDS):
        part = row[start:end].astype(np.float64)
        decoded, variance = book.code(tensor, 1).send(part, rng)
        assert decoded == pytest.approx(sign_code(part.tolist()), rel=2.0**-24 * 1.01)
        assert variance == 0.0
        assert len(set(decoded.tolist())) <= 2
        squares += float(np.sum((decoded - part) ** 2))
    assert book.predicted_error(1) == pytest.approx(squares / row.size, rel=1e-9)


def test_one_bit_costs_a_gaussian_its_textbook_share() -> None:
    """1 - 2 / pi of the variance; E e^2 has variance Var(e^2) / n, by the sample itself."""
    row = np.random.default_rng(2).standard_normal(100_000)
    book = code_book(0, row, [(0, row.size)])
    decoded, _ = book.code(0, 1).send(row, np.random.default_rng(0))
    error = float(((row - decoded) ** 2).std()) / math.sqrt(row.size)
    assert abs(book.predicted_error(1) - (1.0 - 2.0 / math.pi)) <= 5.0 * error
    # and no other two levels do better for this threshold
    sides = row >= row.mean()
    for shift in (-0.05, 0.05):
        moved = np.where(sides, decoded * (1.0 + shift), decoded)
        assert np.mean((row - moved) ** 2) > book.predicted_error(1)


@pytest.mark.parametrize("bits", [2, 5, 12])
def test_even_levels_span_each_tensor_and_their_error_is_the_steps(bits: int) -> None:
    """Decoded entries lie at most one step of their own tensor off; the prediction is step^2/6."""
    row, rng = _row(3), np.random.default_rng(1)
    book = code_book(0, row, _BOUNDS)
    predicted = 0.0
    for tensor, (start, end) in enumerate(_BOUNDS):
        part = row[start:end].astype(np.float64)
        step = float(np.ptp(part)) / (2**bits - 1)
        decoded, variance = book.code(tensor, bits).send(part, rng)
        assert np.abs(decoded - part).max() <= step * (1 + 1e-9)
        assert variance <= step**2 / 4.0
        predicted += (end - start) * step**2 / 6.0
    assert book.predicted_error(bits) == pytest.approx(predicted / row.size, rel=1e-9)
    energy = float(np.mean(row.astype(np.float64) ** 2))
    assert book.energy == pytest.approx(energy, rel=1e-9)


def test_levels_are_float32_and_hold_float64_updates() -> None:
    """Both ends are rounded outwards."""
    row = np.random.default_rng(4).standard_normal(50)
    low, high = code_book(0, row, [(0, 50)]).spans[0]
    assert low <= row.min() <= row.max() <= high
    assert (float(np.float32(low)), float(np.float32(high))) == (low, high)
    assert high - low == pytest.approx(np.ptp(row), rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e200])
def test_what_float32_cannot_hold_is_refused(value: float) -> None:
    row = np.array([0.0, value])
    with pytest.raises(ChannelError, match="device 7"):
        code_book(7, row, [(0, 2)])
