"""Loading a foundation model: frozen, repeatable, and with errors a person can act on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from fl_app.errors import ModelError
from fl_app.fomo.backbone import head_modules, load_backbone, tokenizer_from
from tests.fixtures_models import (
    CASES,
    LABELS,
    TinyModels,
    logits_of,
    state_bytes,
    task_of,
    tiny_examples,
    write_checkpoint,
    write_tokenizer,
)

_CLASSES = "sequence_classification"


@pytest.mark.parametrize(("family", "task"), CASES)
def test_model_is_the_checkpoint_frozen(tiny: TinyModels, family: str, task: str) -> None:
    """Every weight of the file, float32, in eval mode; two forwards agree bit for bit."""
    backbone = tiny.load(family, task)
    model = backbone.model
    stored = safetensors.numpy.load_file(tiny.path(family, task) / "model.safetensors")
    loaded = state_bytes(model)
    # the names in a file may be older than the model's
    assert {array.tobytes() for array in stored.values()} == set(loaded.values())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert backbone.labels == (LABELS if task != "causal_lm" else ())
    assert not backbone.random_head
    batch = tiny.batch(family, task, 4)
    assert torch.equal(logits_of(model, batch), logits_of(model, batch))


def test_dropout_is_off_and_would_show(tiny: TinyModels) -> None:
    """The same model in training mode does not repeat itself, so the test above says something."""
    model = tiny.load("bert", _CLASSES).model
    batch = tiny.batch("bert", _CLASSES, 4)
    quiet = logits_of(model, batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(logits_of(model.train(), batch), quiet)


@pytest.mark.parametrize(
    ("family", "task", "heads"),
    [
        ("bert", _CLASSES, ("classifier",)),
        ("distilbert", _CLASSES, ("pre_classifier", "classifier")),
        ("llama", _CLASSES, ("score",)),
        ("t5", _CLASSES, ("classification_head",)),
        ("t5", "causal_lm", ()),
        ("gpt2", "causal_lm", ()),
        ("vit", "image_classification", ("classifier",)),
    ],
)
def test_head_modules(tiny: TinyModels, family: str, task: str, heads: tuple[str, ...]) -> None:
    """What lies outside the body; language models have no head of their own."""
    assert head_modules(tiny.load(family, task).model, task) == heads


@pytest.fixture
def headless(tmp_path: Path) -> Path:
    """A BERT checkpoint whose head was for other labels, and so is of no use."""
    return write_checkpoint(tmp_path / "bert", "bert", _CLASSES)


def test_missing_head_is_drawn_from_the_seed(headless: Path) -> None:
    """N(0, 0.02) and zero biases; the body is the checkpoint's; no global random state is used."""
    labels = ("one", "two", "three", "four")

    def load(seed: int) -> dict[str, bytes]:
        state = torch.random.get_rng_state()
        backbone = load_backbone(str(headless), task=_CLASSES, labels=labels, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert backbone.random_head
        weight = backbone.model.classifier.weight
        assert weight.shape == (4, 16)
        assert (backbone.model.classifier.bias == 0).all()
        assert 0 < float(weight.std()) < 0.02 * 1.5  # 64 draws: 1.5 is 5.6 deviations off
        return state_bytes(backbone.model)

    torch.manual_seed(1)
    one = load(3)
    torch.manual_seed(2)
    assert load(3) == one
    differing = {name for name, value in load(4).items() if value != one[name]}
    assert differing == {"classifier.weight"}


def test_missing_body_is_an_error(headless: Path) -> None:
    """Only a head may be made up."""
    weights = safetensors.numpy.load_file(headless / "model.safetensors")
    del weights["bert.encoder.layer.2.output.dense.weight"]
    safetensors.numpy.save_file(weights, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights of the model's body.*layer\.2\.output"):
        load_backbone(str(headless), task=_CLASSES, labels=LABELS, seed=0)


def test_language_model_without_a_language_head_is_an_error(tiny: TinyModels) -> None:
    """A classifier's checkpoint has no head for tokens (LLaMA's is not tied)."""
    path = tiny.path("llama", _CLASSES)
    with pytest.raises(ModelError, match=r"lacks weights of the model's body: \['lm_head"):
        load_backbone(str(path), task="causal_lm", labels=(), seed=0)


def test_half_precision_checkpoint_is_loaded_as_float32(headless: Path) -> None:
    """Half precision on a CPU is slow, and sums in it are not what devices agree on."""
    weights = safetensors.numpy.load_file(headless / "model.safetensors")
    halves = {name: array.astype(np.float16) for name, array in weights.items()}
    safetensors.numpy.save_file(halves, headless / "model.safetensors", metadata={"format": "pt"})
    model = load_backbone(str(headless), task=_CLASSES, labels=LABELS, seed=0).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    name = "bert.encoder.layer.0.output.dense.weight"
    assert np.array_equal(model.state_dict()[name].numpy(), halves[name].astype(np.float32))


def test_unknown_task(tiny: TinyModels) -> None:
    """The text lists the tasks."""
    with pytest.raises(ModelError, match=r"model\.task='translation'.*'sequence_classification'"):
        load_backbone(str(tiny.path("bert", _CLASSES)), task="translation", labels=LABELS, seed=0)


def test_missing_folder(tmp_path: Path) -> None:
    """The text names the folder and the settings."""
    path = tmp_path / "nowhere"
    with pytest.raises(ModelError, match=rf"'{path}'.*Check model\.path or model\.name"):
        load_backbone(str(path), task=_CLASSES, labels=LABELS, seed=0)


def test_family_without_a_row(tmp_path: Path) -> None:
    """Refused before any weight is read."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "albert"}))
    with pytest.raises(ModelError, match=r"model type 'albert' is not supported; choose one of"):
        load_backbone(str(tmp_path), task=_CLASSES, labels=LABELS, seed=0)


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_weights(headless: Path, damage: str) -> None:
    """A file cut short, as after a broken download."""
    weights = headless / "model.safetensors"
    blob = weights.read_bytes()
    weights.unlink()
    if damage == "truncated":
        weights.write_bytes(blob[: len(blob) // 2])
    with pytest.raises(ModelError, match=rf"cannot load the model '{headless}'"):
        load_backbone(str(headless), task=_CLASSES, labels=LABELS, seed=0)


@pytest.mark.parametrize(
    ("family", "task", "files"),
    [
        ("bert", _CLASSES, ("tokenizer.json", "tokenizer_config.json")),
        ("gpt2", "causal_lm", ("tokenizer.json", "tokenizer_config.json")),
        ("vit", "image_classification", ("preprocessor_config.json",)),
    ],
)
def test_checkpoint_without_input_files(
    tiny: TinyModels, tmp_path: Path, family: str, task: str, files: tuple[str, ...]
) -> None:
    """A model nobody can feed; the text names the folder."""
    folder = tmp_path / family
    shutil.copytree(tiny.path(family, task), folder)
    for name in files:
        (folder / name).unlink()
    with pytest.raises(ModelError, match=str(folder)):
        load_backbone(str(folder), task=task, labels=LABELS, seed=0)


def test_files_make_the_same_tokenizer(tiny: TinyModels) -> None:
    """All the texts a device needs, and nothing else."""
    backbone = tiny.load("bert", _CLASSES)
    assert {"tokenizer.json", "tokenizer_config.json"} <= backbone.files.keys()
    assert not any(str(tiny.path("bert", _CLASSES)) in text for text in backbone.files.values())
    tokenizer = tokenizer_from(backbone.files)
    assert tokenizer("w0 w1")["input_ids"] == [1, 5, 6, 2]  # [CLS] w0 w1 [SEP]


def test_end_token_pads_where_there_is_no_padding_token(tiny: TinyModels) -> None:
    """GPT-2 and LLaMA come without one."""
    for family, pad in (("gpt2", 4), ("opt", 0)):
        assert tokenizer_from(tiny.load(family, "causal_lm").files).pad_token_id == pad


@pytest.mark.parametrize(
    ("family", "pad_in_tokenizer", "pad_in_config"),
    [
        ("gpt2", True, None),
        ("gpt2", True, 4),
        ("gpt2", True, -1),
        ("gpt2", False, None),
        ("gpt2", False, 0),
        ("llama", False, None),
        ("llama", True, 4),
    ],
)
def test_decoder_classifier_looks_at_the_last_real_token(
    tmp_path: Path, family: str, pad_in_tokenizer: bool, pad_in_config: int | None
) -> None:
    """A padded row has the logits of the row alone, whatever the checkpoint calls padding."""
    changes = {"pad_token_id": pad_in_config}
    folder = write_checkpoint(tmp_path / "decoder", family, _CLASSES, **changes)
    write_tokenizer(folder, family, pad=pad_in_tokenizer)
    backbone = load_backbone(str(folder), task=_CLASSES, labels=LABELS, seed=0)
    task = task_of(backbone)
    encoded = task.encode(tiny_examples(6))
    assert len(set(encoded.lengths.tolist())) > 1
    if pad_in_config in (0, 4):  # the checkpoint's own word stands: plain transformers reads it
        assert backbone.model.config.pad_token_id == pad_in_config
    together = logits_of(backbone.model, task.batch(encoded, range(6)))
    for i in range(6):
        alone = logits_of(backbone.model, task.batch(encoded, [i]))[0]
        torch.testing.assert_close(alone, together[i])


def test_padding_token_the_model_does_not_know(tmp_path: Path) -> None:
    """Else the first padded batch dies of an index error."""
    folder = write_checkpoint(tmp_path / "llama", "llama", _CLASSES, vocab_size=45)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "[NEW]"}))
    with pytest.raises(ModelError, match=r"pads with token 45, the model knows 0\.\.44"):
        load_backbone(str(folder), task=_CLASSES, labels=LABELS, seed=0)


def test_real_models(assets: Path) -> None:
    """The stored checkpoints load as what they are."""
    cases = (
        ("minilm-l6", _CLASSES, 6, True),
        ("stories260k", "causal_lm", 5, False),
        ("vit12", "image_classification", 12, True),
    )
    for name, task, depth, random_head in cases:
        folder = assets / "models" / name
        if not folder.is_dir():
            pytest.skip(f"DEFT_ASSETS holds no models/{name}")
        backbone = load_backbone(str(folder), task=task, labels=("a", "b", "c", "d"), seed=0)
        assert backbone.model.config.num_hidden_layers == depth
        assert backbone.random_head == random_head
