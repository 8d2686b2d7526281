"""Groups of devices: each member is the average of its own devices and of nobody else's."""

import numpy as np
import pytest

from fl_app import updates, wire
from fl_app.bench import starting_adapter
from fl_app.config import load_config
from fl_app.errors import ConfigError
from fl_app.fomo.adapter import is_head
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.job import Outcome
from fl_app.records import blob_of, from_blob
from fl_app.updates import Update
from strategies.build import build_rule
from strategies.fit import require_enough, require_fit
from strategies.groups import Groups, deal
from strategies.roster import Roster
from tests import fakes
from tests.federation_fixtures import (
    NUM_DEVICES,
    NUM_ROUNDS,
    Played,
    Player,
    assert_float32_mean,
    fedavg64,
)
from tests.gradient_fixtures import GRADIENT, STEPS, WHOLE, equal_bits, play, relative

_M = 3
PROMPT = ("peft=prompt", f"peft.num_tokens={_M}")
TWO = (*PROMPT, "prompt=ensemble_mean", "prompt.num_members=2")
SKEW = "data.partition.kind=quantity"


def _members(outcome: Outcome, num: int = 2) -> list[Update]:
    return updates.split(outcome.adapter, num)


def _groups(seed: int = 0, num: int = 2) -> list[list[int]]:
    of = deal(range(NUM_DEVICES), num, seed)
    return [[device for device in of if of[device] == group] for group in range(num)]


def _received(played: Played, number: int, group: list[int]) -> list[Update]:
    exchanges = [e for e in played.of_round(number) if e.device in group]
    return [from_blob(blob_of(e.sent.content.array_records["adapter"])) for e in exchanges]


@pytest.mark.parametrize(("num_devices", "num"), [(4, 2), (10, 3), (7, 7), (5, 1)])
def test_dealing_is_even_seeded_and_numbered_by_device(num_devices: int, num: int) -> None:
    of = deal(range(num_devices), num, 0)
    sizes = np.bincount(list(of.values()), minlength=num)
    assert sizes.max() - sizes.min() <= 1
    first = [min(d for d in of if of[d] == group) for group in range(num)]
    assert first == sorted(first)
    assert deal(range(num_devices), num, 0) == of
    if num == num_devices:
        assert of == {device: device for device in range(num_devices)}


def test_another_seed_deals_otherwise() -> None:
    assert len({tuple(deal(range(10), 3, seed).values()) for seed in range(5)}) > 1


def test_joining_and_splitting_lose_nothing() -> None:
    parts = [
        {"a/b": np.full(2, float(i), np.float32), "c": np.ones(1, np.float32)} for i in range(11)
    ]
    joined = updates.join(parts)
    assert len(joined) == 22
    for part, back in zip(parts, updates.split(joined, 11), strict=True):
        assert equal_bits(part, back)
    assert equal_bits(updates.join(parts[:1]), parts[0])


def test_every_member_is_the_mean_of_its_own_group(player: Player) -> None:
    """Two rounds, hand-made in float64 from what each group's devices sent."""
    played = player.play(*TWO, SKEW)
    ensemble = played.bench.ensemble
    assert ensemble is not None
    groups, last = _groups(), _members(played.outcome)
    assert sorted(map(len, groups)) == [2, 2]
    before = updates.split(ensemble.start(), 2)
    for number in range(1, NUM_ROUNDS + 1):
        after = []
        for place, (group, start) in enumerate(zip(groups, before, strict=True)):
            received = _received(played, number, group)
            assert all(equal_bits(one, start) for one in received)  # its own member, no other
            exchanges = [e for e in played.of_round(number) if e.device in group]
            sent = [e.updates[0] for e in exchanges]
            counts = [e.received[0].content.metric_records[wire.METRICS] for e in exchanges]
            weights = [float(c[wire.NUM_EXAMPLES]) for c in counts]  # type: ignore[arg-type]
            is_last = number == NUM_ROUNDS
            later = last[place] if is_last else _received(played, number + 1, group)[0]
            assert_float32_mean(later, fedavg64(start, sent, weights), start, sent)
            after.append(later)
        before = after
    assert not np.array_equal(last[0][PROMPT_NAME], last[1][PROMPT_NAME])


