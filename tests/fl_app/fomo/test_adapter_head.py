"""``peft=head``: the baseline that tunes a head on the frozen model."""

from pathlib import Path

import pytest
import torch

from fl_app.errors import ModelError
from fl_app.finetune import LocalTuning, tune
from fl_app.fomo.adapter import Adapter, LoraSpec
from fl_app.fomo.backbone import Backbone, head_modules
from fl_app.seeding import generator
from tests.fixtures_models import DEPTH, TinyModels, logits_of, state_bytes, tiny_examples


def _head_only(backbone: Backbone) -> Adapter:
    return Adapter(
        backbone.model,
        blocks=range(DEPTH),
        tuned_blocks=(),
        heads=head_modules(backbone.model, backbone.task),
        spec=None,
        seed=0,
    )


def test_head_alone_has_the_names_of_the_head_in_a_peft_adapter(tiny: TinyModels) -> None:
    """So the frozen baseline's head and an adapter's head are the same parameters."""
    for family in ("bert", "roberta", "distilbert", "t5", "opt"):
        task = "sequence_classification"
        model = tiny.load(family, task).model
        wrapped = Adapter(
            model,
            blocks=range(DEPTH),
            tuned_blocks=(0,),
            heads=head_modules(model, task),
            spec=LoraSpec(rank=2, alpha=4.0, targets=(), train_a=True),
            seed=0,
        )
        alone = _head_only(tiny.load(family, task))
        heads = {name for name in wrapped.parameters if ".lora_" not in name}
        assert heads == set(alone.parameters)


def test_head_alone_tunes_the_head_alone(tiny: TinyModels, tmp_path: Path) -> None:
    """Everything but the head keeps its bits; there is no PEFT adapter to save."""
    backbone = tiny.load("bert", "sequence_classification")
    batch = tiny.batch("bert", "sequence_classification", 5)
    bare = logits_of(backbone.model, batch)
    adapter = _head_only(backbone)
    assert torch.equal(logits_of(adapter.model, batch), bare)
    before = state_bytes(adapter.model, but=("classifier",))
    prepared = tiny.task("bert", "sequence_classification")
    encoded = prepared.encode(tiny_examples(8))
    tuning = LocalTuning(
        epochs=1,
        max_steps=None,
        batch_size=4,
        lr=0.01,
        head_lr=0.01,
        eps=1e-8,
        weight_decay=0.0,
        clip_norm=1.0,
        logit_adjustment=0.0,
        proximal_mu=0.0,
    )
    tune(adapter.model, adapter.parameters, prepared, encoded, tuning, generator(0, "tune"))
    assert state_bytes(adapter.model, but=("classifier",)) == before
    assert not torch.equal(logits_of(adapter.model, batch), bare)
    with pytest.raises(ModelError, match="peft=head tunes no PEFT adapter"):
        adapter.save(tmp_path)


def test_nothing_to_tune_is_an_error(tiny: TinyModels) -> None:
    """A language model has no head of its own."""
    with pytest.raises(ModelError, match=r"nothing to tune.*choose peft=lora"):
        _head_only(tiny.load("gpt2", "causal_lm"))
