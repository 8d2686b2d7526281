"""The main job from the prepared server to the last adapter, against what it must equal."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from fl_app.bench import Bench, prepare
from fl_app.config import load_config
from fl_app.fomo.adapter import Adapter, LoraSpec
from fl_app.fomo.backbone import head_modules
from fl_app.fomo.package import unpack
from fl_app.job import adapter_sha256
from fl_app.material import load_material
from fl_app.measures import measure_emulator, measure_plug_in
from fl_app.records import to_blob
from fl_app.updates import Update
from tests.federation_fixtures import (
    CLASSES,
    NUM_DEVICES,
    NUM_TEST,
    Player,
    fedavg64,
    player,
    tiny_federation,
)

__all__ = ["player", "tiny_federation"]

EPS = float(np.finfo(np.float32).eps)
ADAM_EPS = 1e-8
"""The constant in AdamW's denominator (PyTorch's default)."""


def _random_adapter(bench: Bench) -> Update:
    rng = np.random.default_rng(5)
    return {
        name: rng.normal(0, 0.5, array.shape).astype(np.float32)
        for name, array in bench.full.read().items()
    }


def _logits(model: torch.nn.Module, bench: Bench) -> torch.Tensor:
    batch = bench.task.batch(bench.test, range(len(bench.test)))
    with torch.inference_mode():
        return model(**{k: v for k, v in batch.items() if k != "labels"}).logits.clone()


# --- the prepared server -----------------------------------------------------------------------


def test_facts_describe_the_model_that_was_loaded(player: Player) -> None:
    bench, start = player.bench(player.tiny.overrides())
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(
        player.tiny.model, num_labels=len(CLASSES), ignore_mismatched_sizes=True
    )
    facts = bench.facts
    assert facts["num_parameters"] == sum(p.numel() for p in plain.parameters())
    assert facts["num_blocks"] == plain.config.num_hidden_layers == 5
    assert (facts["split"], facts["emulator_blocks"]) == ("1-1-1", [0, 2, 4])
    assert facts["emulator_blob_bytes"] == len(bench.piece.blob)
    assert facts["adapter_parameters"] == sum(array.size for array in start.values())
    per_block = sum(p.numel() for p in plain.bert.encoder.layer[0].parameters())
    assert facts["num_parameters"] - facts["emulator_parameters"] == 2 * per_block
    assert facts["distillation_loss"] is None
    assert facts["name"] == player.tiny.model.name
    json.dumps(facts)  # goes to result.json


def test_the_server_measures_what_devices_get(player: Player) -> None:
    """Not the emulator as it was before packing: half precision and four bits leave traces."""
    bench, _ = player.bench(player.tiny.overrides("strategy.emulator.bits=4"))
    state = bench.piece.emulated.model.state_dict()
    unpacked = unpack(bench.piece.blob).model.state_dict()
    name = "bert.encoder.layer.1.output.dense.weight"
    assert (state[f"base_model.model.{name}"] == unpacked[name]).all()
    source = bench.backbone.model.state_dict()["bert.encoder.layer.2.output.dense.weight"]
    assert not (unpacked[name] == source).all()
    assert len(torch.unique(unpacked[name])) <= 2**4


def test_an_uncompressed_emulator_is_the_full_model_bit_for_bit(player: Player) -> None:
    """Oracle 1: n = L_mid without distillation: equal logits, plug-in equals emulator."""
    bench, _ = player.bench(player.tiny.overrides("strategy.emulator.middle=-1"))
    adapter = _random_adapter(bench)
    bench.full.write(adapter)
    bench.piece.emulated.write(adapter)
    full = _logits(bench.full.model, bench)
    assert torch.equal(full, _logits(bench.piece.emulated.model, bench))
    assert full.std() > 0
    figures = [
        measure(bench, adapter, bench.test) for measure in (measure_plug_in, measure_emulator)
    ]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("word", ["strategy.emulator.bits=1", "strategy.emulator.sparsity=0.9"])
def test_a_compressed_emulator_of_all_blocks_is_measured_for_itself(
    player: Player, word: str
) -> None:
    """Nothing is dropped, yet it is another model; its figure may not be the plug-in's."""
    bench, _ = player.bench(player.tiny.overrides("strategy.emulator.middle=-1", word))
    adapter = _random_adapter(bench)
    plug_in = measure_plug_in(bench, adapter, bench.test)
    emulator = measure_emulator(bench, adapter, bench.test)
    own = [
        float((_logits(model, bench).argmax(-1).numpy() == bench.test.targets).mean())
        for model in (bench.full.model, bench.piece.emulated.model)
    ]
    assert [plug_in, emulator] == own
    assert not torch.equal(
        _logits(bench.full.model, bench), _logits(bench.piece.emulated.model, bench)
    )


