"""``peft.combine`` where all devices hold the same: what has no effect is named in the log."""

import logging

import numpy as np
import pytest

from fl_app.bench import prepare
from fl_app.config import load_config
from fl_app.variants import as_reference
from strategies.fit_layouts import say_unused_combine
from tests.federation_fixtures import SKEW, Player, player, tiny_federation

__all__ = ["player", "tiny_federation"]

EXACT = "peft.aggregation=exact"


@pytest.mark.parametrize("words", [(), (EXACT,), ("peft.layout.rule=linear_up",)])
def test_zero_and_flex_are_pad_among_equals(player: Player, words: tuple[str, ...]) -> None:
    """Bit for bit; stacks are not."""
    given = ["pad", "zero", "flex"] + ["stack"] * (EXACT in words)
    made = {
        combine: player.play(*words, SKEW, f"peft.combine={combine}", warm=True).outcome.adapter
        for combine in given
    }
    for combine in ("zero", "flex"):
        for name, array in made["pad"].items():
            np.testing.assert_array_equal(made[combine][name], array)
    if "stack" in made:
        assert {n: a.shape for n, a in made["stack"].items()} != {
            n: a.shape for n, a in made["pad"].items()
        }


@pytest.mark.parametrize(
    ("words", "is_named"),
    [
        ("peft.combine=zero", True),
        ("peft=bottleneck peft.combine=zero", True),
        (f"peft.combine=flex {EXACT}", True),
        ("peft.combine=flex", True),
        ("peft=lora_linear_up peft.combine=zero", True),
        ("strategy=gradient_download peft=lora peft.combine=zero", True),
        ("peft.combine=pad", False),
        (f"peft.combine=stack {EXACT}", False),
        ("peft.combine=zero federation.classes=[{name:a,share:1}]", False),
        (f"peft.combine=flex {EXACT} strategy.schedule=random", False),
        ("peft=lora_channel_aware channel=digital peft.combine=zero", False),
        ("peft=head", False),
    ],
)
def test_a_choice_without_effect_is_named(
    words: str, is_named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "deft"):
        say_unused_combine(load_config(words))
    wanted = [f"peft.combine={word.split('=')[1]}" for word in words.split() if "combine=" in word]
    assert [r.getMessage().split()[0] for r in caplog.records] == wanted * is_named
    assert all("has no effect" in record.getMessage() for record in caplog.records)


def test_it_is_said_once_by_a_run_and_not_by_what_it_is_compared_with(
    player: Player, caplog: pytest.LogCaptureFixture
) -> None:
    alike = load_config(player.tiny.overrides("peft.combine=zero"))
    uneven = load_config(
        player.tiny.overrides("peft.combine=zero", "federation.classes=[{name:a,share:1}]")
    )
    with caplog.at_level(logging.WARNING, "deft"):
        prepare(as_reference(uneven, "centralised"), like=uneven)
        assert "has no effect" not in caplog.text
        prepare(alike)
    assert caplog.text.count("has no effect") == 1
