"""Prompts from device to device in a federation, against the undivided model and brute force."""

import math
from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest

from fl_app.config import load_config
from fl_app.errors import ConfigError
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.prompts.advert import CARD_BYTES, MAX_ADVERT_BYTES, advert_of
from fl_app.prompts.contacts import Contacts
from fl_app.prompts.member import Card
from fl_app.schema import Config
from strategies.fit import require_fit
from strategies.fit_prompts import require_advert_fits
from tests.federation_fixtures import CLASSES, Player
from tests.fixtures_models import TinyModels
from tests.gradient_fixtures import GRADIENT, GradientPlayed, equal_bits, play
from tests.prompt_fixtures import CLASSES as CLASSES_TASK
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
_EVERY_CLASS = range(len(CLASSES))


@pytest.fixture(scope="module")
def honest(transfer_player: Player) -> Iterator[GradientPlayed]:
    with patch("logging.Logger.warning"):
        yield play(transfer_player, *transfer_words())


def test_devices_tune_prompts_of_their_own(honest: GradientPlayed) -> None:
    """Each advertises what it made itself; the server's adapter holds their mean."""
    prompts = [member.prompt for member in Seen(honest).prompts().values()]
    assert len(prompts) == NUM_DEVICES
    gaps = [float(np.abs(a - b).max()) for i, a in enumerate(prompts) for b in prompts[:i]]
    assert min(gaps) > 0.01
    mean = np.mean([p.astype(np.float64) for p in prompts], axis=0)  # equal numbers of rows
    np.testing.assert_allclose(Seen(honest).adapter()[PROMPT_NAME], mean, atol=1e-5)


def test_everybody_asks_whom_brute_force_would_ask(transfer_player: Player) -> None:
    """With ``most=1`` and a price that matters; one local step is enough for this."""
    words = ("prompt.most=1", "prompt.price_per_s=300", "finetune.max_steps=1")
    played = play(transfer_player, *transfer_words(*words))
    seen, config = Seen(played), played.bench.config
    contacts = Contacts(NUM_DEVICES, config.prompt.contacts, seed=config.seed)  # type: ignore[attr-defined]
    adverts = seen.adverts()
    by_cosine = 0
    for device in range(NUM_DEVICES):
        mine = adverts[device].descriptor.astype(np.float64)
        worth, plain = {}, {}
        for other in contacts.neighbours(PHASE, device):
            theirs = adverts[other].descriptor.astype(np.float64)
            cosine = mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs)
            seconds = 8 * adverts[other].num_bytes / contacts.link(PHASE, device, other).rate_bps
            worth[other], plain[other] = cosine - 300 * seconds, cosine
        assert seen.records[device]["asked"] == [max(worth, key=lambda o: worth[o])]
        by_cosine += max(plain, key=lambda o: plain[o]) == max(worth, key=lambda o: worth[o])
    assert by_cosine < NUM_DEVICES  # or the price would have gone unseen


def test_reported_losses_are_those_of_the_undivided_model(honest: GradientPlayed) -> None:
    seen = Seen(honest)
    adapter, prompts = seen.adapter(), seen.prompts()
    for device, record in seen.records.items():
        encoded, rows = device_rows(honest, device)
        for name, held in (("probe_own", rows.probe), ("loss_own", rows.validation)):
            loss = central_loss(honest, adapter, prompts[device].prompt, encoded, held)
            assert record[name] == pytest.approx(loss, abs=LOSS_ROUNDING)
        probes = {
            source: central_loss(honest, adapter, prompts[source].prompt, encoded, rows.probe)
            for source in record["asked"]
        }
        best = min(probes, key=lambda source: probes[source])
        assert record["probe_candidate"] == pytest.approx(probes[best], abs=LOSS_ROUNDING)
        loss = central_loss(honest, adapter, prompts[best].prompt, encoded, rows.validation)
        assert record["loss_candidate"] == pytest.approx(loss, abs=LOSS_ROUNDING)
        seen_by_tuning = [*_EVERY_CLASS, *(encoded.targets[row] for row in rows.tuned)]
        guessed = [
            seen_by_tuning.count(encoded.targets[row]) / len(seen_by_tuning) for row in rows.probe
        ]
        guessing = min(-float(np.mean(np.log(guessed))), math.log(len(_EVERY_CLASS)))
        passes = probes[best] < min(record["probe_own"], guessing)
        assert record["source"] == (best if passes else None)


