"""Members that all devices tune together, and members that cycles of rounds end with."""

from dataclasses import replace

import numpy as np
import pytest

from fl_app import updates, wire
from fl_app.config import load_config
from fl_app.errors import ConfigError
from fl_app.finetune import tune
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.job import Outcome
from fl_app.material import load_material
from fl_app.prompts.joint import JointAdapter, JointLoss, JointTask
from fl_app.records import blob_of, from_blob
from fl_app.seeding import generator
from fl_app.settings import round_tuning
from fl_app.updates import Update
from strategies.build import build_groups, build_rule
from strategies.fit import require_enough, require_fit
from strategies.roster import Roster
from tests import fakes
from tests.federation_fixtures import (
    NUM_DEVICES,
    Played,
    Player,
    assert_float32_mean,
    fedavg64,
    player,
    tiny_federation,
)
from tests.gradient_fixtures import GRADIENT, STEPS, WHOLE, equal_bits, play, relative

__all__ = ["player", "tiny_federation"]

TWO = ("peft=prompt", "peft.num_tokens=3", "prompt=ensemble_mean", "prompt.num_members=2")
JOINT = (*TWO, "prompt.members_from=joint")
SNAPSHOTS = (*TWO, "prompt.members_from=snapshots", "strategy.num_rounds=4")
SKEW = "data.partition.kind=quantity"
DEVICES = range(NUM_DEVICES)


def _members(outcome: Outcome) -> list[Update]:
    return updates.split(outcome.adapter, 2)


def _received(played: Played, number: int) -> Update:
    """What devices begin a round with: all with the same."""
    first, *others = (
        from_blob(blob_of(e.sent.content.array_records["adapter"])) for e in played.of_round(number)
    )
    assert all(equal_bits(first, other) for other in others)
    return first


def _averaged(played: Played, number: int, later: Update) -> None:
    """Checks a round's result against the mean in float64 of what devices sent."""
    exchanges = played.of_round(number)
    counts = [e.received[0].content.metric_records[wire.METRICS] for e in exchanges]
    weights = [float(c[wire.NUM_EXAMPLES]) for c in counts]  # type: ignore[arg-type]
    sent, start = [e.updates[0] for e in exchanges], _received(played, number)
    assert_float32_mean(later, fedavg64(start, sent, weights), start, sent)


def test_snapshots_are_what_cycles_end_with(player: Player) -> None:
    """Every round goes on where the one before it ended, and two of the ends are kept."""
    played = player.play(*SNAPSHOTS, SKEW)
    ends = [_received(played, number) for number in (2, 3, 4)]
    first, last = _members(played.outcome)
    assert equal_bits(ends[1], first)  # the second cycle starts from the first one's end
    for number, later in enumerate([*ends, last], start=1):
        _averaged(played, number, later)
    assert not equal_bits(first, last)
    ensemble = played.bench.ensemble
    assert ensemble is not None
    entry = ensemble.entry(
        played.outcome.adapter,
        played.bench.test,
        ensemble.measure(played.bench.full.bare_model, played.outcome.adapter, played.bench.test),
    )
    assert [member["round"] for member in entry["members"]] == [2, 4]
    assert [member["devices"] for member in entry["members"]] == [[*DEVICES]] * 2


def test_a_cycle_without_its_first_round_starts_from_the_last_one(player: Player) -> None:
    faults = {(3, device): fakes.raises() for device in DEVICES}
    played = player.play(*SNAPSHOTS, faults=faults)
    first, last = _members(played.outcome)
    assert equal_bits(_received(played, 4), first)
    assert not equal_bits(first, last)


def test_a_cycle_that_moved_nothing_has_no_say(player: Player) -> None:
    faults = {(number, device): fakes.raises() for device in DEVICES for number in (1, 2)}
    played = player.play(*SNAPSHOTS, faults=faults)
    bench = played.bench
    assert bench.ensemble is not None
    assert bench.ensemble.pool(played.outcome.adapter)[1] == {0: "untuned"}


def test_a_cycle_has_a_rule_of_its_own(player: Player) -> None:
    """FedAdam without moments at the start of each cycle, fed with what devices sent."""
    words = ("strategy.server_rule.name=fedadam", "strategy.server_rule.options={eta: 0.01}")
    played = player.play(*SNAPSHOTS, *words)
    config, adapter = load_config(player.tiny.overrides(*SNAPSHOTS, *words)), _received(played, 1)
    for cycle, member in enumerate(_members(played.outcome)):
        rule = build_rule(config.strategy.server_rule)
        for number in (1, 2):  # of its own: it corrects its moments by it
            rule.announce(number, adapter)
            exchanges = played.of_round(2 * cycle + number)
            rows = [updates.add(adapter, exchange.updates[0]) for exchange in exchanges]
            adapter = rule.apply(number, rows, np.full(len(rows), 24.0))
        assert equal_bits(adapter, member)


def test_snapshots_by_gradient_download_are_those_of_the_whole_model(player: Player) -> None:
    each = (*SNAPSHOTS[2:-1], "strategy.num_rounds=2")
    cut = play(player, *GRADIENT, "strategy.variant=prompt", *SNAPSHOTS[:2], *STEPS, *each)
    wire_type = "strategy.emulator.wire_dtype=float32"
    whole = player.play(*WHOLE["prompt"], wire_type, *STEPS, *each)
    start = _received(whole, 1)
    for one, other in zip(_members(cut.outcome), _members(whole.outcome), strict=True):
        assert relative(one, other, start) < 1e-3


