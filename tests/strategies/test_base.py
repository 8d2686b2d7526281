"""Federated rounds: every mean that counts, and rounds that cannot have one."""

import pytest

from fl_app import wire
from fl_app.errors import ConfigError, RunError
from fl_app.job import adapter_sha256, require_progress
from tests import fakes
from tests.federation_fixtures import ALL_DEVICES, NUM_ROUNDS, SKEW, Player, assert_round_mean


def test_without_faults_every_round_is_the_float64_mean(player: Player) -> None:
    """The oracle follows the adapter from round to round: each round starts where one ended."""
    played = player.play(SKEW)
    assert [played.devices(n) for n in range(1, NUM_ROUNDS + 1)] == [ALL_DEVICES] * NUM_ROUNDS
    for number in range(1, NUM_ROUNDS + 1):
        sent = [wire.read_order(e.sent).adapter for e in played.of_round(number)]
        for other in sent[1:]:
            assert adapter_sha256(other) == adapter_sha256(sent[0])
        assert (adapter_sha256(sent[0]) == adapter_sha256(played.start)) == (number == 1)
    assert_round_mean(played, NUM_ROUNDS, sent[0], ALL_DEVICES)


def test_a_round_without_survivors_keeps_the_adapter_and_the_next_goes_on(player: Player) -> None:
    lost = {(1, device): fakes.vanishes for device in ALL_DEVICES}
    played = player.play(SKEW, faults=lost)
    assert played.dropped(1) == {"silent": ALL_DEVICES}
    assert played.devices(1) == []
    orders = [wire.read_order(exchange.sent) for exchange in played.of_round(2)]
    assert {adapter_sha256(order.adapter) for order in orders} == {adapter_sha256(played.start)}
    assert_round_mean(played, 2, played.start, ALL_DEVICES)
    assert played.outcome.aggregated == 1
    require_progress(played.outcome)


def test_too_few_survivors_for_the_rule_cost_a_round_and_not_the_run(player: Player) -> None:
    """Bulyan needs 4 f + 3 updates; with two of four devices gone it has nothing to go by."""
    words = ("strategy.server_rule.name=bulyan",)
    played = player.play(*words, faults={(1, 2): fakes.vanishes, (1, 3): fakes.raises()})
    assert played.dropped(1) == {"silent": [2], "error": [3], "rule": [0, 1]}
    assert played.devices(1) == []
    assert (played.dropped(2), played.devices(2)) == ({}, ALL_DEVICES)
    orders = [wire.read_order(exchange.sent) for exchange in played.of_round(2)]
    assert {adapter_sha256(order.adapter) for order in orders} == {adapter_sha256(played.start)}


def test_a_rule_that_needs_more_devices_than_a_round_has_is_refused(player: Player) -> None:
    words = ("strategy.server_rule.name=bulyan", "federation.devices_per_round=2")
    with pytest.raises(ConfigError, match=r"bulyan.*more devices per round"):
        player.play(*words)


def test_a_last_round_without_survivors_keeps_the_adapter(player: Player) -> None:
    lost = {(2, device): fakes.raises() for device in ALL_DEVICES}
    played = player.play(SKEW, faults=lost)
    assert_round_mean(played, 1, played.start, ALL_DEVICES)
    assert played.dropped(2) == {"error": ALL_DEVICES}


def test_a_run_without_any_survivor_is_an_error_that_says_why(player: Player) -> None:
    faults = {0: fakes.vanishes, 1: fakes.raises(), 2: fakes.config(round=7), 3: fakes.vanishes}
    played = player.play(faults=faults)
    assert adapter_sha256(played.outcome.adapter) == adapter_sha256(played.start)
    with pytest.raises(RunError, match="dropped for: error, silent, wrong-round"):
        require_progress(played.outcome)


def test_a_dead_simulation_worker_ends_the_run(player: Player) -> None:
    """Ray puts a dead actor back into its pool, where it fails every later message."""
    reason = "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing"
    with pytest.raises(RunError, match="worker process died"):
        player.play(faults={(1, 1): fakes.raises(reason)})