def test_members_start_with_prompts_apart_and_one_head(player: Player) -> None:
    bench, start = player.bench(player.tiny.overrides(*TWO))
    one, other = updates.split(starting_adapter(bench), 2)
    assert equal_bits(one, start)  # the first is that of the run without an ensemble
    assert not np.array_equal(one[PROMPT_NAME], other[PROMPT_NAME])
    assert all(np.array_equal(one[name], other[name]) for name in one if is_head(name))


def test_a_device_gets_and_sends_one_member_whatever_their_number(player: Player) -> None:
    alone = player.play(*PROMPT, "strategy.num_rounds=1")
    many = player.play(
        *PROMPT, "prompt=ensemble_mean", "prompt.num_members=null", "strategy.num_rounds=1"
    )
    for one, other in zip(alone.of_round(1), many.of_round(1), strict=True):
        assert one.downlink_bytes == other.downlink_bytes
    book, wanted = many.outcome.ledger, alone.outcome.ledger
    assert book.total_bytes(what="adapter") == wanted.total_bytes(what="adapter")
    assert book.total_bytes(what="update") == wanted.total_bytes(what="update")
    assert len(many.outcome.adapter) == NUM_DEVICES * len(alone.outcome.adapter)


def test_an_ensemble_of_one_is_the_plain_run_to_the_last_bit(player: Player) -> None:
    plain = player.play(*PROMPT)
    one = player.play(*PROMPT, "prompt=ensemble_vote", "prompt.num_members=1")
    assert equal_bits(plain.outcome.adapter, one.outcome.adapter)
    assert not equal_bits(plain.outcome.adapter, plain.start)


def test_rules_that_remember_do_so_for_each_group_alone(player: Player) -> None:
    """FedAdam by one rule of its own per group, fed with what that group's devices sent."""
    rule_words = ("strategy.server_rule.name=fedadam", "strategy.server_rule.options={eta: 0.01}")
    played = player.play(*TWO, *rule_words)
    config = load_config(player.tiny.overrides(*TWO, *rule_words))
    ensemble = played.bench.ensemble
    assert ensemble is not None
    for group, start, tuned in zip(
        _groups(), updates.split(ensemble.start(), 2), _members(played.outcome), strict=True
    ):
        rule, adapter = build_rule(config.strategy.server_rule), start
        for number in range(1, NUM_ROUNDS + 1):
            rule.announce(number, adapter)
            sent = [e.updates[0] for e in played.of_round(number) if e.device in group]
            rows = [updates.add(adapter, update) for update in sent]
            adapter = rule.apply(number, rows, np.full(len(rows), 24.0))
        assert equal_bits(adapter, tuned)


def test_a_group_nobody_answers_from_keeps_its_member(player: Player) -> None:
    groups = _groups()
    faults = {(2, device): fakes.raises() for device in groups[1]}
    short = player.play(*TWO, "strategy.num_rounds=1")
    played = player.play(*TWO, faults=faults)
    assert played.devices(2) == groups[0]
    assert played.dropped(2) == {"error": groups[1]}
    assert equal_bits(_members(played.outcome)[1], _members(short.outcome)[1])
    assert not equal_bits(_members(played.outcome)[0], _members(short.outcome)[0])


def test_a_rule_short_of_survivors_costs_its_group_alone(player: Player) -> None:
    """Of two devices Krum needs both; one group loses one of them."""
    krum = ("strategy.server_rule.name=multikrum", "strategy.num_rounds=1")
    options = "strategy.server_rule.options={num_malicious_nodes: 0, num_nodes_to_select: 2}"
    groups = _groups()
    faults = {groups[1][0]: fakes.vanishes}
    whole = player.play(*TWO, *krum, options)
    played = player.play(*TWO, *krum, options, faults=faults)
    assert equal_bits(_members(played.outcome)[0], _members(whole.outcome)[0])
    assert set(played.devices(1)) >= set(groups[0])


