"""The ordinary job with ``peft=prompt``: a prompt tuned on the emulator, plugged into the FoMo."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from fl_app import main_job
from fl_app.bench import prepare
from fl_app.client_app import app
from fl_app.config import load_config
from fl_app.errors import ConfigError, DeftError, ModelError
from fl_app.fomo.adapter import is_head
from fl_app.fomo.package import unpack
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.local_grid import LocalGrid
from fl_app.material import load_material
from fl_app.measures import measure_plug_in
from fl_app.settings import aggregation_of
from tests.federation_fixtures import (
    CLASSES,
    NUM_DEVICES,
    Player,
    TinyFederation,
    assert_float32_mean,
    fedavg64,
    tiny_federation,
)

__all__ = ["tiny_federation"]

_M = 4
_EPS = 1e-8
"""The constant in AdamW's denominator, as the fixture's words set it."""
_WHOLE_BATCH = ("data.partition.kind=quantity", "finetune.batch_size=64", "strategy.num_rounds=1")


class PromptFederation(TinyFederation):
    """The tiny federation with a soft prompt in the place of LoRA."""

    def words(self, *more: str) -> list[str]:
        """Returns overrides one by one."""
        plain = [word for word in super().words() if not word.startswith("peft")]
        return [*plain, "peft=prompt", f"peft.num_tokens={_M}", *more]


@pytest.fixture(scope="module")
def player(tiny_federation: TinyFederation, tmp_path_factory: pytest.TempPathFactory) -> Player:
    tiny = PromptFederation(tiny_federation.model, tiny_federation.data)
    return Player(tiny, tmp_path_factory.mktemp("prompt-cache"))


def _by_hand(model: Any, prompt: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of a BERT whose input embeddings have the prompt in front."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    embedded = model.bert.embeddings.word_embeddings(ids)
    front = prompt.expand(len(ids), -1, -1)
    hidden = model.bert(
        inputs_embeds=torch.cat([front, embedded], 1),
        attention_mask=torch.cat([mask.new_ones(len(ids), _M), mask], 1),
    )
    logits: torch.Tensor = model.classifier(hidden.pooler_output)
    return logits


def test_one_round_of_one_step_is_the_hand_made_average(player: Player) -> None:
    """Float64 autograd through hand-made input embeddings on the emulator a device unpacks.

    AdamW's first step is lr g / (|g| + eps); the server's mean is weighted by rows.
    """
    played = player.play(*_WHOLE_BATCH, "finetune.clip_norm=1e9")
    bench = played.bench
    model = unpack(bench.piece.blob).model.double()
    prompt = torch.from_numpy(played.start[PROMPT_NAME]).double().requires_grad_(True)
    head = {n: p for n, p in model.named_parameters() if n.startswith("classifier.")}
    for name, parameter in head.items():
        parameter.data.copy_(torch.from_numpy(played.start[f"base_model.model.{name}"]))
        parameter.requires_grad_(True)
    tuned = {PROMPT_NAME: prompt, **{f"base_model.model.{n}": p for n, p in head.items()}}
    assert set(tuned) == set(played.start)
    rates = {n: 0.05 if is_head(n) else 0.01 for n in tuned}
    material = load_material(bench.config)
    steps, sizes, slack = [], [], dict.fromkeys(tuned, 0.0)
    for device in range(NUM_DEVICES):
        encoded = bench.task.encode(material.of_device(device))
        batch = bench.task.batch(encoded, range(len(encoded)))
        loss = torch.nn.functional.cross_entropy(_by_hand(model, prompt, batch), batch["labels"])
        grads = torch.autograd.grad(loss, list(tuned.values()))
        own = {n: g.numpy() for n, g in zip(tuned, grads, strict=True)}
        steps.append({n: -rates[n] * g / (np.abs(g) + _EPS) for n, g in own.items()})
        sizes.append(len(encoded))
        for name, g in own.items():
            # float32 back-propagation is off by some hundred roundings of the largest entry
            off = 500 * np.finfo(np.float32).eps * np.abs(g).max()
            sure = np.abs(g) > 2 * off
            moved = np.where(sure, _EPS * off / (np.abs(g) / 2) ** 2, 2.0)
            slack[name] = np.maximum(slack[name], rates[name] * np.minimum(moved, 2.0))
    assert sizes == sorted(set(sizes))  # unequal weights
    wanted = fedavg64(played.start, steps, sizes)  # type: ignore[arg-type]
    for name, array in played.outcome.adapter.items():
        bound = slack[name] + 10 * np.finfo(np.float32).eps * (np.abs(array) + rates[name])
        assert (np.abs(array - wanted[name]) <= bound).all(), name
        assert np.mean(bound < rates[name] / 100) > 0.8, name  # the check has teeth


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_federated_prompt_is_a_peft_adapter_of_the_full_model(
    player: Player, tmp_path: Path
) -> None:
    played = player.play(measure_rounds=True)
    bench, adapter = played.bench, played.outcome.adapter
    assert len(played.outcome.rounds) == 3
    assert adapter[PROMPT_NAME].shape == (_M, 16)
    assert not np.array_equal(adapter[PROMPT_NAME], played.start[PROMPT_NAME])
    measured = measure_plug_in(bench, adapter, bench.test)
    bench.full.save(tmp_path)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        player.tiny.model, num_labels=len(CLASSES), ignore_mismatched_sizes=True
    )
    reloaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    batch = bench.task.batch(bench.test, range(len(bench.test)))
    labels = batch.pop("labels")
    with torch.inference_mode():
        logits = reloaded(**batch).logits
        assert torch.equal(logits, bench.full.model(**batch).logits)
    assert float((logits.argmax(-1) == labels).double().mean()) == measured


def test_the_whole_job_leaves_the_prompt_for_peft(
    player: Player, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main_job, "write_report", lambda *_: None)  # drawn in other tests
    overrides = player.tiny.overrides(f"output.dir={tmp_path}")
    with LocalGrid(app, num_nodes=NUM_DEVICES, run_config={"overrides": overrides}) as grid:
        result = main_job.run_main_job(grid, overrides)
    assert result.verdict == "ok"
    saved = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    played = player.play(warm=True).outcome.adapter
    assert np.array_equal(saved["prompt_embeddings"], played[PROMPT_NAME])
    head = "classifier.weight"
    assert np.array_equal(saved[f"base_model.{head}"], played[f"base_model.model.{head}"])


@pytest.mark.parametrize(
    ("reference", "has_prompt"),
    [("frozen", False), ("federated_full", True), ("centralised", True)],
)
def test_comparison_runs_keep_the_prompt_but_the_frozen_one(
    player: Player, reference: str, has_prompt: bool
) -> None:
    num_devices = 1 if reference == "centralised" else NUM_DEVICES
    played = player.play(reference=reference, num_nodes=num_devices)
    assert played.outcome.aggregated >= 1
    assert (PROMPT_NAME in played.outcome.adapter) == has_prompt


def test_every_round_is_the_plain_mean(player: Player) -> None:
    played = player.play("strategy.num_rounds=1")
    exchanges = played.of_round(1)
    updates = [exchange.updates[0] for exchange in exchanges]
    assert all(set(update) == set(played.start) for update in updates)
    wanted = fedavg64(played.start, updates, [24] * NUM_DEVICES)  # 96 rows, iid
    assert_float32_mean(played.outcome.adapter, wanted, played.start, updates)
    assert aggregation_of(load_config("peft=prompt").peft) == "factors"


def test_a_silent_channel_hands_over_the_same_mean(player: Player) -> None:
    """AirComp without noise; each real is scaled, sent and scaled back in float64."""
    ideal = player.play("strategy.num_rounds=1", warm=True).outcome.adapter
    air = player.play(
        "strategy.num_rounds=1", "channel=aircomp", "channel.tx_snr_db=inf", warm=True
    )
    for name, array in air.outcome.adapter.items():
        moved = np.abs(array - air.start[name]).max()
        off = np.abs(array - ideal[name]).max()
        assert off <= 1e-5 * (moved + np.abs(array).max())
        assert moved > 0


def test_a_standardised_pooler_is_measured_behind_the_prompt(player: Player) -> None:
    """What enters the pooler then is a virtual token's state; on public rows it is centred."""
    words = ("model.pooler=standardised", "data.public_fraction=0.5")
    bench, _ = player.bench(player.tiny.overrides(*words))
    public = bench.task.encode(load_material(bench.config).public)
    batch = bench.task.batch(public, range(len(public)))
    pooled: list[torch.Tensor] = []
    hook = bench.backbone.model.bert.pooler.register_forward_hook(
        lambda _module, _inputs, output: pooled.append(torch.atanh(output.double()))
    )
    with torch.inference_mode():
        bench.full.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    hook.remove()
    torch.testing.assert_close(pooled[0].mean(0), torch.zeros(16).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(pooled[0].std(0), torch.full((16,), 0.5).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("word", "error", "says"),
    [
        ("peft.num_tokens=21", ModelError, r"peft\.num_tokens=21.*max_length=12.*32 positions"),
        ("peft.num_tokens=0", ConfigError, r"peft\.num_tokens.*>= 1"),
        ("peft.init=zeros", ConfigError, r"peft\.init.*vocabulary.*normal"),
        ("peft.aggregation=exact", ConfigError, "aggregation"),
    ],
)
def test_what_does_not_fit_is_named(
    player: Player, word: str, error: type[DeftError], says: str
) -> None:
    with pytest.raises(error, match=says):
        prepare(load_config(player.tiny.overrides(word)))
