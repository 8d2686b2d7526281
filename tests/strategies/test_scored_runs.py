"""Whole runs by score: the adapter they leave, their comparison runs, and scores over the air."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from fl_app import wire
from fl_app.bench import prepare
from fl_app.layout.prefix import layout_of
from fl_app.measures import measure_emulator, measure_plug_in
from fl_app.variants import as_reference
from tests.federation_fixtures import CLASSES, NUM_DEVICES, Player
from tests.strategies.test_scoring import OUTER, RULE

WORDS = (RULE, "strategy.num_rounds=4", "finetune.max_steps=3", "peft.rank=4")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("aggregation", ["freeze-a", "factors", "alternate"])
def test_the_saved_adapter_is_the_one_measured(
    player: Player, aggregation: str, tmp_path: Path
) -> None:
    """Plain PEFT on the untouched checkpoint; the units kept are not the first rows of A."""
    words = (*WORDS, f"peft.aggregation={aggregation}", "strategy.emulator.middle=-1")
    played = player.play(*words, "strategy.emulator.wire_dtype=float32", measure_rounds=True)
    bench, adapter = played.bench, played.outcome.adapter
    figures = [
        measure(bench, adapter, bench.test) for measure in (measure_plug_in, measure_emulator)
    ]
    assert figures[0] == figures[1]
    if aggregation == "freeze-a":
        order = wire.read_order(played.of_round(4)[0].sent)
        assert any(tuple(own) != tuple(range(len(own))) for own in order.units.values())
    bench.full.save(tmp_path / "adapter")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        player.tiny.model, num_labels=len(CLASSES), ignore_mismatched_sizes=True
    )
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    batch = bench.task.batch(bench.test, range(len(bench.test)))
    batch.pop("labels")
    with torch.inference_mode():
        given, wanted = loaded(**batch).logits, bench.full.model(**batch).logits
    bound = 64 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
    assert (given - wanted).abs().max() <= bound
    with torch.inference_mode(), loaded.disable_adapter():
        assert (loaded(**batch).logits - wanted).abs().max() > 1000 * bound


def test_comparison_runs_follow_the_same_schedule(player: Player) -> None:
    run = player.bench(player.tiny.overrides(*WORDS))[0]
    for name in ("federated_full", "centralised"):
        other = prepare(as_reference(run.config, name), like=run.config)
        assert other.allocation == run.allocation
        assert other.allocation.schedule is not None
    alone = player.play(*WORDS, reference="centralised", num_nodes=1)
    assert sum(layout_of(alone.outcome.adapter).values()) == 8
    steps = alone.bench.config.finetune.max_steps
    assert steps == 3 * NUM_DEVICES  # in each of the four rounds
    frozen = prepare(as_reference(run.config, "frozen"), like=run.config)
    assert frozen.allocation.server == {}


@pytest.mark.parametrize("channel", ["digital", "aircomp"])
def test_scores_take_time_on_air(player: Player, channel: str) -> None:
    """Round 1 has the same units with scores and without; only the scores differ."""
    words = (*WORDS, f"channel={channel}", "channel.fading=awgn", "strategy.num_rounds=3")
    start = ("peft.layout.scores.start=2",)
    with_scores = player.play(*words, *start, "peft.layout.scores.warmup=0")
    without = player.play(*words, *start, "peft.layout.scores.warmup=1")
    books = [played.outcome.ledger for played in (with_scores, without)]
    rows: list[Any] = [next(iter(book.as_dict()["per_round"])) for book in books]  # type: ignore[arg-type]
    scores = [book.total_bytes(round=1, what="scores") for book in books]
    assert scores == [4 * 16 * NUM_DEVICES, 0]
    control = [book.total_bytes(round=1, link="uplink", what="control") for book in books]
    assert control[0] == control[1] > 0
    config: Any = with_scores.bench.config.channel
    share = 1 / NUM_DEVICES  # all of a device's power in its share of the band
    bits_per_use = np.log2(1 + 10 ** (config.tx_snr_db / 10) / share)
    more = 8 * 4 * 16 / (config.bandwidth_hz * share * bits_per_use)
    assert rows[0]["radio_seconds"] - rows[1]["radio_seconds"] == pytest.approx(more, rel=1e-6)
    assert set(with_scores.bench.allocation.server) == set(OUTER)
