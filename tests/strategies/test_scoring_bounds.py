"""Scores that lie and rounds that are lost: nobody decides alone, and the budget is kept."""

import numpy as np
import pytest

from fl_app import wire
from fl_app.layout.prefix import layout_of
from fl_app.layout.sensitivity import BudgetSchedule
from strategies.scoring import SensitivityLayouts
from tests.federation_fixtures import Player
from tests.strategies.test_scoring import (
    OUTER,
    _adapter,
    _bad_scores,
    _played,
    _scored,
    _scores_sent,
)


def test_the_last_rounds_lost_end_within_the_budget_all_the_same(player: Player) -> None:
    """Rounds 2 and 3 of 3 keep the adapter: no score is known, and the cut is the uniform one."""
    lost = {(n, d): _bad_scores(lambda s: s * np.nan) for n in (2, 3) for d in range(4)}
    words = ("strategy.num_rounds=3",)
    played = _played(player, *words, faults=lost, measure_rounds=True)
    assert played.outcome.late_units == 2
    assert layout_of(played.outcome.adapter) == played.bench.full.layout == {0: 2, 4: 2}
    assert len(played.outcome.rounds) == 4
    played.bench.full.write(played.outcome.adapter)  # fits, and A is the rows that were kept
    whole = _played(player, *words)
    assert whole.outcome.late_units == 0
    assert sum(layout_of(whole.outcome.adapter).values()) == 4


def test_what_is_cut_late_goes_by_the_last_scores_known() -> None:
    schedule = BudgetSchedule(start=6, end=3, warmup=0, final=0, steps=3)
    layouts = SensitivityLayouts({0: 3, 2: 3}, schedule, is_a_sent=True)
    adapter = _adapter(np.random.default_rng(0), {0: 3, 2: 3})
    scores = {0: [9.0, 1.0, 2.0], 2: [8.0, 3.0, 7.0]}
    first = layouts.settle(1, adapter, [_scored(scores)])
    assert layouts.server == {0: 1, 2: 2}  # R(1) = 3 + floor(3 (2/3)^3) = 3
    assert layouts.finish(first) is first
    schedule = BudgetSchedule(start=6, end=3, warmup=0, final=0, steps=9)
    layouts = SensitivityLayouts({0: 3, 2: 3}, schedule, is_a_sent=True)
    first = layouts.settle(1, adapter, [_scored(scores)])
    assert sum(layouts.server.values()) == 5  # 3 + floor(3 (8/9)^3)
    last = layouts.finish(first)
    assert layouts.server == layout_of(last) == {0: 1, 2: 2}
    a = "layer.2.query.lora_A.weight"
    assert np.array_equal(last[a], adapter[a][[0, 2]])


@pytest.mark.parametrize("unit", [1, 4])
def test_finite_scores_of_any_size_do_not_decide_alone(player: Player, unit: int) -> None:
    """One of four devices claims that a unit is all that counts: it gets that unit, no more."""

    def claim(scores: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(scores)) == unit, np.finfo(np.float32).max, 0.0)

    honest = _played(player)
    played = _played(player, faults={3: _bad_scores(claim)})
    assert played.devices(2) == honest.devices(2)
    sent = _scores_sent(honest, 2)
    flat = {d: np.concatenate([rows[b] for b in OUTER]) for d, rows in sent.items()}
    shares = [flat[d] / flat[d].sum(dtype=np.float64) for d in range(3)]
    mean = (sum(shares) + np.eye(6)[unit]) / 4  # equal numbers of rows
    best = np.argsort(-mean, kind="stable")[:4]
    wanted = {b: {int(i) % 3 for i in best if i // 3 == place} for place, b in enumerate(OUTER)}
    order = wire.read_order(played.of_round(3)[0].sent)
    kept = {
        b: set(order.units[b]) if order.units else set(range(r)) for b, r in order.layout.items()
    }
    assert kept == wanted
