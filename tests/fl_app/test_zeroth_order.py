"""Scalars instead of gradients: the estimator against autograd, and what is rebuilt from pairs."""

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.errors import ConfigError, ModelError
from fl_app.fomo.adapter import Adapter
from fl_app.fomo.backbone import head_modules
from fl_app.fomo.soft_prompt import PROMPT_NAME, PromptSpec
from fl_app.updates import Update
from fl_app.zeroth_order import (
    Pair,
    accumulated,
    direction,
    merged,
    perturbed,
    rebuild,
    scalar,
    shapes_of,
)
from tests.fixtures_models import DEPTH, TinyModels
from tests.pair_fixtures import EPS32, EPS64, SHAPES, THETA, flat

PAIRS = st.lists(st.builds(Pair, st.integers(0, 5), st.floats(-100, 100)), min_size=1, max_size=12)


def _slope(loss: Callable[[Update], float], theta: Update, seed: int, eps: float) -> float:
    return scalar(loss(perturbed(theta, seed, eps)), loss(perturbed(theta, seed, -eps)), eps)


def _bits(theta: Update) -> bytes:
    return b"".join(theta[name].tobytes() for name in sorted(theta))


# --- directions --------------------------------------------------------------------------------


def test_a_direction_is_the_named_philox_stream() -> None:
    """Its key is the SHA-256 of seed, purpose and name: nothing of the machine is in it."""
    digest = hashlib.sha256(b"7/str:direction/str:a").digest()
    stream = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    wanted = stream.standard_normal((2, 3)).astype(np.float32)
    drawn = direction(7, SHAPES)
    assert drawn["a"].dtype == np.float32
    assert drawn["a"].tobytes() == wanted.tobytes()


def test_an_array_depends_on_its_own_name_and_the_seed_alone() -> None:
    whole = direction(7, SHAPES)
    turned = direction(7, dict(reversed(SHAPES.items())))
    alone = direction(7, {"a": (2, 3)})
    assert _bits(whole) == _bits(turned)
    assert alone["a"].tobytes() == whole["a"].tobytes()
    same_shape = direction(7, {"a": (2, 3), "c": (2, 3)})
    assert not (same_shape["a"] == same_shape["c"]).any()
    assert not (direction(8, SHAPES)["a"] == whole["a"]).any()


def test_directions_are_standard_normal_and_independent() -> None:
    """Mean 0, variance 1, kurtosis 3 and no correlation between seeds, within 5 standard errors."""
    num = 40_000
    one, two = (direction(seed, {"x": (num,)})["x"].astype(np.float64) for seed in (1, 2))
    errors = 1 / math.sqrt(num), math.sqrt(2 / num), math.sqrt(96 / num)
    for drawn in (one, two):
        assert abs(drawn.mean()) < 5 * errors[0]
        assert abs((drawn**2).mean() - 1) < 5 * errors[1]
        assert abs((drawn**4).mean() - 3) < 5 * errors[2]
    assert abs((one * two).mean()) < 5 * errors[0]


def test_a_perturbed_adapter_is_rounded_once_and_leaves_the_original() -> None:
    before = _bits(THETA)
    moved = perturbed(THETA, 7, 1e-3)
    exact = flat(THETA) + 1e-3 * flat(direction(7, SHAPES))
    assert (np.abs(flat(moved) - exact) <= EPS32 / 2 * np.abs(exact)).all()
    assert not np.array_equal(flat(moved), flat(THETA))
    assert _bits(THETA) == before


# --- the two-point estimate --------------------------------------------------------------------


def test_the_slope_of_a_linear_function_is_exact() -> None:
    """L = w theta has slope w z along z; what is left is rounding of theta +- eps z."""
    weights = np.linspace(-2, 3, 10)
    eps = 0.25
    for seed in range(20):
        drawn = flat(direction(seed, SHAPES))
        given_slope = _slope(lambda theta: float(weights @ flat(theta)), THETA, seed, eps)
        rounding = EPS32 / 2 * np.abs(weights) @ (np.abs(flat(THETA)) + eps * np.abs(drawn)) / eps
        assert abs(given_slope - weights @ drawn) <= 1.01 * rounding


@pytest.mark.parametrize("eps", [0.5, 0.25, 0.125])
def test_the_bias_on_a_cubic_is_eps_squared_times_the_cube(eps: float) -> None:
    """L = sum theta^3 at 0 has slope 0, and (L(eps z) - L(-eps z)) / (2 eps) = eps^2 sum z^3."""
    zero: Update = {name: np.zeros_like(array) for name, array in THETA.items()}
    for seed in range(10):
        drawn = flat(direction(seed, SHAPES))
        found = _slope(lambda theta: float((flat(theta) ** 3).sum()), zero, seed, eps)
        # eps is a power of two, so eps z is exact in float32
        assert found == pytest.approx(eps**2 * (drawn**3).sum(), rel=1e-12, abs=1e-12)
        assert abs(found) > 1e-4


def _assert_unbiased(estimates: np.ndarray, gradient: np.ndarray, rest: float) -> None:
    """Checks every coordinate and the inner product within 5 standard errors of the mean."""
    num = len(estimates)
    errors = estimates.std(0, ddof=1) / math.sqrt(num)
    assert (np.abs(estimates.mean(0) - gradient) <= 5 * errors + rest).all()
    along = estimates @ gradient / np.linalg.norm(gradient)
    error = along.std(ddof=1) / math.sqrt(num)
    assert abs(along.mean() - np.linalg.norm(gradient)) <= 5 * error + rest
    assert 5 * error < np.linalg.norm(gradient) / 2  # else a zero estimate would pass


