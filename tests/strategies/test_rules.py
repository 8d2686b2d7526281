"""Flower's rules as the server's rule: each does what its paper says."""

import inspect
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.updates import Update
from strategies.rules import RULES, ServerRule
from tests.federation_fixtures import Player, assert_float32_mean, fedavg64
from tests.rule_fixtures import drawn_adapters, flower_process

__all__ = ["flower_process"]


EPS = float(np.finfo(np.float32).eps)
NUM_DEVICES = 7
"""Enough for Bulyan with one malicious node: 4 f + 3."""


def _apply(rule: ServerRule, start: Update, rows: Sequence[Update], weights: np.ndarray) -> Update:
    rule.announce(1, start)
    return rule.apply(1, rows, weights)


def _stacked(rows: Sequence[Update], name: str) -> np.ndarray:
    return np.stack([row[name].astype(np.float64) for row in rows])


@pytest.mark.parametrize("name", RULES)
def test_every_rule_runs_with_its_defaults(name: str) -> None:
    start, rows, weights = drawn_adapters(NUM_DEVICES)
    before = [{k: v.copy() for k, v in row.items()} for row in rows]
    rule = ServerRule(name, {})
    for number in (1, 2):
        rule.announce(number, start)
        after = rule.apply(number, rows, weights)
        assert {k: (v.shape, v.dtype) for k, v in after.items()} == {
            k: (v.shape, np.dtype(np.float32)) for k, v in start.items()
        }
        assert all(np.isfinite(array).all() for array in after.values())
        assert any((after[k] != start[k]).any() for k in start)
    for row, kept in zip(rows, before, strict=True):  # inputs are not changed
        assert all(np.array_equal(row[k], kept[k]) for k in kept)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_maps_equal_adapters_to_where_they_agree(name: str) -> None:
    """Seven devices that agree move the server there; adaptive rules move in that direction."""
    start, (row, *_), _ = drawn_adapters(1)
    after = _apply(ServerRule(name, {}), start, [row] * NUM_DEVICES, np.full(NUM_DEVICES, 5.0))
    for key in start:
        if name in ("fedadam", "fedyogi", "fedadagrad"):
            assert np.array_equal(np.sign(after[key] - start[key]), np.sign(row[key] - start[key]))
        else:
            bound = (NUM_DEVICES + 3) * EPS / 2 * float(np.abs(row[key]).max())
            assert np.abs(after[key] - row[key]).max() <= bound


@settings(derandomize=True, deadline=None, max_examples=25)
@given(num_rows=st.integers(1, 8), seed=st.integers(0, 99))
def test_fedavg_is_the_weighted_mean_in_float64(num_rows: int, seed: int) -> None:
    _, rows, weights = drawn_adapters(num_rows, seed)
    nothing = {key: np.zeros_like(array) for key, array in rows[0].items()}
    after = _apply(ServerRule("fedavg", {}), nothing, rows, weights)
    assert_float32_mean(after, fedavg64(nothing, rows, list(weights)), nothing, rows)


@pytest.mark.parametrize("num_rows", [1, 4, 5])
def test_fedmedian_is_the_median_of_each_entry(num_rows: int) -> None:
    start, rows, weights = drawn_adapters(num_rows)
    after = _apply(ServerRule("fedmedian", {}), start, rows, weights)
    for key in start:
        wanted = np.median(np.stack([row[key] for row in rows]), axis=0)
        assert np.array_equal(after[key], wanted)


def test_fedtrimmedavg_drops_the_extremes_of_each_entry() -> None:
    start, rows, weights = drawn_adapters(5)
    after = _apply(ServerRule("fedtrimmedavg", {"beta": 0.2}), start, rows, weights)
    for key in start:
        inner = np.sort(_stacked(rows, key), axis=0)[1:-1]
        bound = 4 * EPS * float(np.abs(inner).max())
        assert np.abs(after[key] - inner.mean(axis=0)).max() <= bound


def test_krum_takes_the_adapter_with_the_nearest_neighbours() -> None:
    """Blanchard et al. 2017: the smallest sum of distances to its n - f - 2 nearest."""
    start, rows, weights = drawn_adapters(6)
    centre = rows[0]
    rng = np.random.default_rng(1)
    near = [
        {k: (v + 0.01 * rng.normal(size=v.shape)).astype(np.float32) for k, v in centre.items()}
        for _ in range(5)
    ]
    outlier = {k: v + 50 for k, v in centre.items()}
    rows = [*near, outlier]
    after = _apply(ServerRule("krum", {"num_malicious_nodes": 1}), start, rows, weights)
    flat = np.stack([np.concatenate([row[k].ravel() for k in sorted(row)]) for row in rows])
    distances = ((flat[:, None].astype(np.float64) - flat[None]) ** 2).sum(-1)
    scores = np.sort(distances, axis=1)[:, 1 : 6 - 1 - 2 + 1].sum(axis=1)
    best = rows[int(scores.argmin())]
    assert all(np.abs(after[k] - best[k]).max() <= EPS * np.abs(best[k]).max() for k in best)


@pytest.mark.parametrize("name", ["krum", "multikrum", "bulyan", "fedmedian"])
def test_robust_rules_shut_an_outlier_out(name: str) -> None:
    start, (row, *_), _ = drawn_adapters(1)
    rng = np.random.default_rng(2)
    rows = [
        {k: (v + 0.01 * rng.normal(size=v.shape)).astype(np.float32) for k, v in row.items()}
        for _ in range(NUM_DEVICES - 1)
    ]
    rows.insert(3, {k: np.full_like(v, 1e6) for k, v in row.items()})
    options = {} if name == "fedmedian" else {"num_malicious_nodes": 1}
    after = _apply(ServerRule(name, options), start, rows, np.full(NUM_DEVICES, 1.0))
    honest = [r for i, r in enumerate(rows) if i != 3]
    for key in start:
        low, high = (bound(_stacked(honest, key), axis=0) for bound in (np.min, np.max))
        slack = 4 * EPS * np.abs(high).max()
        assert (after[key] >= low - slack).all()
        assert (after[key] <= high + slack).all()


