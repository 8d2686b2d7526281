"""Codecs against their definitions; the mean of stochastic rounding against its own spread."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from fl_app.codec import CODECS, relative_error, restore, squeeze
from fl_app.errors import WireError
from fl_app.seeding import generator

F32 = np.float32
_any = hnp.arrays(
    F32,
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
    elements={"allow_nan": False, "allow_infinity": False},
)


def _rows() -> np.ndarray:
    return generator(0, "rows").normal(size=(5, 16)).astype(F32) * np.array(
        [[1e-6], [1], [0], [300], [7]], F32
    )


def test_float32_is_exact_and_a_copy() -> None:
    array = np.array([1.5, np.nan, np.inf], F32)
    parts = squeeze(array, "float32", generator(0))
    array[:] = 0
    np.testing.assert_array_equal(restore(parts, "float32"), np.array([1.5, np.nan, np.inf], F32))


def test_float16_rounds_to_nearest() -> None:
    # Between 2048 and 4096 halves lie 2 apart; ties go to the even one.
    array = np.array([2049.0, 2051.0, 2050.9, 65504.0, 2**-24], F32)
    expected = np.array([2048.0, 2052.0, 2050.0, 65504.0, 2**-24], F32)
    parts = squeeze(array, "float16", generator(0))
    assert parts["values"].nbytes * 2 == array.nbytes
    np.testing.assert_array_equal(restore(parts, "float16"), expected)


def test_float16_overflow_is_refused_by_name() -> None:
    with pytest.raises(WireError, match="'hidden' holds 7e\\+04") as caught:
        squeeze(np.array([7e4], F32), "float16", generator(0), name="hidden")
    assert caught.value.reason == "overflow"


@given(_any)
@settings(max_examples=200, deadline=None)
def test_int8_moves_no_entry_by_a_scale_or_more(array: np.ndarray) -> None:
    parts = squeeze(array, "int8", generator(1))
    error = np.abs(restore(parts, "int8").astype(np.float64) - array)
    # The decoded product itself is rounded to float32.
    rounding = np.abs(array).astype(np.float64) * 2**-23 + 1e-45
    assert (error <= parts["scale"] + rounding).all()
    peak = np.abs(array).max(axis=-1, keepdims=True, initial=0)
    assert (parts["scale"] <= peak.astype(np.float64) / 127 * (1 + 2**-22) + 2e-45).all()
    assert (np.abs(parts["codes"].astype(int)) <= 127).all()


def test_int8_is_right_on_average_within_five_standard_errors() -> None:
    array, draws = _rows(), 4000
    rng = generator(2)
    samples = np.stack([restore(squeeze(array, "int8", rng), "int8") for _ in range(draws)])
    samples = samples.astype(np.float64)
    spread = samples.std(axis=0, ddof=1) / np.sqrt(draws)
    # An entry on a level is always decoded alike, up to the float32 rounding of scale and product.
    slack = 2 * np.spacing(np.abs(array)).astype(np.float64)
    assert (np.abs(samples.mean(axis=0) - array) <= 5 * spread + slack).all()
    assert (spread > 0).mean() > 0.7  # else the line above would say little


def test_int8_scatters_as_theory_says() -> None:
    """A level f above the lower one has variance scale^2 f (1 - f)."""
    draws, scale = 20000, 1.0
    row = np.array([127.0, 0.25, -0.5, 3.0], F32)
    rng = generator(3)
    samples = np.stack([restore(squeeze(row, "int8", rng), "int8") for _ in range(draws)])
    fraction = row - np.floor(row)
    expected = scale**2 * fraction * (1 - fraction)
    # Variance of a Bernoulli's sample variance is at most about f (1 - f) / draws.
    np.testing.assert_allclose(samples.var(axis=0), expected, atol=5 * 0.5 / np.sqrt(draws))
    assert (samples[:, [0, 3]] == row[[0, 3]]).all()


def test_int8_of_zero_and_constant_rows() -> None:
    array = np.array([[0, 0, 0], [-2.5, -2.5, -2.5], [1e-45, 0, 0], [3.4e38, -3.4e38, 0]], F32)
    parts = squeeze(array, "int8", generator(4))
    assert parts["scale"][0, 0] == 0
    restored = restore(parts, "int8")
    np.testing.assert_array_equal(restored[0], 0)
    np.testing.assert_allclose(restored[1], -2.5, rtol=2**-22)
    np.testing.assert_array_equal(restored[2], array[2])
    np.testing.assert_allclose(restored[3], array[3], rtol=2**-22)
    assert np.isfinite(restored).all()


def test_int8_depends_on_the_stream_alone() -> None:
    one, same, other = (squeeze(_rows(), "int8", generator(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one["codes"], same["codes"])
    assert (one["codes"] != other["codes"]).any()


@pytest.mark.parametrize("how", ["float16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_lossy_codecs_refuse_what_has_no_code(how: str, value: float) -> None:
    with pytest.raises(WireError) as caught:
        squeeze(np.array([1, value], F32), how, generator(0))
    assert caught.value.reason == "not-finite"


def test_what_does_not_fit_is_refused() -> None:
    good = squeeze(_rows(), "int8", generator(0))
    cases = [
        (lambda: restore(good, "float32"), "missing"),
        (lambda: restore({"values": np.zeros(2, np.float16)}, "float32"), "wrong-dtype"),
        (lambda: restore({**good, "scale": good["scale"][:1]}, "int8"), "wrong-shape"),
        (lambda: restore(good, "int4"), "unknown-codec"),
        (lambda: squeeze(_rows(), "int4", generator(0)), "unknown-codec"),
        (lambda: squeeze(_rows().astype(np.float64), "int8", generator(0)), "wrong-dtype"),  # type: ignore[arg-type]
        (lambda: squeeze(np.array(1, F32), "int8", generator(0)), "wrong-shape"),
        (lambda: relative_error(np.zeros(2), np.zeros(3)), "wrong-shape"),
    ]
    for call, reason in cases:
        with pytest.raises(WireError) as caught:
            call()
        assert caught.value.reason == reason


def test_relative_error_is_the_ratio_of_norms() -> None:
    array = np.array([[3, 0], [0, 4]], F32)
    assert relative_error(array, array * F32(0.5)) == 0.5
    assert relative_error(array, array) == 0
    assert relative_error(0 * array, 0 * array) == 0
    assert relative_error(0 * array, array) == float("inf")
    errors = [
        relative_error(_rows(), restore(squeeze(_rows(), how, generator(0)), how)) for how in CODECS
    ]
    assert 0 == errors[0] < errors[1] < 2**-11 < errors[2] < 0.02