def test_what_stays_in_use_is_never_worse(honest: GradientPlayed) -> None:
    """And every end after the gate occurs, or this would show less than it says."""
    records = Seen(honest).records.values()
    ends = {"rolled-back": "loss_own", "zero-shot": "loss_candidate", "tuned": "loss_tuned"}
    for record in records:
        if record["action"] == "kept":
            assert (record["source"], record["loss_tuned"]) == (None, None)
            continue
        losses = {name: record[name] for name in ends.values()}
        assert losses[ends[record["action"]]] == min(losses.values())
    assert set(ends) <= {record["action"] for record in records}


def test_settling_compares_prompts_behind_one_head(honest: GradientPlayed) -> None:
    """The round's: the head tuned along is averaged away, and would have won by itself."""
    seen, settled = Seen(honest), 0
    adapter = seen.adapter()
    updates = {
        step.place.device: step.up[0].arrays
        for step in honest.grid.steps
        if step.place.round == PHASE and step.up and step.up[0].kind == "update"
    }
    for device, record in seen.records.items():
        if record["action"] == "kept":
            continue
        encoded, rows = device_rows(honest, device)
        prompt = adapter[PROMPT_NAME] + updates[device][PROMPT_NAME]
        loss = central_loss(honest, adapter, prompt, encoded, rows.validation)
        assert record["loss_tuned"] == pytest.approx(loss, abs=LOSS_ROUNDING)
        candidate = seen.prompts()[record["source"]].prompt
        loss = central_loss(honest, adapter, candidate, encoded, rows.validation)
        assert record["loss_candidate"] == pytest.approx(loss, abs=LOSS_ROUNDING)
        settled += 1
    assert settled > 1


def test_bytes_seconds_and_joules_are_those_of_what_was_sent(honest: GradientPlayed) -> None:
    seen, config = Seen(honest), honest.bench.config
    contacts = Contacts(NUM_DEVICES, config.prompt.contacts, seed=config.seed)  # type: ignore[attr-defined]
    power_w = 10 ** (config.prompt.contacts.tx_power_dbm / 10 - 3)  # type: ignore[attr-defined]
    total_bytes, total_s = 0, 0.0
    for device, record in seen.records.items():
        sizes = {s: len(seen.blob(s)) for s in record["asked"]}
        seconds = sum(
            8 * size / contacts.link(PHASE, device, s).rate_bps for s, size in sizes.items()
        )
        assert record["bytes"] == sum(sizes.values())
        assert record["seconds"] == pytest.approx(seconds)
        assert record["joules"] == pytest.approx(power_w * seconds)
        total_bytes, total_s = total_bytes + record["bytes"], total_s + seconds
    for source, one in seen.of("advertise").items():
        size = one.up[0].arrays["advert"].size
        slowest = min(
            contacts.link(PHASE, source, d).rate_bps for d in contacts.neighbours(PHASE, source)
        )
        total_bytes, total_s = total_bytes + size, total_s + 8 * size / slowest
    ledger, result = honest.outcome.ledger.as_dict(), honest.outcome.results["transfer"]
    assert (ledger["d2d_bytes"], result["bytes"]) == (total_bytes, total_bytes)
    assert ledger["d2d_seconds"] == pytest.approx(total_s)
    assert ledger["d2d_joules"] == pytest.approx(power_w * total_s)
    trials = [s for s in honest.grid.steps if s.place.kind in ("try", "settle", "judge")]
    up = sum(len(b) for s in trials for b in s.received if s.place.kind != "judge")
    down = sum(len(s.sent) for s in trials if s.place.kind == "judge")
    assert ledger["trial_bytes"] == up + down


def test_source_bytes_are_what_tuning_had_cost_the_source(honest: GradientPlayed) -> None:
    """Local steps of round 1: everything but what opened the round, and what the device is."""
    cost = dict.fromkeys(range(NUM_DEVICES), 0)
    for step in honest.grid.steps:
        if step.place.round == 1:
            cost[step.place.device] += sum(map(len, step.received))
            cost[step.place.device] += len(step.sent) * (step.place.kind != "begin")
    result, adopted = honest.outcome.results["transfer"], ("tuned", "zero-shot")
    records = [r for r in Seen(honest).records.values() if r["action"] in adopted]
    assert records
    assert result["source_tuning_bytes"] == sum(cost[r["source"]] for r in records)
    assert all(r["bytes"] < cost[r["source"]] for r in records)


