"""Noise on features through whole federations: what arrives, and what is booked."""

import pytest

from fl_app.errors import ConfigError
from fl_app.features_wire import FeatureWire
from fl_app.fomo.features import Features
from fl_app.privacy import features_epsilon
from tests.federation_fixtures import Player, player, tiny_federation

__all__ = ["player", "tiny_federation"]

WORDS = (
    "strategy=gradient_download",
    "peft=prompt",
    "peft.num_tokens=3",
    "finetune.max_steps=2",
    "strategy.privacy.clip_norm=0.5",
)


def arrivals(player: Player, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[Features]:
    """Returns all features the server read in a federation."""
    seen: list[Features] = []
    read = FeatureWire.read_features

    def keeping(wire: FeatureWire, *arguments: object) -> Features:
        seen.append(read(wire, *arguments))  # type: ignore[arg-type]
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWire, "read_features", keeping)
        player.play(*WORDS, *more)
    return seen


def test_next_to_no_noise_leaves_clipped_examples(
    player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = arrivals(player, monkeypatch)
    sent = arrivals(player, monkeypatch, "strategy.privacy.noise_multiplier=1e-6")
    assert len(free) == len(sent) > 0
    norms = [(one.hidden[0] * one.masks[0][..., None]).flatten(1).norm(dim=1) for one in free]
    assert min(float(norm.min()) for norm in norms) > 0.5  # every example is clipped
    for one in sent:
        length = one.hidden[0].flatten(1).norm(dim=1)
        assert float((length - 0.5).abs().max()) < 1e-4
        assert not one.hidden[0][~one.masks[0]].any()


def test_every_round_books_what_was_told_so_far(player: Player) -> None:
    noise = "strategy.privacy.noise_multiplier=3"
    played = player.play(*WORDS, noise, "finetune.epochs=2", "strategy.num_rounds=2")
    told = [record.metrics.get("features_epsilon") for record in played.outcome.rounds]
    # two epochs, and two local steps that may both hold the same example
    assert told == [None, features_epsilon(3.0, 2), features_epsilon(3.0, 4)]
    assert all("train_loss" in record.metrics for record in played.outcome.rounds[1:])
    once = player.play(*WORDS, noise, "strategy.num_rounds=1")
    assert once.outcome.rounds[1].metrics["features_epsilon"] == features_epsilon(3.0, 1)
    free = player.play(*WORDS, "strategy.num_rounds=1")
    assert "features_epsilon" not in free.outcome.rounds[1].metrics


def test_noise_is_refused_where_it_is_not_accounted_for(player: Player) -> None:
    with pytest.raises(ConfigError, match="not accounted"):
        player.play(
            "strategy=gradient_download",
            "strategy.variant=scalar",
            "strategy.privacy.noise_multiplier=1",
        )
