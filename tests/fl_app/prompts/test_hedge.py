"""Regret under its bound, for any sequence, with members that come late, go and miss rounds."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.prompts.errors import PromptError
from fl_app.prompts.hedge import SleepingHedge, bounded_log_loss, hedge_from
from fl_app.seeding import generator

_NAMES = tuple("abcde")
_presence = st.lists(st.sets(st.sampled_from(_NAMES), min_size=1), min_size=1, max_size=40)
_probabilities = st.lists(st.floats(1e-6, 1.0), min_size=5, max_size=5)


@given(_presence, st.data(), st.floats(0.05, 1.0))
@settings(max_examples=200, deadline=None)
def test_log_loss_regret_stays_below_its_bound(
    rounds: list[set[str]], data: st.DataObject, eta: float
) -> None:
    """Oracle 4, checked after every round and against sums kept apart."""
    hedge, regret = SleepingHedge(eta), dict.fromkeys(_NAMES, 0.0)
    for present in rounds:
        for name in sorted(present):
            hedge.join(name)
        drawn = data.draw(_probabilities)
        p = {name: drawn[_NAMES.index(name)] for name in present}
        weights = hedge.weights(present)
        assert math.fsum(weights.values()) == pytest.approx(1)
        assert min(weights.values()) >= 0
        mixture = -math.log(math.fsum(weights[name] * p[name] for name in present))
        hedge.update({name: -math.log(p[name]) for name in present}, mixture)
        for name in present:
            regret[name] += mixture + math.log(p[name])
        assert max(regret.values()) <= hedge.bound() + 1e-9
    booked = hedge.regret()
    assert booked == pytest.approx({name: regret[name] for name in booked})
    assert hedge.bound() == pytest.approx(math.log(len(booked)) / eta)


def test_an_adversary_reaches_half_of_the_bound_and_not_more_than_it() -> None:
    """Each round the member with most weight is wrong, half of the members are absent at random.

    Two facts that a broken rule would miss: regret is positive, and never above ln k.
    """
    rng, hedge = generator(0, "adversary"), SleepingHedge()
    names, worst = [str(i) for i in range(8)], 0.0
    for _ in range(400):
        present = [name for name in names if rng.random() < 0.5] or names[:1]
        for name in present:
            hedge.join(name)
        weights = hedge.weights(present)
        leader = max(present, key=weights.__getitem__)
        p = {name: 1e-3 if name == leader else 0.999 for name in present}
        mixture = -math.log(sum(weights[name] * p[name] for name in present))
        hedge.update({name: -math.log(p[name]) for name in present}, mixture)
        worst = max(worst, *hedge.regret().values())
        assert worst <= math.log(8) + 1e-9
    assert worst > math.log(8) / 4


def test_a_perfect_newcomer_costs_what_the_bound_says() -> None:
    """It enters late with the mixture's loss; its regret is at most ln(members) from its birth."""
    hedge = SleepingHedge()
    hedge.join("old")
    for _ in range(500):
        hedge.update({"old": math.log(2)}, math.log(2))
    hedge.join("new")
    for _ in range(100):
        weights = hedge.weights(["old", "new"])
        mixture = -math.log(weights["old"] * 0.5 + weights["new"] * 1.0)
        hedge.update({"old": math.log(2), "new": 0.0}, mixture)
    # closed form: two experts with equal weights, so mixture loss = ln(2 / (1 + 2^-100))
    assert hedge.regret()["new"] == pytest.approx(math.log(2))
    assert hedge.weights(["old", "new"])["new"] == pytest.approx(1.0)
    assert hedge.regret()["old"] == pytest.approx(math.log(2) - 100 * math.log(2))


@given(st.integers(0, 2**31), st.floats(0.05, 3.0))
@settings(max_examples=60, deadline=None)
def test_bounded_losses_have_the_slower_bound(seed: int, eta: float) -> None:
    """The 0/1 loss of a member drawn by its weight: mixture loss = expected loss."""
    rng, hedge = generator(seed, "zero-one"), SleepingHedge(eta)
    for _ in range(60):
        present = [name for name in _NAMES if rng.random() < 0.7] or ["a"]
        for name in present:
            hedge.join(name)
        weights = hedge.weights(present)
        losses = {name: float(rng.random() < weights[name] + 0.2) for name in present}
        hedge.update(losses, sum(weights[name] * losses[name] for name in present))
        assert max(hedge.regret().values()) <= hedge.bound(1.0) + 1e-9


def test_absence_leaves_the_others_alone() -> None:
    """Whoever is asleep, or joins, does not move the weights among the rest."""
    lone, crowded = SleepingHedge(), SleepingHedge()
    for name in ("a", "b"):
        lone.join(name)
        crowded.join(name)
    crowded.join("sleeper")
    for step in range(20):
        losses = {"a": 0.1 * step, "b": 1.0}
        weights = lone.weights(["a", "b"])
        mixture = -math.log(sum(w * math.exp(-losses[n]) for n, w in weights.items()))
        for hedge in (lone, crowded):
            hedge.update(losses, mixture)
        crowded.join(f"late-{step}")
        assert crowded.weights(["a", "b"]) == pytest.approx(lone.weights(["a", "b"]))


def test_extreme_losses_do_not_overflow() -> None:
    hedge = SleepingHedge()
    for name in ("a", "b"):
        hedge.join(name)
    hedge.update({"a": 1e6, "b": 1e6 + 5000}, 1e6)
    assert hedge.weights(["a", "b"]) == {"a": 1.0, "b": 0.0}
    assert hedge.weights(["b"]) == {"b": 1.0}


def test_state_survives_json() -> None:
    hedge = SleepingHedge(0.5)
    hedge.join("a")
    hedge.update({"a": 0.3}, 0.4)
    back = hedge_from(json.loads(json.dumps(hedge.state())))
    assert back.state() == hedge.state()
    assert back.regret() == hedge.regret()
    assert back.bound() == hedge.bound() == 0.0


def test_floored_losses_are_finite_and_commute_with_mixing() -> None:
    """The loss of the floored mixture is that of the mixture of floored members."""
    p, w = np.array([0.0, 0.3, 1.0]), np.array([0.5, 0.3, 0.2])
    with np.errstate(divide="ignore"):
        each = [bounded_log_loss(float(np.log(x)), 4, 1e-2) for x in p]
        mixed = bounded_log_loss(float(np.log(p @ w)), 4, 1e-2)
    assert mixed == pytest.approx(-math.log(w @ np.exp(-np.array(each))))
    assert max(each) == pytest.approx(-math.log(1e-2 / 4))


def test_what_cannot_be_booked_is_refused_whole() -> None:
    hedge = SleepingHedge()
    hedge.join("a")
    for losses, mixture, reason in (
        ({"a": math.nan}, 0.0, "bad-loss"),
        ({"a": 1.0}, math.inf, "bad-loss"),
        ({"a": 1.0, "b": 1.0}, 0.0, "unknown-prompt"),
    ):
        with pytest.raises(PromptError) as caught:
            hedge.update(losses, mixture)
        assert caught.value.reason == reason
    assert hedge.state()["losses"] == {"a": 0.0}
    for eta in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(PromptError, match="bad-eta"):
            SleepingHedge(eta)
    with pytest.raises(PromptError, match="no-member"):
        hedge.weights([])