def _adaptive(name: str, delta: np.ndarray, options: dict[str, float]) -> np.ndarray:
    """One step of Reddi et al. 2021 (arXiv:2003.00295), algorithm 2, from m_0 = v_0 = 0.

    Flower's FedAdam also corrects the bias as Kingma and Ba do, with exponent round + 1.
    """
    eta, beta_1, tau = options["eta"], options["beta_1"], options["tau"]
    momentum = (1 - beta_1) * delta
    match name:
        case "fedadagrad":
            second = delta**2
        case "fedyogi":
            second = -(1 - options["beta_2"]) * delta**2 * np.sign(0 - delta**2)
        case _:
            second = (1 - options["beta_2"]) * delta**2
            eta *= math.sqrt(1 - options["beta_2"] ** 2) / (1 - beta_1**2)
    return eta * momentum / (np.sqrt(second) + tau)


@pytest.mark.parametrize("given_options", [{}, {"eta": 0.02, "tau": 0.1}])
@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_one_adaptive_step_is_the_closed_form(name: str, given_options: dict[str, float]) -> None:
    start, rows, weights = drawn_adapters(4)
    after = _apply(ServerRule(name, given_options), start, rows, weights)
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(RULES[name].__init__).parameters.items()
        if isinstance(parameter.default, float)
    }
    options = {"beta_1": 0.0, "beta_2": 0.0, **defaults, **given_options}
    mean = fedavg64({k: np.zeros_like(v) for k, v in start.items()}, rows, list(weights))
    for key in start:
        delta = mean[key] - start[key]
        step = _adaptive(name, delta, options)
        # a rounded delta moves the step by at most its own relative error (the step is smooth in
        # it, of slope at most |step / delta| ), and the sum rounds once more
        rounded = (len(rows) + 4) * EPS * np.abs(_stacked([*rows, start], key)).max(axis=0)
        bound = rounded * np.abs(step / delta) + 8 * EPS * (np.abs(step) + np.abs(start[key]))
        assert (np.abs(after[key] - (start[key] + step)) <= bound).all()


def test_fedavgm_adds_momentum() -> None:
    """Hsu et al. 2019 (arXiv:1909.06335): v <- beta v + (w - mean), w <- w - lr v."""
    start, rows, weights = drawn_adapters(3)
    rule = ServerRule("fedavgm", {"server_learning_rate": 0.5, "server_momentum": 0.9})
    given_now, wanted = start, {k: v.astype(np.float64) for k, v in start.items()}
    velocity = {k: np.zeros_like(v) for k, v in wanted.items()}
    mean = fedavg64({k: np.zeros_like(v) for k, v in start.items()}, rows, list(weights))
    for number in (1, 2, 3):
        rule.announce(number, given_now)
        given_now = rule.apply(number, rows, weights)
        for key in wanted:
            velocity[key] = 0.9 * velocity[key] + (wanted[key] - mean[key])
            wanted[key] = wanted[key] - 0.5 * velocity[key]
            # a round adds at most K + 6 roundings and carries the errors of the rounds before on
            bound = 4**number * (len(rows) + 6) * EPS * 4
            assert np.abs(given_now[key] - wanted[key]).max() <= bound


def test_only_fedprox_announces_a_proximal_term() -> None:
    start, _, _ = drawn_adapters(1)
    assert ServerRule("fedprox", {"proximal_mu": 0.25}).announce(1, start) == 0.25
    assert {ServerRule(name, {}).announce(1, start) for name in RULES} == {0.0}


def test_fedprox_reaches_the_devices_and_holds_them_back(player: Player) -> None:
    def norms(mu: float) -> tuple[set[float], float]:
        words = ["strategy.num_rounds=1", "finetune.max_steps=3"]
        words += ["strategy.server_rule.name=fedprox"]
        words += [f"strategy.server_rule.options.proximal_mu={mu}"]
        played = player.play(*words)
        told = {
            float(e.sent.content.config_records["config"]["proximal-mu"])  # type: ignore[arg-type]
            for e in played.grid.exchanges
        }
        size = sum(
            float((array**2).sum())
            for e in played.grid.exchanges
            for array in e.updates[0].values()
        )
        return told, size

    (free, far), (held, near) = norms(0.0), norms(100.0)
    assert (free, held) == ({0.0}, {100.0})
    assert near < far


def test_a_rule_with_options_runs_in_a_federation(player: Player) -> None:
    """FedAdam's step is at most eta_1 = eta sqrt(1 - b2^2) / (1 - b1^2) (1 - b1) / sqrt(1 - b2)."""
    words = ["strategy.num_rounds=1", "strategy.server_rule.name=fedadam"]
    played = player.play(*words, "strategy.server_rule.options={eta: 0.001, tau: 0.001}")
    b1, b2 = 0.9, 0.99
    largest = 0.001 * math.sqrt(1 - b2**2) / (1 - b1**2) * (1 - b1) / math.sqrt(1 - b2)
    for name, array in played.outcome.adapter.items():
        moved = np.abs(array.astype(np.float64) - played.start[name])
        assert 0 < moved.max() <= largest + 2 * EPS * np.abs(array).max()
