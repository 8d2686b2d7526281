"""The soft prompt: against PEFT's own, on emulator and full model, and what is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from fl_app.errors import ModelError
from fl_app.finetune import LocalTuning, tune
from fl_app.fomo.adapter import Adapter, LoraSpec, is_head
from fl_app.fomo.backbone import Backbone, auto_class, head_modules, require_length
from fl_app.fomo.emulator import Split, build_emulator
from fl_app.fomo.soft_prompt import PROMPT_NAME, PromptSpec, starting_prompt, token_table
from fl_app.seeding import generator
from tests.fixtures_models import (
    CASES,
    DEPTH,
    TinyModels,
    logits_of,
    state_bytes,
    tiny_config,
    tiny_examples,
)
from tests.tuning_fixtures import tuning_of

_M = 5
_CLASSES = "sequence_classification"
_PROMPTED = [case for case in CASES if case[0] != "vit" and case != ("t5", _CLASSES)]
_WHOLE = ("bert", "roberta", "distilbert")  # these pool the first position, decoders the last
_SPLIT = Split(1, 2, 1, DEPTH)
_OURS = ("prompt_embeddings", "classifier", "score")
_TUNING = tuning_of(head_lr=0.02, clip_norm=1e9)
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


def _adapter(
    model: Any, task: str, blocks: Sequence[int] = tuple(range(DEPTH)), **spec: Any
) -> Adapter:
    return Adapter(
        model,
        blocks=blocks,
        tuned_blocks=(),
        heads=head_modules(model, task),
        spec=PromptSpec(**{"num_tokens": _M, **spec}),
        seed=0,
    )


def _draw(adapter: Adapter) -> None:
    """Sets values large enough to show in the logits."""
    rng = generator(0, "values")
    drawn = {n: rng.normal(0, 0.5, a.shape).astype(np.float32) for n, a in adapter.read().items()}
    adapter.write(drawn)


def _reloaded(tiny: TinyModels, backbone: Backbone, family: str, folder: Path) -> Any:
    """What plain PEFT makes of a saved adapter on the untouched checkpoint."""
    task = backbone.task
    base = auto_class(task, backbone.model.config).from_pretrained(tiny.path(family, task))
    # transformers demands a padding token of decoder classifiers; GPT-2 and LLaMA name none
    base.config.pad_token_id = backbone.model.config.pad_token_id
    return peft.PeftModel.from_pretrained(base, folder).eval()


def _unpadded(batch: dict[str, torch.Tensor], row: int, *, cut_labels: bool) -> dict[str, Any]:
    """One row of a batch without the padding behind it."""
    length = int(batch["attention_mask"][row].sum())
    cut = ("input_ids", "attention_mask", *(["labels"] if cut_labels else []))
    return {
        n: t[row : row + 1, :length] if n in cut else t[row : row + 1] for n, t in batch.items()
    }


@pytest.mark.parametrize(("family", "task"), _PROMPTED)
def test_plain_peft_gives_the_same_logits(
    tiny: TinyModels, family: str, task: str, tmp_path: Path
) -> None:
    """Bit for bit on every text alone, and on padded batches where transformers can pool them."""
    backbone, batch = tiny.load(family, task), tiny.batch(family, task, 5)
    adapter = _adapter(backbone.model, task)
    started = logits_of(adapter.model, batch)
    _draw(adapter)
    ours = logits_of(adapter.model, batch)
    assert (ours != started).any(-1).all()  # the prompt reaches every position of every text
    adapter.save(tmp_path)
    reloaded = _reloaded(tiny, backbone, family, tmp_path)
    decoder_text = task == "causal_lm" and family != "t5"
    spare = _M if decoder_text else 0  # PEFT keeps the logits of the prompt's positions
    assert ours.shape[1:-1] == (batch["labels"].shape[1:] if task == "causal_lm" else ())
    for row in range(5):
        alone = _unpadded(batch, row, cut_labels=decoder_text)
        by_itself = logits_of(adapter.model, alone)
        assert torch.equal(by_itself, logits_of(reloaded, alone)[:, spare:])
        read = slice(None, by_itself.shape[1] if task == "causal_lm" else None)
        torch.testing.assert_close(ours[row : row + 1, read], by_itself, rtol=1e-4, atol=1e-5)
    if task == "causal_lm" or family in _WHOLE:
        assert torch.equal(ours, logits_of(reloaded, batch)[:, spare:])


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", _CLASSES), ("gpt2", "causal_lm"), ("llama", "causal_lm"), ("t5", "causal_lm")],
)
def test_plain_peft_gives_the_same_loss_and_gradient(
    tiny: TinyModels, family: str, task: str, tmp_path: Path
) -> None:
    """Of prompt and head, through the model's own loss; the prompt's labels carry none."""
    backbone, batch = tiny.load(family, task), tiny.batch(family, task, 5)
    adapter = _adapter(backbone.model, task)
    _draw(adapter)
    adapter.save(tmp_path)
    reloaded = _reloaded(tiny, backbone, family, tmp_path)
    for name, parameter in reloaded.named_parameters():
        parameter.requires_grad_("prompt_encoder" in name or "modules_to_save" in name)
    losses = [model(**batch).loss for model in (adapter.model, reloaded)]
    for loss in losses:
        loss.backward()
    assert losses[0] == losses[1]
    theirs = {n: p.grad for n, p in reloaded.named_parameters() if p.grad is not None}
    assert len(theirs) == len(adapter.parameters)
    for name, parameter in adapter.parameters.items():
        key = "prompt_encoder.default.embedding.weight"
        if is_head(name):
            stem, leaf = name.removeprefix("base_model.model.").rsplit(".", 1)
            key = f"base_model.{stem}.modules_to_save.default.{leaf}"
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, theirs[key], rtol=1e-5, atol=1e-7)
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize(("family", "task"), [("bert", _CLASSES), ("t5", "causal_lm")])
def test_a_prompt_tuned_on_the_emulator_plugs_into_the_full_model(
    tiny: TinyModels, family: str, task: str
) -> None:
    """Same names and starting values; tuning moves the adapter alone, at two learning rates."""
    backbone, prepared = tiny.load(family, task), tiny.task(family, task)
    batch = tiny.batch(family, task, 5)
    bare = logits_of(backbone.model, batch)
    emulator = build_emulator(backbone.model, task, _SPLIT)
    full, emulated = _adapter(backbone.model, task), _adapter(emulator, task, _SPLIT.blocks)
    start = full.read()
    assert PROMPT_NAME in start
    assert full.layout_hash() == emulated.layout_hash()
    assert {n: a.tobytes() for n, a in start.items()} == {
        n: a.tobytes() for n, a in emulated.read().items()
    }
    frozen = [state_bytes(adapter.model, but=_OURS) for adapter in (full, emulated)]
    encoded = prepared.encode(tiny_examples(4))
    one_step = LocalTuning(**{**vars(_TUNING), "max_steps": 1})
    tune(emulated.model, emulated.parameters, prepared, encoded, one_step, generator(0, "tune"))
    tuned = emulated.read()
    for name, array in tuned.items():
        # AdamW's first step is the learning rate wherever the gradient is well above eps
        rate = _TUNING.head_lr if is_head(name) else _TUNING.lr
        assert np.abs(array - start[name]).max() == pytest.approx(rate, rel=1e-3)
    full.write(tuned)
    assert [state_bytes(adapter.model, but=_OURS) for adapter in (full, emulated)] == frozen
    plugged = logits_of(full.model, batch)
    assert not torch.equal(plugged, bare)
    full.write(start)
    assert not torch.equal(logits_of(full.model, batch), plugged)


def test_the_model_is_as_it_was_outside_a_forward_pass(tiny: TinyModels) -> None:
    """Also after one that failed."""
    backbone, batch = tiny.load("bert", _CLASSES), tiny.batch("bert", _CLASSES, 3)
    bare = logits_of(backbone.model, batch)
    adapter = _adapter(backbone.model, _CLASSES)
    assert not torch.equal(logits_of(adapter.model, batch), bare)
    with pytest.raises(IndexError):
        adapter.model(input_ids=torch.full((1, 4), 10**6))
    assert torch.equal(logits_of(adapter.bare_model, batch), bare)


def test_heads_are_told_from_lora_and_prompt(tiny: TinyModels) -> None:
    for spec in (PromptSpec(2), LoraSpec(rank=2, alpha=4.0, targets=(), train_a=True)):
        model = tiny.load("bert", _CLASSES).model
        heads = head_modules(model, _CLASSES)
        adapter = Adapter(
            model, blocks=range(DEPTH), tuned_blocks=(0,), heads=heads, spec=spec, seed=0
        )
        found = {name for name in adapter.parameters if is_head(name)}
        assert found == {f"base_model.model.classifier.{leaf}" for leaf in ("bias", "weight")}
        assert found < set(adapter.parameters)


# --- starting values ---------------------------------------------------------------------------


def test_the_vocabulary_start_is_rows_of_the_table_but_padding(tiny: TinyModels) -> None:
    table = token_table(tiny.load("bert", _CLASSES).model).weight
    rows = {row.numpy().tobytes(): i for i, row in enumerate(table.detach())}
    drawn = starting_prompt(table, 0, PromptSpec(400), seed=1)
    tokens = [rows[row.numpy().tobytes()] for row in drawn]
    # 89 tokens, 400 draws: all but a handful are met, and padding never is
    assert 0 not in tokens
    assert len(set(tokens)) > 80


def test_the_normal_start_is_as_spread_out_as_the_table() -> None:
    table = torch.from_numpy(generator(0, "table").normal(1.0, 3.0, (200, 16)).astype(np.float32))
    drawn = starting_prompt(table, None, PromptSpec(300, "normal"), seed=1).double()
    spread, num = float(table.double().std(correction=0)), drawn.numel()
    assert abs(float(drawn.mean())) < 5 * spread / num**0.5
    assert abs(float(drawn.std()) - spread) < 5 * spread / (2 * num) ** 0.5


@pytest.mark.parametrize("init", ["vocabulary", "normal"])
def test_starting_values_depend_on_the_seed_alone(init: str) -> None:
    table = torch.from_numpy(generator(0, "table").normal(0, 1, (90, 4)).astype(np.float32))
    draws = []
    for seed, noise in ((7, 1), (7, 2), (8, 1)):
        torch.manual_seed(noise)
        draws.append(starting_prompt(table, 0, PromptSpec(6, init), seed))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_length_and_no_values_make_the_layout(tiny: TinyModels) -> None:
    def layout(**spec: Any) -> str:
        return _adapter(tiny.load("gpt2", "causal_lm").model, "causal_lm", **spec).layout_hash()

    assert layout() == layout(init="normal")
    assert layout() != layout(num_tokens=_M + 1)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "task", "says"),
    [
        ("vit", "image_classification", "vit model has none; choose peft=lora or peft=head"),
        ("t5", _CLASSES, r"t5 classifier.*choose peft=lora, or model\.task=causal_lm"),
    ],
)
def test_models_that_cannot_take_a_prompt_are_named(
    tiny: TinyModels, family: str, task: str, says: str
) -> None:
    with pytest.raises(ModelError, match=rf"peft=prompt.*{says}"):
        _adapter(tiny.load(family, task).model, task)


def test_an_unknown_start_is_refused(tiny: TinyModels) -> None:
    with pytest.raises(ModelError, match=r"peft\.init='zero'.*vocabulary or normal"):
        _adapter(tiny.load("gpt2", "causal_lm").model, "causal_lm", init="zero")


@pytest.mark.parametrize(("family", "positions"), [("bert", 32), ("gpt2", 32), ("roberta", 31)])
def test_prompt_and_text_must_fit_the_positions(family: str, positions: int) -> None:
    """RoBERTa's positions start behind its padding token (0 here)."""
    config = tiny_config(family)
    require_length(config, positions - 20, 20)
    with pytest.raises(ModelError, match=rf"peft\.num_tokens=21.*{positions} positions"):
        require_length(config, positions - 20, 21)
    require_length(tiny_config("t5"), 10_000, 20)  # relative positions