def test_gradient_download_tunes_the_same_members(player: Player) -> None:
    """Against the same federation with the whole model on every device, one member each."""
    each = ("prompt=ensemble_mean", "prompt.num_members=2")
    cut = play(player, *GRADIENT, "strategy.variant=prompt", *PROMPT, *STEPS, *each)
    whole = player.play(*WHOLE["prompt"], "strategy.emulator.wire_dtype=float32", *STEPS, *each)
    ensemble = whole.bench.ensemble
    assert ensemble is not None
    starts = updates.split(ensemble.start(), 2)
    for one, other, start in zip(
        _members(cut.outcome), _members(whole.outcome), starts, strict=True
    ):
        assert relative(one, other, start) < 1e-3


REFUSED = {
    "peft=lora": "set peft=prompt",
    "peft=head": "set peft=prompt",
    "prompt.num_members=5": r"prompt\.num_members=5 exceeds federation\.num_devices=4",
    "channel=aircomp": "channel=ideal",
    "channel=digital": "channel=ideal",
    "connection.block=1": "connection.block=null",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_does_not_fit_an_ensemble_is_named(player: Player, word: str) -> None:
    words = [*player.tiny.words(*TWO), word]
    if word.startswith("peft="):  # what the choice replaces goes with it
        words = [w for w in words if not w.startswith("peft") or w == word]
    with pytest.raises(ConfigError, match=REFUSED[word]):
        require_fit(load_config(" ".join(words)))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("prompt=ensemble_weighted data.public_fraction=0", "data.public_fraction above 0"),
        ("prompt=ensemble_attention data.public_fraction=0", "attention is fitted on public rows"),
        ("prompt=ensemble_fusion data.public_fraction=0", "fusion is fitted on public rows"),
        ("prompt=ensemble_fusion model.task=causal_lm", "choose prompt=ensemble_weighted"),
        ("prompt=ensemble_median model.task=causal_lm", "ensemble_mean or ensemble_vote"),
        (
            "prompt=ensemble_mean strategy=gradient_download strategy.shared_gradient=true",
            "shared_gradient",
        ),
        (
            "prompt=ensemble_mean strategy=gradient_download strategy.variant=scalar peft=lora",
            "set peft=prompt",
        ),
    ],
)
def test_contradictions_are_named(words: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        require_fit(load_config(words))


@pytest.mark.parametrize(
    "word", ["prompt.num_members=0", "prompt.eta=-1", "prompt.eta=.inf", "prompt.combiner=x"]
)
def test_options_out_of_range_are_named(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0].removeprefix("prompt.")):
        load_config(f"prompt=ensemble_weighted {word}")


@pytest.mark.parametrize(
    "word", ["prompt.lr=0", "prompt.epochs=0", "prompt.hidden=0", "prompt.num_members=1"]
)
def test_options_of_a_fit_out_of_range_are_named(word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        load_config(f"prompt=ensemble_attention {word}")


def test_an_ensemble_chooses_soft_prompts_by_itself() -> None:
    require_fit(load_config("prompt=ensemble_vote"))
    require_fit(load_config("prompt=ensemble_vote strategy=gradient_download"))
    with pytest.raises(ConfigError, match="set peft=prompt"):
        require_fit(load_config("prompt=ensemble_vote peft=lora"))


def test_a_group_must_have_a_device() -> None:
    config = load_config("prompt=ensemble_mean prompt.num_members=3")
    require_enough(config, Roster({device: device for device in range(3)}))
    with pytest.raises(ConfigError, match=r"prompt\.num_members makes 3 groups .* 2 devices"):
        require_enough(config, Roster({device: device for device in range(2)}))


def test_figures_of_several_groups_do_not_overwrite_each_other() -> None:
    figures = {"discarded": 0.25}
    rules = [build_rule(load_config("").strategy.server_rule) for _ in range(2)]
    assert Groups({0: 0}, rules[:1]).named(0, figures) == figures
    two = Groups({0: 0, 1: 1}, rules)
    assert two.named(1, figures) == {"group.1.discarded": 0.25}
    assert not set(two.named(0, figures)) & set(two.named(1, figures))