def test_zero_shot_devices_make_no_steps(transfer_player: Player) -> None:
    words = transfer_words("prompt.use=zero_shot")
    played, again = (play(transfer_player, *words, shuffle=seed) for seed in (None, 3))
    records = Seen(played).records
    users = {d for d, record in records.items() if record["action"] == "zero-shot"}
    assert users
    assert played.devices(PHASE) == sorted(set(range(NUM_DEVICES)) - users)
    assert played.dropped(PHASE) == {}
    for device in users:
        assert records[device]["loss_candidate"] < records[device]["loss_own"]
    assert equal_bits(played.adapter, again.adapter)
    assert played.outcome.results == again.outcome.results


def test_devices_that_join_look_for_a_prompt(transfer_player: Player) -> None:
    words = ("prompt.rounds=null", "federation.devices_per_round=4", "finetune.max_steps=1")
    played = play(transfer_player, *transfer_words(*words))
    first, second = set(played.devices(1)), set(played.devices(PHASE))
    assert set(Seen(played).records) == second - first != set()
    asked = {s for record in Seen(played).records.values() for s in record["asked"]}
    assert asked <= first


def test_who_took_over_a_prompt_has_one(transfer_player: Player) -> None:
    """It looks for none in its next round, and others hear of it."""
    words = (
        "prompt.rounds=null",
        "prompt.use=zero_shot",
        "federation.devices_per_round=4",
        "strategy.num_rounds=5",
        "finetune.max_steps=6",
    )
    played = play(transfer_player, *transfer_words(*words))
    records = played.outcome.results["transfer"]["devices"]
    adopted = [r["device"] for r in records if r["action"] == "zero-shot"]
    assert adopted
    searches = [r["device"] for r in records]
    assert all(searches.count(device) == 1 for device in adopted)
    advertised = {
        (s.place.round, s.place.device) for s in played.grid.steps if s.place.kind == "advertise"
    }
    when = {r["device"]: r["round"] for r in records if r["device"] in adopted}
    assert any(number > when[d] for number, d in advertised if d in when)


def test_a_prompt_too_long_to_be_advertised_whole_is_refused(tiny: TinyModels) -> None:
    """The longest that is not refused does fit an advert, whatever the card."""
    model = tiny.load("bert", CLASSES_TASK).model
    width = model.config.hidden_size
    most = (MAX_ADVERT_BYTES - CARD_BYTES) // (4 * width)

    def config(num_tokens: int, descriptor: str = "flat") -> Config:
        words = (*GRADIENT, "prompt=transfer", f"prompt.descriptor={descriptor}")
        return load_config(" ".join((*words, f"peft.num_tokens={num_tokens}")))

    require_advert_fits(config(most), model)
    require_advert_fits(config(most + 1, "mean"), model)
    with pytest.raises(ConfigError, match=f"peft.num_tokens={most + 1} whole"):
        require_advert_fits(config(most + 1), model)
    card = Card("f" * 64, "f" * 64, 2**31, "t" * 100, 2**31)
    flat = np.zeros(most * width, np.float32)
    assert len(advert_of(card, b"\0" * 2**20, flat).to_blob()) <= MAX_ADVERT_BYTES


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("strategy=emulator_download",), "prompt=transfer works with the prompts of gradient"),
        ((*GRADIENT, "strategy.variant=cut"), "prompt=transfer works with the prompts of gradient"),
        ((*GRADIENT, "strategy.shared_gradient=true"), "set strategy.shared_gradient=false"),
        ((*GRADIENT, "strategy.privacy.noise_multiplier=1"), "noise_multiplier=1.0 is accounted"),
        ((*GRADIENT, "connection.block=0"), "connection.block: trials"),
        ((*GRADIENT, "strategy.server_rule.name=fedprox"), "strategy.server_rule.name=fedprox"),
        ((*GRADIENT, "prompt.rounds=[1]"), r"prompt.rounds=\[1\]: before round 2"),
        ((*GRADIENT, "prompt.rounds=[99]"), r"prompt.rounds=\[99\]"),
        ((*GRADIENT, "prompt.rounds=null"), "prompt.rounds=null is for devices that join later"),
        ((*GRADIENT, "prompt.direct=[a:1]"), "prompt.direct has 1 addresses"),
        ((*GRADIENT, "prompt.rounds=[]"), r"prompt.rounds=\[\] is not allowed"),
        ((*GRADIENT, "prompt.contacts.range_m=0"), "prompt.contacts.range_m=0"),
    ],
)
def test_what_does_not_go_together_is_refused(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        require_fit(load_config(" ".join((*words, "prompt=transfer"))))