def test_members_tuned_together_are_averaged_over_all_devices(player: Player) -> None:
    played = player.play(*JOINT, SKEW, "strategy.num_rounds=2")
    later = _received(played, 2)
    assert set(later) == set(played.outcome.adapter)  # a device holds all members
    _averaged(played, 1, later)
    _averaged(played, 2, played.outcome.adapter)
    one, other = _members(played.outcome)
    assert not np.array_equal(one[PROMPT_NAME], other[PROMPT_NAME])
    ensemble = played.bench.ensemble
    assert ensemble is not None
    assert ensemble.start().keys() == later.keys()


def test_one_member_tuned_together_is_the_plain_run(player: Player) -> None:
    """Its loss is the mixture's and its own, which are one, and the gradient is scaled back."""
    words = ("strategy.num_rounds=2", "finetune.eps=1e-3")
    plain = player.play(*TWO[:2], *words)
    joint = player.play(*JOINT, "prompt.num_members=1", *words)
    assert relative(joint.outcome.adapter, plain.outcome.adapter, plain.start) < 1e-3
    assert not equal_bits(plain.outcome.adapter, plain.start)


def test_members_that_agree_move_as_one_alone(player: Player) -> None:
    """Three equal ones, by one step whose size AdamW's eps sees."""
    bench, _ = player.bench(player.tiny.overrides(*TWO))
    encoded, full = bench.task.encode(load_material(bench.config).train), bench.full
    settings = replace(round_tuning(bench.config, 1), max_steps=1, eps=1e-3)
    joint, start = JointAdapter(full, 3), full.read()
    goal = JointTask(bench.task, JointLoss(ensemble=0.7, member=1.4, diversity=0.3))
    tune(joint.model, joint.parameters, goal, encoded, settings, generator(0))
    tune(full.model, full.parameters, bench.task, encoded, settings, generator(0))
    for member in updates.split(joint.read(), 3):
        assert relative(member, full.read(), start) < 1e-3


_HUGE = fakes.update(lambda old: {name: np.full_like(a, 1e9) for name, a in old.items()})


@pytest.mark.parametrize("words", [TWO, JOINT, SNAPSHOTS])
def test_a_device_that_shouts_is_dropped_alone(player: Player, words: tuple[str, ...]) -> None:
    """Its update is finite; the others' members stay sound in this round and all later ones."""
    faults = {(1, 3): _HUGE, (3, 2): _HUGE}
    played = player.play(*words, "strategy.num_rounds=4", faults=faults)
    assert played.dropped(1) == {"huge-norm": [3]}
    assert played.dropped(3) == {"huge-norm": [2]}
    ensemble = played.bench.ensemble
    assert ensemble is not None
    assert ensemble.pool(played.outcome.adapter)[1] == {}


@pytest.mark.parametrize("words", [JOINT, SNAPSHOTS])
def test_they_may_share_a_radio_channel(player: Player, words: tuple[str, ...]) -> None:
    """Without noise the sum in the air is the weighted mean."""
    ideal = player.play(*words, "strategy.num_rounds=2")
    radio = player.play(*words, "strategy.num_rounds=2", "channel=aircomp", "channel.tx_snr_db=inf")
    start = _received(ideal, 1)
    start = start if words is JOINT else updates.join([start, start])
    assert relative(radio.outcome.adapter, ideal.outcome.adapter, start) < 1e-3


def test_the_book_has_what_every_source_costs(player: Player) -> None:
    """A device of a group or a cycle gets and sends one member, a joint one all of them."""
    sent = {}
    for source in ("groups", "joint", "snapshots"):
        words = (*TWO, f"prompt.members_from={source}", "strategy.num_rounds=2")
        played = player.play(*words)
        sent[source] = [e.updates[0] for e in played.of_round(1)]
    one = updates.num_reals(sent["groups"][0])
    assert [updates.num_reals(update) for update in sent["snapshots"]] == [one] * NUM_DEVICES
    assert [updates.num_reals(update) for update in sent["joint"]] == [2 * one] * NUM_DEVICES


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("prompt.members_from=joint strategy=gradient_download", "choose prompt.members_from="),
        ("prompt.members_from=snapshots strategy.num_rounds=4", "needs as many rounds"),
        ("prompt.members_from=groups channel=aircomp", "prompt.members_from=joint or snapshots"),
        (
            "prompt.members_from=groups strategy=gradient_download strategy.shared_gradient=true",
            "prompt.members_from=snapshots",
        ),
    ],
)
def test_sources_that_do_not_fit_are_named(words: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        require_fit(load_config(f"prompt=ensemble_mean {words}"))


@pytest.mark.parametrize(
    "words",
    [
        "prompt.members_from=wild",
        "prompt.members_from=joint prompt.num_members=null",
        "prompt.members_from=snapshots prompt.num_members=null",
        "prompt.joint.diversity=-1",
        "prompt.joint.ensemble=0 prompt.joint.member=0",
    ],
)
def test_options_out_of_range_are_named(words: str) -> None:
    with pytest.raises(ConfigError, match=r"prompt\.(members_from|num_members|joint)"):
        load_config(f"prompt=ensemble_mean {words}")


def test_more_members_than_devices_are_no_matter_to_them() -> None:
    roster = Roster({0: 0, 1: 1})
    for source in ("joint", "snapshots"):
        config = load_config(f"prompt=ensemble_mean prompt.members_from={source}")
        require_fit(config)
        require_enough(config, roster)
        groups = build_groups(config, roster)
        assert [groups.devices(group) for group in range(len(groups))] == [[0, 1]] * len(groups)
