"""Mixtures of the prompts that arrived stand at the gate like any other."""

import dataclasses
from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

from clients.prompt_choice import mixture
from fl_app.config import load_config
from fl_app.errors import ConfigError, WireError
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.ledger import What
from fl_app.payload import Payload
from fl_app.schema import TransferPrompt
from fl_app.transfer_wire import MIXED, NOBODY, Report, may_name, read_search
from strategies.transfer_book import TransferRecord
from tests.federation_fixtures import Player
from tests.gradient_fixtures import GradientPlayed, lying, on, play
from tests.transfer_fixtures import (
    LOSS_ROUNDING,
    NUM_DEVICES,
    PHASE,
    Seen,
    central_loss,
    device_rows,
    transfer_player,
    transfer_words,
)

__all__ = ["transfer_player"]
_TAU = 0.05
_TUNING: tuple[What, ...] = ("features", "slopes", "states", "gradient", "update")


@pytest.fixture(scope="module")
def mixed(transfer_player: Player) -> Iterator[GradientPlayed]:
    with patch("logging.Logger.warning"):
        yield play(transfer_player, *transfer_words(f"prompt.mix_temperature={_TAU}"))


def _by_hand(
    played: GradientPlayed, own: NDArray[np.float32], asked: list[int], tau: float = _TAU
) -> NDArray[np.float32]:
    """softmax(cosine of the advertised means / tau), and the weighted mean in float64."""
    adverts, prompts = Seen(played).adverts(), Seen(played).prompts()
    mine = own.astype(np.float64)
    cosines = []
    for source in asked:
        theirs = adverts[source].descriptor.astype(np.float64)
        cosines.append(mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs))
    weights = np.exp(np.array(cosines) / tau)
    parts = np.array([prompts[source].prompt.astype(np.float64) for source in asked])
    return np.einsum("s,smd->md", weights / weights.sum(), parts).astype(np.float32)


def test_the_best_of_all_and_their_mixture_is_at_the_gate(mixed: GradientPlayed) -> None:
    """By brute force on the undivided model."""
    seen = Seen(mixed)
    adapter, prompts = seen.adapter(), seen.prompts()
    for device, record in seen.records.items():
        encoded, rows = device_rows(mixed, device)
        candidates = {source: prompts[source].prompt for source in record["asked"]}
        own = seen.adverts()[device].descriptor
        candidates[MIXED] = _by_hand(mixed, own, record["asked"])
        losses = {
            source: central_loss(mixed, adapter, prompt, encoded, rows.probe)
            for source, prompt in candidates.items()
        }
        best = min(losses, key=lambda source: losses[source])
        assert record["probe_candidate"] == pytest.approx(losses[best], abs=LOSS_ROUNDING)
        passed = record["action"] != "kept"
        assert record["is_mixed"] == (passed and best == MIXED)
        assert record["source"] == (best if passed and best != MIXED else None)


def test_a_mixture_that_passes_is_used_and_booked(transfer_player: Player) -> None:
    """The gate is made to let the last candidate in, which is the mixture."""
    words = (f"prompt.mix_temperature={_TAU}", "prompt.most=2", "prompt.use=zero_shot")
    with patch("clients.transfer_worker.let_in", lambda losses, **_: len(losses) - 1):
        played = play(transfer_player, *transfer_words(*words, "finetune.max_steps=5"))
    seen, books = Seen(played), played.outcome.ledger
    uses = set()
    for device, record in seen.records.items():
        asked = record["asked"]
        assert len(asked) == 2
        encoded, rows = device_rows(played, device)
        made = _by_hand(played, seen.adverts()[device].descriptor, asked)
        loss = central_loss(played, seen.adapter(), made, encoded, rows.validation)
        assert record["loss_candidate"] == pytest.approx(loss, abs=LOSS_ROUNDING)
        assert (record["is_mixed"], record["source"]) == (True, None)
        # what round 1 cost all sources; the books go on after the search
        spent = [
            books.total_bytes(device=source, round=1, what=what)
            for source in asked
            for what in _TUNING
        ]
        assert record["retraining_bytes"] == sum(spent) > 0
        uses.add(record["action"])
    assert "zero-shot" in uses


