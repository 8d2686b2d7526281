"""Federated rounds of the same seed: the same bits, whoever answers first and plays whom."""

import pytest

from fl_app.job import adapter_sha256
from tests import fakes
from tests.federation_fixtures import SKEW, Played, Player


@pytest.mark.parametrize("aggregation", ["freeze-a", "factors", "exact"])
def test_the_order_of_replies_changes_no_bit(player: Player, aggregation: str) -> None:
    words = (SKEW, f"peft.aggregation={aggregation}")
    faults = {(1, 3): fakes.vanishes}
    plain = player.play(*words, faults=faults)
    for shuffle in range(2):
        other = player.play(*words, faults=faults, shuffle=shuffle)
        assert adapter_sha256(other.outcome.adapter) == adapter_sha256(plain.outcome.adapter)
        assert other.outcome.ledger.as_dict() == plain.outcome.ledger.as_dict()
        for mine, theirs in zip(other.outcome.rounds, plain.outcome.rounds, strict=True):
            assert {**vars(mine), "seconds": 0} == {**vars(theirs), "seconds": 0}


def test_the_number_of_nodes_that_play_the_devices_changes_no_bit(player: Player) -> None:
    words = ("federation.num_devices=10",)
    results = {}
    for num_nodes in (1, 2, 10, 12):
        played = player.play(*words, num_nodes=num_nodes, warm=True)
        assert played.devices(2) == list(range(10))
        used = {e.sent.metadata.dst_node_id for e in played.grid.exchanges}
        assert len(used) == min(num_nodes, 10)
        results[num_nodes] = adapter_sha256(played.outcome.adapter)
    assert len(set(results.values())) == 1


def test_another_seed_gives_another_adapter(player: Player) -> None:
    results = {adapter_sha256(player.play(f"seed={s}").outcome.adapter) for s in (0, 1, 2)}
    assert len(results) == 3


def test_equal_seeds_draw_equal_cohorts_whatever_else_happens(player: Player) -> None:
    words = (
        "federation.num_devices=6",
        "federation.devices_per_round=2",
        "strategy.num_rounds=8",
    )

    def cohorts(played: Played) -> list[list[int]]:
        return [[e.device for e in played.of_round(n)] for n in range(1, 9)]

    plain = cohorts(player.play(*words))
    assert [len(set(cohort)) for cohort in plain] == [2] * 8
    assert len({tuple(cohort) for cohort in plain}) > 1
    lost = {device: fakes.vanishes for device in (0, 1, 2)}
    assert cohorts(player.play(*words, shuffle=1, num_nodes=3, faults=lost)) == plain
    assert cohorts(player.play(*words, "seed=1")) != plain
