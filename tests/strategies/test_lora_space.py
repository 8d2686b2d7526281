"""Averaging LoRA: exact in product space or with A frozen, biased on the factors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app import wire
from fl_app.errors import ConfigError
from fl_app.updates import Update
from strategies.lora_space import FactorSpace, ProductSpace, build_space
from tests.federation_fixtures import Player

EPS = float(np.finfo(np.float32).eps)
A, B = "block.0.q.lora_A.weight", "block.0.q.lora_B.weight"
HEAD = "classifier.weight"
cases = settings(derandomize=True, deadline=None, max_examples=25)


def _adapter(rng: np.random.Generator, rank: int, d_in: int, d_out: int) -> Update:
    return {
        A: rng.normal(size=(rank, d_in)).astype(np.float32),
        B: rng.normal(size=(d_out, rank)).astype(np.float32),
        HEAD: rng.normal(size=(3, d_out)).astype(np.float32),
    }


def _product(adapter: Update) -> np.ndarray:
    return adapter[B].astype(np.float64) @ adapter[A].astype(np.float64)


def _mean(rows: list[Update], weights: np.ndarray) -> Update:
    """The weighted mean of mapped adapters, as FedAvg makes it."""
    shares = weights / weights.sum()
    return {
        name: sum(
            s * row[name].astype(np.float64) for s, row in zip(shares, rows, strict=True)
        ).astype(np.float32)
        for name in rows[0]
    }


def _bound(rows: list[Update], rank: int) -> float:
    """Roundings of float32 factors and products: each product adds up ``rank`` terms."""
    largest = max(float(np.linalg.norm(row[A]) * np.linalg.norm(row[B])) for row in rows)
    return 4 * (rank + len(rows) + 4) * EPS * largest


shapes = st.tuples(st.integers(1, 3), st.integers(4, 7), st.integers(4, 8), st.integers(0, 99))


@cases
@given(shape=shapes)
def test_one_device_comes_back_as_its_own_product(shape: tuple[int, int, int, int]) -> None:
    rank, d_in, d_out, seed = shape
    row = _adapter(np.random.default_rng(seed), rank, d_in, d_out)
    space = ProductSpace(rank)
    back = space.leave(space.enter(row))
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in row.items()}
    assert all(array.dtype == np.float32 for array in back.values())
    assert list(back) == sorted(row)
    assert np.abs(_product(back) - _product(row)).max() <= _bound([row], rank)
    assert np.array_equal(back[HEAD], row[HEAD])


@cases
@given(shape=shapes, num_devices=st.integers(2, 5))
def test_a_common_a_makes_the_mean_product_exact(
    shape: tuple[int, int, int, int], num_devices: int
) -> None:
    """Mean of B_k A = (mean B_k) A has rank r: nothing is cut off, and B alone would do."""
    rank, d_in, d_out, seed = shape
    rng = np.random.default_rng(seed)
    rows = [_adapter(rng, rank, d_in, d_out) for _ in range(num_devices)]
    for row in rows:
        row[A] = rows[0][A]
    weights = rng.integers(1, 50, num_devices).astype(float)
    wanted = sum(w / weights.sum() * _product(row) for w, row in zip(weights, rows, strict=True))
    for space in (ProductSpace(rank), FactorSpace()):
        back = space.leave(_mean([space.enter(row) for row in rows], weights))
        assert np.abs(_product(back) - wanted).max() <= _bound(rows, rank)


@cases
@given(shape=shapes, num_devices=st.integers(2, 5))
def test_the_exact_mean_is_cut_to_the_nearest_matrix_of_the_rank(
    shape: tuple[int, int, int, int], num_devices: int
) -> None:
    """Eckart and Young: the error is the root of the squared singular values cut off."""
    rank, d_in, d_out, seed = shape
    rng = np.random.default_rng(seed)
    rows = [_adapter(rng, rank, d_in, d_out) for _ in range(num_devices)]
    weights = rng.integers(1, 50, num_devices).astype(float)
    wanted = sum(w / weights.sum() * _product(row) for w, row in zip(weights, rows, strict=True))
    space = ProductSpace(rank)
    back = _product(space.leave(_mean([space.enter(row) for row in rows], weights)))
    cut = np.linalg.svd(wanted, compute_uv=False)[rank:]
    assert np.linalg.matrix_rank(back, tol=_bound(rows, rank)) <= rank
    error = float(np.linalg.norm(back - wanted))
    assert abs(error - float(np.sqrt((cut**2).sum()))) <= _bound(rows, rank) * np.sqrt(back.size)


@cases
@given(shape=shapes, num_devices=st.integers(2, 5))
def test_the_bias_of_averaged_factors_is_the_covariance_of_the_factors(
    shape: tuple[int, int, int, int], num_devices: int
) -> None:
    """sum_k w_k B_k A_k - B_mean A_mean = sum_k w_k (B_k - B_mean) (A_k - A_mean)."""
    rank, d_in, d_out, seed = shape
    rng = np.random.default_rng(seed)
    rows = [_adapter(rng, rank, d_in, d_out) for _ in range(num_devices)]
    weights = rng.integers(1, 50, num_devices).astype(float)
    shares = weights / weights.sum()
    factors = FactorSpace()
    averaged = factors.leave(_mean([factors.enter(row) for row in rows], weights))
    mean = sum(s * _product(row) for s, row in zip(shares, rows, strict=True))
    centre = {
        k: sum(s * r[k].astype(float) for s, r in zip(shares, rows, strict=True)) for k in (A, B)
    }
    bias = sum(
        s * (row[B] - centre[B]) @ (row[A] - centre[A]) for s, row in zip(shares, rows, strict=True)
    )
    assert np.abs(mean - _product(averaged) - bias).max() <= _bound(rows, rank)
    assert np.abs(bias).max() > _bound(rows, rank)  # it is there


@pytest.mark.parametrize("space", [FactorSpace(), ProductSpace(2)])
def test_identical_devices_give_any_of_them(space: FactorSpace | ProductSpace) -> None:
    row = _adapter(np.random.default_rng(3), 2, 5, 6)
    entered = [space.enter({k: v.copy() for k, v in row.items()}) for _ in range(4)]
    back = space.leave(_mean(entered, np.array([1.0, 2.0, 3.0, 4.0])))
    assert np.abs(_product(back) - _product(row)).max() <= _bound([row], 2)
    assert np.abs(back[HEAD] - row[HEAD]).max() <= 4 * EPS * np.abs(row[HEAD]).max()


def test_factors_come_back_balanced() -> None:
    """B = U sqrt(S) and A = sqrt(S) V^T: both factors have the same Gram matrix diag(S)."""
    row = _adapter(np.random.default_rng(4), 3, 6, 7)
    row[B] *= 100
    space = ProductSpace(3)
    back = space.leave(space.enter(row))
    values = np.linalg.svd(_product(row), compute_uv=False)[:3]
    bound = 100 * EPS * values.max()
    assert np.abs(back[A] @ back[A].T - np.diag(values)).max() <= bound
    assert np.abs(back[B].T @ back[B] - np.diag(values)).max() <= bound


def test_a_rank_above_the_size_of_the_map_keeps_its_shape() -> None:
    """The product has fewer singular values than the adapter has rows; the rest is zero."""
    row = _adapter(np.random.default_rng(5), 6, 4, 5)
    space = ProductSpace(6)
    back = space.leave(space.enter(row))
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in row.items()}
    assert np.abs(_product(back) - _product(row)).max() <= _bound([row], 6)


def test_inputs_are_not_changed() -> None:
    row = _adapter(np.random.default_rng(6), 2, 4, 4)
    kept = {k: v.copy() for k, v in row.items()}
    space = ProductSpace(2)
    entered = space.enter(row)
    entered_kept = {k: v.copy() for k, v in entered.items()}
    space.leave(entered)
    assert all(np.array_equal(row[k], kept[k]) for k in kept)
    assert all(np.array_equal(entered[k], entered_kept[k]) for k in entered)


def test_names_choose_the_space() -> None:
    assert isinstance(build_space("freeze-a", 2), FactorSpace)
    assert isinstance(build_space("factors", 2), FactorSpace)
    assert isinstance(build_space("exact", 2), ProductSpace)
    with pytest.raises(ConfigError, match="aggregation='best'"):
        build_space("best", 2)


@pytest.mark.parametrize("aggregation", ["exact", "factors"])
def test_what_a_federation_averages(player: Player, aggregation: str) -> None:
    """In a real round: ``exact`` is the nearest matrix of the rank, ``factors`` is not.

    With ``freeze-a`` B alone travels, and FedAvg's own oracle covers it.
    """
    played = player.play(
        f"peft.aggregation={aggregation}", "strategy.num_rounds=2", "finetune.max_steps=2"
    )
    sent = played.of_round(2)
    start = wire.read_order(sent[0].sent).adapter
    after = played.outcome.adapter
    stems = [name.removesuffix(".lora_B.weight") for name in after if "lora_B" in name]
    assert stems
    weights = [
        float(e.received[0].content.metric_records["metrics"]["num-examples"])  # type: ignore[arg-type]
        for e in sent
    ]
    rank = 2
    for stem in stems:
        a, b = f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
        tuned = [{A: start[a] + e.updates[0][a], B: start[b] + e.updates[0][b]} for e in sent]
        mean = sum(w / sum(weights) * _product(t) for w, t in zip(weights, tuned, strict=True))
        values = np.linalg.svd(mean, compute_uv=False)
        error = float(np.linalg.norm(after[b].astype(float) @ after[a] - mean))
        best = float(np.sqrt((values[rank:] ** 2).sum()))
        slack = _bound(tuned, rank) * np.sqrt(mean.size)
        assert error >= best - slack
        assert (error <= best + slack) == (aggregation == "exact")