def test_a_device_that_joins_mixes_by_likeness_to_the_mean_prompt(transfer_player: Player) -> None:
    """It has no prompt of its own, and the mean prompt stands for it: tau says something."""
    words = ("prompt.rounds=null", "prompt.use=zero_shot", "federation.devices_per_round=4")
    with patch("clients.transfer_worker.let_in", lambda losses, **_: len(losses) - 1):
        played = play(transfer_player, *transfer_words(*words, f"prompt.mix_temperature={_TAU}"))
    seen, gaps = Seen(played), []
    own = seen.adapter()[PROMPT_NAME].mean(0)
    for device, record in seen.records.items():
        assert record["is_mixed"]
        encoded, rows = device_rows(played, device)
        losses = [
            central_loss(played, seen.adapter(), made, encoded, rows.validation)
            for made in (
                _by_hand(played, own, record["asked"]),
                _by_hand(played, own, record["asked"], tau=1e6),
            )
        ]
        assert record["loss_candidate"] == pytest.approx(losses[0], abs=LOSS_ROUNDING)
        gaps.append(abs(losses[0] - losses[1]))
    assert max(gaps) > 10 * LOSS_ROUNDING


def test_what_a_mixture_had_cost_is_what_all_that_came_had_cost() -> None:
    """Device 4 was asked as well, and its prompt did not come."""
    record = TransferRecord(2, 0, asked=[3, 4, 5], delivered=[3, 5])
    for source, wanted in ((3, [3]), (MIXED, [3, 5]), (NOBODY, [])):
        record.report = Report("passed", source)
        assert record.sources == wanted
        plain = record.as_dict()
        assert plain["source"] == (source if source >= 0 else None)
        assert plain["is_mixed"] == (source == MIXED)


def test_nobody_mixes_one_prompt() -> None:
    """Neither a device does, nor is one believed, nor is one where nobody mixes."""
    settings, ones = TransferPrompt(most=2, mix_temperature=1.0), np.ones((2, 3), np.float32)
    assert mixture({4: ones}, ones, settings) == {}
    assert may_name([3, 5], mixes=True) == {3, 5, MIXED}
    assert may_name([3, 5], mixes=False) == {3, 5}
    assert may_name([3], mixes=True) == {3}
    report = Report("passed", MIXED).to_payload()
    assert read_search(report, {3, 5, MIXED}).source == MIXED
    with pytest.raises(WireError, match="no end of a search"):
        read_search(report, {3, 5})


@pytest.mark.parametrize(
    ("claimed", "tau", "silent"),
    [(MIXED, "null", ()), (MIXED, _TAU, (0, 1, 2, 4, 5, 6)), (4, "null", (4,)), (4, _TAU, (4,))],
    ids=["nobody mixes", "one prompt came", "it never came", "others came"],
)
def test_a_claim_of_what_cannot_be_costs_its_device_alone(
    transfer_player: Player, claimed: int, tau: object, silent: tuple[int, ...]
) -> None:
    """Everybody asks everybody. The liar says it uses a mixture, or the prompt of who gave none."""
    liar = 3

    def lie(payload: Payload) -> Payload:
        scalars = dict(payload.scalars) | {"action": "zero-shot", "source": claimed}
        scalars |= {"loss_own": 1.0, "loss_candidate": 0.5}
        return dataclasses.replace(payload, scalars=scalars)

    lies = on("judge", lying(lie), devices=(liar,), rounds=(PHASE,))
    hides = on(
        "give",
        lying(lambda payload: dataclasses.replace(payload, arrays={})),
        devices=silent,
        rounds=(PHASE,),
    )
    words = ("prompt.use=zero_shot", f"prompt.mix_temperature={tau}", "finetune.max_steps=2")
    with patch("logging.Logger.warning"):
        played = play(
            transfer_player,
            *transfer_words(*words),
            spoil=lambda place, *both: (hides if place.kind == "give" else lies)(place, *both),
        )
    assert played.dropped(PHASE) == {"missing": [liar]}
    for device, record in Seen(played).records.items():
        came = set(record["asked"]) - set(silent)
        assert len(record["asked"]) == NUM_DEVICES - 1
        assert record["source"] in {None, *came}
        if device == liar:
            assert (record["action"], record["is_mixed"]) == ("kept", False)
            assert record["retraining_bytes"] == 0
        else:
            assert record["loss_own"] is not None or not came


@pytest.mark.parametrize("word", ["prompt.mix_temperature=0", "prompt.mix_temperature=1"])
def test_options_that_do_not_fit_are_named(word: str) -> None:
    """The second lacks a second prompt."""
    with pytest.raises(ConfigError, match=r"prompt\.(mix_temperature|most)"):
        load_config(f"strategy=gradient_download prompt=transfer {word}")