def test_the_estimate_is_unbiased_on_a_quadratic() -> None:
    """Against autograd's gradient of (theta - c)' A (theta - c) / 2."""
    rng = np.random.default_rng(0)
    root = rng.normal(0, 1, (10, 10))
    matrix, centre = root @ root.T / 10, rng.normal(0, 1, 10)

    def loss(theta: Update) -> float:
        off = flat(theta) - centre
        return float(off @ matrix @ off / 2)

    at = torch.tensor(flat(THETA), requires_grad=True)
    off = at - torch.from_numpy(centre)
    (off @ torch.from_numpy(matrix) @ off / 2).backward()  # type: ignore[no-untyped-call]
    assert at.grad is not None
    seeds = range(4000)
    estimates = np.stack([_slope(loss, THETA, s, 0.5) * flat(direction(s, SHAPES)) for s in seeds])
    # a slope moves by at most the rounded coordinates' share: negligible, yet accounted for
    _assert_unbiased(estimates, at.grad.numpy(), rest=1e-5)


def test_the_estimate_is_unbiased_on_a_model(tiny: TinyModels) -> None:
    """Against autograd on a tiny BERT with a soft prompt; each slope, too, is the right one.

    With s(e) = slope + c e^2 + ..., the error of s(e) is a third of s(2 e) - s(e).
    """
    backbone = tiny.load("bert", "sequence_classification")
    adapter = Adapter(
        backbone.model,
        blocks=range(DEPTH),
        tuned_blocks=(),
        heads=head_modules(backbone.model, backbone.task),
        spec=PromptSpec(num_tokens=2),
        seed=0,
    )
    theta = adapter.read()
    adapter.model.double()
    task, batch = tiny.task("bert", backbone.task), tiny.batch("bert", backbone.task, 4)
    task.loss(adapter.model, batch).backward()  # type: ignore[no-untyped-call]
    own = {name: p.grad.numpy().copy() for name, p in adapter.parameters.items()}  # type: ignore[union-attr]
    gradient = flat(own)
    assert np.abs(own[PROMPT_NAME]).max() > 0

    def loss(at: Update) -> float:
        adapter.write(at)
        with torch.inference_mode():
            return float(task.loss(adapter.model, batch))

    eps, estimates, bias = 2.0**-8, [], 0.0
    # each coordinate of theta +- eps z is rounded to float32
    rounding = EPS32 / eps * np.abs(gradient) @ (np.abs(flat(theta)) + 5 * eps)
    for seed in range(400):
        drawn = flat(direction(seed, shapes_of(theta)))
        slope = _slope(loss, theta, seed, eps)
        if seed < 20:
            wider = _slope(loss, theta, seed, 2 * eps)
            assert abs(slope - gradient @ drawn) <= abs(wider - slope) / 2 + 2 * rounding
            bias = max(bias, abs(wider - slope) / 2 + 2 * rounding)
        estimates.append(slope * drawn)
    assert bias < np.linalg.norm(gradient) / 100
    _assert_unbiased(np.stack(estimates), gradient, rest=bias)


@pytest.mark.parametrize("eps", [0.0, -1e-3, math.inf, math.nan])
def test_a_step_of_nothing_is_refused(eps: float) -> None:
    with pytest.raises(ConfigError, match=r"eps=.*> 0"):
        scalar(1.0, 0.5, eps)


@pytest.mark.parametrize("losses", [(math.nan, 1.0), (1.0, math.inf)])
def test_a_loss_that_is_not_finite_gives_no_slope(losses: tuple[float, float]) -> None:
    with pytest.raises(ModelError, match="lower the learning rate"):
        scalar(*losses, 1e-3)


# --- rebuilding --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.randoms(use_true_random=False), st.floats(1e-6, 1.0))
def test_rebuilding_is_stepping_one_by_one_in_whatever_order(
    pairs: list[Pair], order: object, lr: float
) -> None:
    """Steps in float64 differ by one rounding of the sums per step; rebuilt bits do not at all."""
    shuffled = list(pairs)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    rebuilt = rebuild(THETA, pairs, lr)
    assert _bits(rebuild(THETA, shuffled, lr)) == _bits(rebuilt)
    stepped = flat(THETA)
    reach = np.abs(stepped)
    for seed, coefficient in shuffled:
        step = lr * coefficient * flat(direction(seed, SHAPES))
        stepped, reach = stepped - step, reach + np.abs(step)
    bound = EPS32 / 2 * np.abs(stepped) + 4 * (len(pairs) + 1) * EPS64 * reach
    assert (np.abs(flat(rebuilt) - stepped) <= bound).all()


@given(PAIRS, PAIRS)
@settings(max_examples=60, deadline=None)
def test_accumulating_in_two_parts_is_accumulating_at_once(
    first: list[Pair], second: list[Pair]
) -> None:
    """What rounds add up is what one long round gives, to float64 rounding."""
    parts = flat(accumulated(first, SHAPES)) + flat(accumulated(second, SHAPES))
    reach = sum(abs(c) * np.abs(flat(direction(s, SHAPES))) for s, c in (*first, *second))
    whole = flat(accumulated([*first, *second], SHAPES))
    assert (np.abs(whole - parts) <= 4 * (len(first) + len(second)) * EPS64 * reach).all()


def test_coefficients_of_a_seed_are_added_exactly() -> None:
    """In any order: 1e16 + 1 - 1e16 = 1, where adding from the left gives 0."""
    pairs = [Pair(2, 1e16), Pair(1, 0.5), Pair(2, 1.0), Pair(2, -1e16)]
    assert merged(pairs) == merged(reversed(pairs)) == [Pair(1, 0.5), Pair(2, 1.0)]


def test_no_pairs_change_nothing() -> None:
    assert _bits(rebuild(THETA, [], 0.1)) == _bits(THETA)