def test_tuning_and_measuring_leave_the_frozen_weights_alone(player: Player) -> None:
    """Oracle 2: the hash of what is frozen is the same before and after a run."""

    def frozen(bench: Bench) -> str:
        state = bench.backbone.model.state_dict()
        names = [n for n in sorted(state) if "lora_" not in n and "modules_to_save" not in n]
        return hashlib.sha256(b"".join(state[n].numpy().tobytes() for n in names)).hexdigest()

    bench, _ = player.bench(player.tiny.overrides())
    before = frozen(bench)
    played = player.play()
    measure_plug_in(played.bench, played.outcome.adapter, played.bench.test)
    assert frozen(played.bench) == before


def test_round_rows_are_a_fixed_part_of_the_test_rows(player: Player) -> None:
    small, _ = player.bench(player.tiny.overrides("strategy.round_test_rows=10"))
    again = prepare(load_config(player.tiny.overrides("strategy.round_test_rows=10", "seed=0")))
    assert len(small.round_test) == 10
    assert small.round_test.rows == again.round_test.rows
    assert len(small.test) == NUM_TEST
    everything, _ = player.bench(player.tiny.overrides("strategy.round_test_rows=null"))
    assert everything.round_test.rows == everything.test.rows


# --- a whole round against a hand-made one -----------------------------------------------------


def test_one_round_of_one_step_is_the_hand_made_average(player: Player) -> None:
    """Every device's batch is all it has, so its step follows from its exact gradient alone.

    AdamW's first step is lr g / (|g| + eps) for gradient g: with m = (1 - b1) g and v = (1 - b2)
    g^2 the bias corrections cancel. The gradients here are float64 autograd on the emulator as the
    device unpacks it; the server's mean is weighted by rows.
    """
    words = ("data.partition.kind=quantity", "finetune.batch_size=64", "strategy.num_rounds=1")
    played = player.play(*words, "finetune.weight_decay=0", "finetune.clip_norm=1e9")
    bench, config = played.bench, played.bench.config
    material = load_material(config)
    package = unpack(bench.piece.blob)
    adapter = Adapter(
        package.model,
        blocks=bench.piece.split.blocks,
        tuned_blocks=bench.piece.split.outer,
        heads=head_modules(package.model, package.task),
        spec=LoraSpec(rank=2, alpha=16.0, targets=(), train_a=False),
        seed=config.seed,
    )
    adapter.write(played.start)
    adapter.model.double()
    gradients: list[dict[str, np.ndarray]] = []
    sizes = []
    for device in range(NUM_DEVICES):
        encoded = bench.task.encode(material.of_device(device))
        batch = bench.task.batch(encoded, range(len(encoded)))
        labels = batch.pop("labels")
        loss = torch.nn.functional.cross_entropy(adapter.model(**batch).logits, labels)
        adapter.model.zero_grad()
        loss.backward()
        gradients.append({n: p.grad.numpy().copy() for n, p in adapter.parameters.items()})  # type: ignore[union-attr]
        sizes.append(len(encoded))
    assert sizes == sorted(set(sizes))  # unequal weights
    rates = {n: 0.01 if ".lora_" in n else 0.05 for n in played.start}
    steps = [
        {n: -rates[n] * g / (np.abs(g) + ADAM_EPS) for n, g in own.items()} for own in gradients
    ]
    wanted = fedavg64(played.start, steps, sizes)  # type: ignore[arg-type]
    for name, array in played.outcome.adapter.items():
        # float32 back-propagation: each gradient entry is off by some hundred roundings of the
        # largest; the step moves by lr eps / (|g| - error)^2 times that, and is lr at most
        bound = np.zeros(array.shape)
        for own, size in zip(gradients, sizes, strict=True):
            off = 500 * EPS * np.abs(own[name]).max()
            sure = np.abs(own[name]) > 2 * off
            moved = np.where(sure, ADAM_EPS * off / (np.abs(own[name]) / 2) ** 2, 2.0)
            bound += size / sum(sizes) * rates[name] * np.minimum(moved, 2.0)
        bound += 10 * EPS * (np.abs(played.start[name]) + rates[name])
        assert (np.abs(array - wanted[name]) <= bound).all(), name
        assert np.mean(bound < rates[name] / 100) > 0.9, name  # the check has teeth


