"""Pruning, quantisation and packing against brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_app.errors import ModelError
from fl_app.fomo.compress import (
    MAX_BITS,
    Compression,
    Floats,
    dequantise,
    keep_mask,
    pack_codes,
    pack_matrix,
    quantise,
    unpack_codes,
    unpack_matrix,
)
from fl_app.seeding import generator
from tests.oracles import compression as oracle

_EPS = float(np.finfo(np.float32).eps)
_matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
    # few magnitudes, so that ties are common; no subnormals, whose scale may round to nothing
    elements=st.one_of(
        st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0]),
        st.floats(-1e4, 1e4, width=32, allow_subnormal=False).filter(
            lambda value: value == 0.0 or abs(value) > 1e-20
        ),
    ),
)
_sparsities = st.integers(0, 63).map(lambda k: k / 64)  # exact in binary: no doubt about floor
_bits = st.integers(1, MAX_BITS)


def _draw(shape: tuple[int, ...]) -> Floats:
    return generator(0, "matrix").normal(size=shape).astype(np.float32)


def _rounding(values: Floats) -> float:
    """Bound of the float32 arithmetic of min + scale * code: four roundings of at most eps/2."""
    return 2 * _EPS * (float(np.abs(values).max()) + float(np.ptp(values)))


@settings(derandomize=True, max_examples=80, deadline=None)
@given(matrix=_matrices, sparsity=_sparsities)
def test_pruning_takes_exactly_the_smallest_magnitudes(matrix: Floats, sparsity: float) -> None:
    """floor(s size) entries, the ones a plain sort picks, ties in memory order."""
    count = math.floor(sparsity * matrix.size)
    keep = keep_mask(matrix, sparsity)
    assert keep.shape == matrix.shape
    gone = set(np.flatnonzero(~keep.ravel()).tolist())
    assert gone == oracle.pruned_positions(matrix.ravel().tolist(), count)
    if 0 < count < matrix.size:
        assert np.abs(matrix[~keep]).max() <= np.abs(matrix[keep]).min()


@settings(derandomize=True, max_examples=80, deadline=None)
@given(matrix=_matrices.filter(lambda m: m.size > 0), bits=_bits)
def test_quantiser_has_2_to_the_bits_levels_and_errs_by_half_a_step(
    matrix: Floats, bits: int
) -> None:
    """The bound of float32 rounding is added, and nothing else."""
    codes, span = quantise(matrix, bits)
    back = dequantise(codes, span)
    assert codes.shape == matrix.shape
    assert int(codes.max()) < 2**bits
    assert len(np.unique(back)) <= 2**bits
    step = float(np.ptp(matrix.astype(np.float64))) / (2**bits - 1)
    error = np.abs(back.astype(np.float64) - matrix.astype(np.float64)).max()
    assert error <= step / 2 + _rounding(matrix)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(matrix=_matrices.filter(lambda m: m.size > 0), bits=st.integers(1, 5))
def test_quantiser_picks_the_nearest_level(matrix: Floats, bits: int) -> None:
    """No choice among all levels is better, by exhaustive search in exact fractions."""
    codes, span = quantise(matrix, bits)
    error = np.abs(dequantise(codes, span).astype(np.float64) - matrix.astype(np.float64)).max()
    best = oracle.nearest_level_error(matrix.ravel().tolist(), bits)
    assert abs(error - best) <= _rounding(matrix)


def test_extremes_are_levels() -> None:
    """The smallest and largest value survive, up to rounding."""
    matrix = _draw((30, 30))
    back = dequantise(*quantise(matrix, 3))
    assert back.min() == matrix.min()
    assert abs(back.max() - matrix.max()) <= _rounding(matrix)
    assert len(np.unique(back)) == 8


def test_error_halves_with_every_bit_up_to_16() -> None:
    """Convergence to the identity: each bit more than halves the step, 16 bits are near exact."""
    matrix = _draw((64, 64))
    errors = [
        float(np.abs(dequantise(*quantise(matrix, bits)) - matrix).max())
        for bits in range(1, MAX_BITS + 1)
    ]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] <= float(np.ptp(matrix)) / (2**16 - 1) / 2 + _rounding(matrix)
    assert errors[-1] < errors[0] / 2**13


@settings(derandomize=True, max_examples=80, deadline=None)
@given(bits=_bits, data=st.data())
def test_packing_is_gapless_and_bit_exact(bits: int, data: st.DataObject) -> None:
    """The bytes of text of binary digits; ceil(size bits / 8) of them; and back."""
    codes = data.draw(
        hnp.arrays(np.uint16, st.integers(0, 70), elements=st.integers(0, 2**bits - 1))
    )
    packed = pack_codes(codes, bits)
    assert packed.tobytes() == oracle.packed(codes.tolist(), bits)
    assert packed.nbytes == math.ceil(codes.size * bits / 8)
    assert np.array_equal(unpack_codes(packed, bits, codes.size), codes)


@settings(derandomize=True, max_examples=80, deadline=None)
@given(matrix=_matrices, sparsity=_sparsities, bits=st.one_of(st.none(), _bits))
def test_matrix_round_trip(matrix: Floats, sparsity: float, bits: int | None) -> None:
    """Pruned entries are zero; survivors are exact, or within half a step of *their* range."""
    how = Compression(sparsity=sparsity, bits=bits)
    parts = pack_matrix(matrix, how)
    back = unpack_matrix(parts, matrix.shape, how)
    assert back.shape == matrix.shape
    assert back.dtype == np.float32
    assert sum(part.nbytes for part in parts.values()) == oracle.packed_size(
        matrix.size, sparsity, bits, 4
    )
    keep = keep_mask(matrix, sparsity)
    assert (back[~keep] == 0.0).all()
    if bits is None:
        assert back[keep].tobytes() == matrix[keep].tobytes()
    elif keep.any():
        step = float(np.ptp(matrix[keep].astype(np.float64))) / (2**bits - 1)
        assert np.abs(back[keep] - matrix[keep]).max() <= step / 2 + _rounding(matrix[keep])
        assert len(np.unique(back[keep])) <= 2**bits


def test_packed_bytes_of_one_matrix() -> None:
    """768 by 768 at 4 bits: an eighth of float32, plus min and scale."""
    parts = pack_matrix(_draw((768, 768)), Compression(bits=4))
    assert {name: part.nbytes for name, part in parts.items()} == {
        "codes": 768 * 768 // 2,
        "span": 8,
    }


def test_constant_matrix_is_exact() -> None:
    """A range of zero must not divide by zero."""
    matrix = np.full((3, 5), -0.37, np.float32)
    for how in (Compression(bits=1), Compression(sparsity=0.5, bits=4)):
        back = unpack_matrix(pack_matrix(matrix, how), matrix.shape, how)
        assert set(np.unique(back).tolist()) <= {float(np.float32(-0.37)), 0.0}
        assert int((back == 0).sum()) == int(how.sparsity * 15)


def test_empty_matrix() -> None:
    """No entry, no code, no error."""
    matrix = np.zeros((0, 4), np.float32)
    for how in (Compression(bits=4), Compression(sparsity=0.5), Compression(sparsity=0.5, bits=4)):
        assert unpack_matrix(pack_matrix(matrix, how), matrix.shape, how).shape == (0, 4)


def test_transposed_view_is_packed_by_its_own_order() -> None:
    """Weights come as views; memory order must not leak into the result."""
    matrix = _draw((4, 6)).T
    for how in (Compression(sparsity=0.25), Compression(bits=16)):
        back = unpack_matrix(pack_matrix(matrix, how), matrix.shape, how)
        kept = back != 0
        assert np.abs(back - matrix)[kept].max() < 1e-3


@pytest.mark.parametrize(
    ("how", "part"),
    [
        (Compression(bits=4), "codes"),
        (Compression(bits=4), "span"),
        (Compression(sparsity=0.5), "mask"),
        (Compression(sparsity=0.5), "values"),
    ],
)
def test_missing_or_short_part_is_an_error(how: Compression, part: str) -> None:
    """The text names the matrix's shape."""
    matrix = _draw((6, 6))
    parts = pack_matrix(matrix, how)
    lacking = {name: value for name, value in parts.items() if name != part}
    with pytest.raises(ModelError, match=r"\(6, 6\) is damaged"):
        unpack_matrix(lacking, (6, 6), how)
    with pytest.raises(ModelError, match=r"\(6, 6\) is damaged"):
        unpack_matrix({**parts, part: parts[part][:0]}, (6, 6), how)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_sparsity_out_of_range(sparsity: float) -> None:
    """The text names the field and the value."""
    with pytest.raises(ModelError, match=rf"sparsity must be in \[0, 1\), got {sparsity}"):
        Compression(sparsity=sparsity)


@pytest.mark.parametrize("bits", [0, -1, 17])
def test_bits_out_of_range(bits: int) -> None:
    """The text names the field and the value."""
    with pytest.raises(ModelError, match=rf"bits must be in 1\.\.16 or null, got {bits}"):
        Compression(bits=bits)
