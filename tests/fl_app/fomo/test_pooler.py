"""The standardised pooler: centred, scaled, saved along, refused where there is none."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch

from fl_app.errors import ModelError
from fl_app.fomo.adapter import Adapter, LoraSpec
from fl_app.fomo.backbone import auto_class, head_modules
from fl_app.fomo.pooler import pooler_of, standardise_pooler
from tests.fixtures_models import DEPTH, TinyModels, logits_of, state_bytes, tiny_examples

_CLASSES = "sequence_classification"
_ROWS = 24


def test_outputs_are_the_standardised_first_token(tiny: TinyModels) -> None:
    """Against numpy in float64, over batches of unequal size; nothing but the pooler changes."""
    model, task = tiny.load("bert", _CLASSES).model, tiny.task("bert", _CLASSES)
    encoded = task.encode(tiny_examples(_ROWS))
    before = state_bytes(model, but=("pooler",))
    cuts = [range(10), range(10, 13), range(13, _ROWS)]
    standardise_pooler(model, (task.batch(encoded, rows) for rows in cuts))
    assert state_bytes(model, but=("pooler",)) == before

    pooled, first = [], []
    with torch.inference_mode():
        for i in range(_ROWS):
            batch = task.batch(encoded, [i])
            batch.pop("labels")
            out = model.base_model(**batch)
            pooled.append(out.pooler_output[0].double().numpy())
            first.append(out.last_hidden_state[0, 0].double().numpy())
    entered, states = np.arctanh(np.array(pooled)), np.array(first)
    wanted = 0.5 * (states - states.mean(0)) / states.std(0, ddof=1)
    # float32 states, and arctanh steepens rounding near the ends of tanh by 1 / (1 - y^2)
    bound = 1e-4 / (1 - np.array(pooled) ** 2)
    assert (np.abs(entered - wanted) <= bound).all()
    assert np.abs(wanted).max() > 0.5


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_plain_peft_gives_the_same_logits_on_the_untouched_checkpoint(
    tiny: TinyModels, tmp_path: Path
) -> None:
    """The pooler is no longer the checkpoint's, so it is saved along; it is not tuned."""
    backbone, task = tiny.load("bert", _CLASSES), tiny.task("bert", _CLASSES)
    encoded, batch = task.encode(tiny_examples(_ROWS)), tiny.batch("bert", _CLASSES, 5)
    bare = logits_of(backbone.model, batch)
    standardise_pooler(backbone.model, [task.batch(encoded, range(_ROWS))])
    standardised = logits_of(backbone.model, batch)
    path = pooler_of(backbone.model)
    assert path == "bert.pooler"
    adapter = Adapter(
        backbone.model,
        blocks=range(DEPTH),
        tuned_blocks=(0,),
        heads=head_modules(backbone.model, _CLASSES),
        spec=LoraSpec(rank=2, alpha=4.0, targets=(), train_a=False),
        seed=0,
        carried=(path,),
    )
    assert not [name for name in adapter.parameters if "pooler" in name]
    assert torch.equal(logits_of(adapter.model, batch), standardised)
    assert not torch.equal(standardised, bare)
    adapter.save(tmp_path)
    base = auto_class(_CLASSES, backbone.model.config).from_pretrained(tiny.path("bert", _CLASSES))
    reloaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(logits_of(reloaded, batch), standardised)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "gpt2"])
def test_a_model_without_a_pooler_is_refused(tiny: TinyModels, family: str) -> None:
    model, task = tiny.load(family, _CLASSES).model, tiny.task(family, _CLASSES)
    batch = task.batch(task.encode(tiny_examples(4)), range(4))
    assert pooler_of(model) is None
    with pytest.raises(ModelError, match=r"model\.pooler=standardised.*checkpoint"):
        standardise_pooler(model, [batch])


def test_no_public_rows_are_refused(tiny: TinyModels) -> None:
    model = tiny.load("bert", _CLASSES).model
    with pytest.raises(ModelError, match=r"data\.public_fraction"):
        standardise_pooler(model, [])


def test_a_constant_coordinate_is_silent(tiny: TinyModels) -> None:
    """Equal rows have no spread: the outputs are zero, not NaN and not amplified rounding."""
    model, task = tiny.load("bert", _CLASSES).model, tiny.task("bert", _CLASSES)
    encoded = task.encode(tiny_examples(1))
    standardise_pooler(model, [task.batch(encoded, [0, 0])])
    batch = task.batch(encoded, [0])
    batch.pop("labels")
    with torch.inference_mode():
        assert not model.base_model(**batch).pooler_output.any()
