"""Gradient download with everything else a federation may be told: LoRA spaces, channels, rules."""

import numpy as np
import pytest

from fl_app.errors import ConfigError
from fl_app.variants import REFERENCES
from tests.federation_fixtures import NUM_DEVICES, Player, player, tiny_federation
from tests.gradient_fixtures import (
    STEPS,
    VARIANTS,
    WHOLE,
    GradientPlayed,
    equal_bits,
    play,
    relative,
    words_of,
)

__all__ = ["player", "tiny_federation"]

SHORT = ("finetune.max_steps=2",)
OFF = 6e-5
"""As in ``test_gradient_download``: ten float32 roundings for each of some steps."""


def _like_the_whole(player: Player, variant: str, *more: str) -> GradientPlayed:
    """Plays, and compares with the same federation with the whole model on every device."""
    there = play(player, *words_of(variant, *SHORT, *more))
    whole = player.play(*WHOLE[variant], *STEPS, *SHORT, *more)
    assert [r.devices for r in there.outcome.rounds] == [r.devices for r in whole.outcome.rounds]
    assert relative(there.adapter, whole.outcome.adapter, whole.start) < OFF
    return there


@pytest.mark.parametrize("how", ["alternate", "exact", "factors"])
@pytest.mark.parametrize("variant", ["cut", "lora"])
def test_every_way_to_combine_factors(player: Player, variant: str, how: str) -> None:
    played = _like_the_whole(player, variant, f"peft.aggregation={how}")
    factors = [name for name in played.start if ".lora_A." in name]
    assert factors
    for number in (1, 2):
        sent = {
            name
            for e in played.grid.steps
            for up in e.up
            if up.kind == "update" and e.place.round == number
            for name in up.arrays
        }
        for name in factors:  # B in odd rounds, A in even ones
            assert (name in sent) == (how != "alternate" or number == 2)


@pytest.mark.parametrize(
    "rule",
    [
        ("fedadam", "{eta: 0.01, tau: 0.001}"),
        ("fedprox", "{proximal_mu: 0.5}"),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_server_rules(player: Player, variant: str, rule: tuple[str, str]) -> None:
    name, options = rule
    words = (f"strategy.server_rule.name={name}", f"strategy.server_rule.options={options}")
    played = _like_the_whole(player, variant, *words)
    plain = play(player, *words_of(variant, *SHORT))
    assert relative(played.adapter, plain.adapter, plain.start) > 1e-3  # the rule did something


@pytest.mark.parametrize("labels", ["private", "server"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_device_s_own_class_balance_is_adjusted_for(
    player: Player, variant: str, labels: str
) -> None:
    skewed = ("data.partition.kind=dirichlet", "data.public_fraction=0.2")
    words = (*skewed, f"strategy.labels={labels}")
    adjusted = play(player, *words_of(variant, *words, "finetune.logit_adjustment=1"))
    whole = player.play(*WHOLE[variant], *STEPS, *skewed, "finetune.logit_adjustment=1")
    assert relative(adjusted.adapter, whole.outcome.adapter, whole.start) < OFF
    plain = play(player, *words_of(variant, *words))
    assert relative(plain.adapter, adjusted.adapter, adjusted.start) > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_some_devices_a_round(player: Player, variant: str) -> None:
    words = ("federation.devices_per_round=2", "strategy.num_rounds=3")
    played = _like_the_whole(player, variant, *words)
    seen = [d for number in (1, 2, 3) for d in played.devices(number)]
    assert len(seen) == 6
    assert sorted(device for device, _ in played.grid.fronts) == sorted(set(seen))  # once each


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_noise_free_channel_is_the_ideal_one(player: Player, variant: str) -> None:
    """Each real is scaled, sent and scaled back in float64."""
    ideal = play(player, *words_of(variant, *SHORT))
    air = play(player, *words_of(variant, *SHORT, "channel=aircomp", "channel.tx_snr_db=inf"))
    assert relative(air.adapter, ideal.adapter, ideal.start) < OFF
    ledger, plain = air.outcome.ledger, ideal.outcome.ledger
    assert ledger.total_bytes(what="update") == 0 < plain.total_bytes(what="update")
    for what in ("features", "slopes", "states", "gradient"):
        assert ledger.total_bytes(what=what) == plain.total_bytes(what=what) > 0  # type: ignore[arg-type]
    # two reals a complex use, each tensor apart; before that every device sends two float32 a
    # tensor (its mean and size), where without noise a use carries 16 bits
    symbols = sum(-(-array.size // 2) for array in air.adapter.values())
    side = NUM_DEVICES * len(air.adapter) * 2 * 32 // 16
    assert ledger.as_dict()["channel_uses"] == 2 * (symbols + side)  # two rounds


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_digital_channel(player: Player, variant: str) -> None:
    """With 16 bits an update is off by some 2^-15 of its largest entry."""
    ideal = play(player, *words_of(variant, *SHORT))
    words = words_of(variant, *SHORT, "channel=digital", "channel.bits=16")
    played = play(player, *words)
    everybody = list(range(NUM_DEVICES))
    assert [played.devices(n) for n in (1, 2)] == [everybody, everybody]
    assert 0 < relative(played.adapter, ideal.adapter, ideal.start) < 1e-3
    for device in everybody:  # the radio's own bytes are booked, the message's are not
        reals = sum(array.size for array in played.adapter.values())
        booked = played.outcome.ledger.total_bytes(device=device, round=1, what="update")
        assert 2 * reals <= booked < 4 * reals


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_devices_on_one_node(player: Player, variant: str) -> None:
    words = words_of(variant, *SHORT)
    apart = play(player, *words)
    together = play(player, *words, num_nodes=NUM_DEVICES // 2)
    assert equal_bits(apart.adapter, together.adapter)
    assert together.outcome.ledger.as_dict() == apart.outcome.ledger.as_dict()


def test_a_node_cannot_serve_two_streams(player: Player) -> None:
    words = words_of("prompt", "strategy.transport=stream")
    with pytest.raises(ConfigError, match=r"transport=stream.*4 devices.*2 nodes.*messages"):
        play(player, *words, num_nodes=2)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_comparison_runs(player: Player, variant: str, reference: str) -> None:
    """They are whole-model federations: no device asks the server for a gradient."""
    num_nodes = 1 if reference == "centralised" else NUM_DEVICES
    played = play(player, *words_of(variant), reference=reference, num_nodes=num_nodes)
    assert played.outcome.aggregated == (1 if reference == "centralised" else 2)
    assert played.grid.steps == []
    own = play(player, *words_of(variant))
    if reference == "frozen":
        heads = {name for name in own.start if ".classifier." in name}
        assert set(played.adapter) == heads
    else:
        assert set(played.adapter) == set(own.adapter)
        assert all(np.array_equal(played.start[n], own.start[n]) for n in own.start)
    if reference == "federated_full":
        assert relative(played.adapter, own.adapter, own.start) < OFF