def test_a_run_learns(player: Player) -> None:
    """The classes have words of their own. No block is dropped: a random one carries nothing."""
    words = ("strategy.num_rounds=2", "federation.num_devices=2", "peft.rank=4")
    words += ("strategy.emulator.left=2", "strategy.emulator.right=2")
    words += ("finetune.max_steps=null", "finetune.epochs=8", "finetune.lr=0.02")
    played = player.play(*words, measure_rounds=True)
    rounds = played.outcome.rounds
    assert [record.round for record in rounds] == [0, 1, 2]
    assert set(rounds[0].metrics) == {"plug_in", "emulator"}
    assert all(set(r.metrics) == {"plug_in", "emulator", "train_loss"} for r in rounds[1:])
    # five standard errors of guessing above guessing
    chance = 1 / len(CLASSES)
    margin = 5 * np.sqrt(chance * (1 - chance) / NUM_TEST)
    assert float(rounds[-1].metrics["plug_in"] or 0) > chance + margin
    losses = [float(r.metrics["train_loss"] or 0) for r in rounds[1:]]
    assert losses[-1] < losses[0]
    last = measure_plug_in(played.bench, played.outcome.adapter, played.bench.round_test)
    assert rounds[-1].metrics["plug_in"] == last


def test_measuring_rounds_changes_no_bit(player: Player) -> None:
    plain, measured = player.play(), player.play(measure_rounds=True)
    assert adapter_sha256(plain.outcome.adapter) == adapter_sha256(measured.outcome.adapter)
    again = player.play(measure_rounds=True)
    assert [r.metrics for r in again.outcome.rounds] == [r.metrics for r in measured.outcome.rounds]


@pytest.mark.parametrize(
    "words",
    [
        ("strategy.emulator.left=0",),
        ("strategy.emulator.right=0", "data.partition.kind=dirichlet"),
        ("strategy.emulator.sparsity=0.5", "strategy.emulator.bits=8"),
        ("data.public_fraction=0.25", "strategy.emulator.distil.steps=2"),
        ("data.public_fraction=0.25", "model.pooler=standardised", "finetune.logit_adjustment=1"),
        ("strategy.server_rule.name=fedadam", "peft.aggregation=exact"),
    ],
)
def test_options_go_together(player: Player, words: tuple[str, ...]) -> None:
    played = player.play("strategy.num_rounds=1", *words)
    assert played.devices(1) == list(range(NUM_DEVICES))
    assert adapter_sha256(played.outcome.adapter) != adapter_sha256(played.start)


def test_the_head_alone_can_be_tuned(player: Player) -> None:
    played = player.play("strategy.num_rounds=1", reference="frozen")
    assert all(name.startswith("base_model.model.classifier.") for name in played.start)
    assert adapter_sha256(played.outcome.adapter) != adapter_sha256(played.start)


def test_the_name_of_an_adapter_is_the_hash_of_its_bytes(player: Player) -> None:
    _, start = player.bench(player.tiny.overrides())
    assert adapter_sha256(start) == hashlib.sha256(to_blob(start)).hexdigest()
    name = next(iter(start))
    other = {**start, name: np.nextafter(start[name], np.float32(9))}
    assert adapter_sha256(other) != adapter_sha256(start)


def test_tests_use_a_model_whose_head_is_new(player: Player) -> None:
    """Three classes in the checkpoint, four in the data: the head is drawn by the seed."""
    bench, start = player.bench(player.tiny.overrides())
    assert bench.backbone.random_head
    other = prepare(load_config(player.tiny.overrides("seed=1"))).full.read()
    name = next(name for name in start if name.endswith("classifier.weight"))
    assert start[name].shape[0] == len(CLASSES)
    assert not np.array_equal(start[name], other[name])
    assert Path(player.tiny.model).is_dir()
