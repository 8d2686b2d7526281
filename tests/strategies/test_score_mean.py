"""Scores of many devices: against the mean written out, and how far one of them can move it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.wire import MAX_EXAMPLES
from strategies.score_mean import bounded_weights, mean_scores

MAX_SCORE = float(np.finfo(np.float32).max)
SIZES = {0: 3, 4: 2}
NOTHING = {block: np.zeros(size) for block, size in SIZES.items()}
cases = settings(derandomize=True, deadline=None, max_examples=40)
Rows = dict[int, np.ndarray]


def _drawn(seed: int, num_devices: int) -> tuple[list[Rows], list[int]]:
    rng = np.random.default_rng(seed)
    scores = [{block: rng.random(n) for block, n in SIZES.items()} for _ in range(num_devices)]
    return scores, rng.integers(1, 500, num_devices).tolist()


def _flat(rows: Rows) -> np.ndarray:
    return np.concatenate([rows[block] for block in SIZES])


def test_the_mean_is_that_of_shares_with_bounded_weights() -> None:
    """By hand: 1, 5, 2 examples count as 1, 2, 2; sums are 10, 100 and 0.1."""
    given_scores = [
        {0: np.array([1.0, 2, 3]), 4: np.array([4.0, 0])},
        {0: np.array([0.0, 0, 0]), 4: np.array([100.0, 0])},
        {0: np.array([0.05, 0, 0]), 4: np.array([0, 0.05])},
    ]
    mean = mean_scores(given_scores, [1, 5, 2], NOTHING)
    np.testing.assert_allclose(mean[0], [(0.1 + 2 * 0.5) / 5, 0.2 / 5, 0.3 / 5], rtol=1e-12)
    np.testing.assert_allclose(mean[4], [(0.4 + 2 * 1.0) / 5, 2 * 0.5 / 5], rtol=1e-12)


@cases
@given(seed=st.integers(0, 99), scale=st.floats(1e-30, 1e38))
def test_the_scale_of_a_device_says_nothing(seed: int, scale: float) -> None:
    """Devices of more steps or of larger losses do not outvote the others."""
    scores, counts = _drawn(seed, 3)
    mean = _flat(mean_scores(scores, counts, NOTHING))
    scaled = [{block: scale * row for block, row in scores[0].items()}, *scores[1:]]
    np.testing.assert_allclose(_flat(mean_scores(scaled, counts, NOTHING)), mean, rtol=1e-12)
    assert mean.sum() == pytest.approx(1.0, rel=1e-12)


@cases
@given(seed=st.integers(0, 99), num_devices=st.integers(2, 7))
def test_one_device_moves_a_mean_by_its_bounded_share(seed: int, num_devices: int) -> None:
    """The worst there is: the largest float32 on one unit, nothing else, as many rows as allowed.

    The bound is worked out from numbers of devices alone.
    """
    scores, counts = _drawn(seed, num_devices)
    honest = _flat(mean_scores(scores[1:], counts[1:], NOTHING))
    liar = {0: np.array([0.0, MAX_SCORE, 0.0]), 4: np.zeros(2)}
    moved = _flat(mean_scores([liar, *scores[1:]], [MAX_EXAMPLES, *counts[1:]], NOTHING))
    share = 1 / (num_devices // 2 + 1)
    assert moved[1] <= share + (1 - share) * scores_bound(scores[1:]) + 1e-12
    assert moved[1] > honest[1]
    assert np.isfinite(moved).all()


def scores_bound(scores: list[Rows]) -> float:
    """The largest share that any honest device gives unit 1 of block 0."""
    return max(float(own[0][1] / _flat(own).sum()) for own in scores)


@pytest.mark.parametrize("num_devices", range(1, 9))
def test_no_weight_is_more_than_one_in_half_the_devices(num_devices: int) -> None:
    counts = np.geomspace(1, MAX_EXAMPLES, num_devices)
    weights = bounded_weights(counts)
    assert (weights <= counts).all()
    assert weights.max() / weights.sum() <= 1 / (num_devices // 2 + 1) + 1e-12
    equal = bounded_weights([7] * num_devices)
    assert np.array_equal(equal, [7.0] * num_devices)


def test_who_scores_nothing_is_left_out_and_unheld_units_keep_theirs() -> None:
    scores, _ = _drawn(5, 2)
    silent = {block: np.zeros(size) for block, size in SIZES.items()}
    with_silent = mean_scores([*scores, silent], [3, 3, MAX_EXAMPLES], NOTHING)
    without = mean_scores(scores, [3, 3], NOTHING)
    assert np.array_equal(_flat(with_silent), _flat(without))
    known = {0: np.array([0.4, 0.3, 0.1]), 4: np.array([0.15, 0.05])}
    for nobody in ([], [silent], [{}]):
        assert np.array_equal(_flat(mean_scores(nobody, [1] * len(nobody), known)), _flat(known))
    held = mean_scores([{0: np.array([1.0, 3.0])}], [9], known)
    np.testing.assert_allclose(held[0], [0.175, 0.525, 0.1], rtol=1e-12)  # 0.7 as before
    assert np.array_equal(held[4], known[4])
    assert np.array_equal(known[0], [0.4, 0.3, 0.1])  # is not written over


def test_who_holds_the_best_units_alone_does_not_lower_them() -> None:
    """A strong and a weak device agree on what units are worth: the mean says the same."""
    worth = {0: np.array([0.5, 0.2, 0.05]), 4: np.array([0.2, 0.05])}
    weak = {0: 7 * worth[0][:2], 4: 7 * worth[4][:1]}
    mean = mean_scores([worth, weak], [5, 5], worth)
    np.testing.assert_allclose(_flat(mean), _flat(worth), rtol=1e-12)
