"""Tiny random checkpoints, one for each family and task, in the format of real ones.

They are written to disk with a word-level tokenizer and read back through ``load_backbone``, so a
test starts where a user starts: at a folder. Every weight is drawn, biases and norms included;
at their usual starting values (0 and 1) a lost or swapped one would go unseen.
"""

import copy
import dataclasses
import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors

from fl_app.data.examples import Examples
from fl_app.fomo.backbone import Backbone, auto_class, load_backbone
from fl_app.fomo.emulator import Split, build_emulator
from fl_app.fomo.package import EmulatorPackage
from fl_app.seeding import generator
from fl_app.tasks import Columns, Task, build_task

DEPTH = 5
"""Blocks of each stack: the smallest depth that has a split 1-2-1 dropping a block."""
LABELS = ("cold", "mild", "hot")
IMAGE_SIZE = 8
IMAGE_MEAN = (0.4, 0.5, 0.6)
IMAGE_STD = (0.2, 0.25, 0.3)
MAX_LENGTH = 16
WORDS = tuple(f"w{i}" for i in range(40))
_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[EOS]")
_SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
_TOKENS = {"vocab_size": 90, "pad_token_id": 0}
_GROUPED = {**_SHAPE, **_TOKENS, "num_key_value_heads": 1, "max_position_embeddings": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**_SHAPE, **_TOKENS, "max_position_embeddings": 32},
    "roberta": {**_SHAPE, **_TOKENS, "max_position_embeddings": 32},
    "distilbert": {
        **_TOKENS,
        "dim": 16,
        "n_layers": DEPTH,
        "n_heads": 2,
        "hidden_dim": 24,
        "max_position_embeddings": 32,
    },
    "gpt2": {
        **_TOKENS,
        "pad_token_id": None,
        "n_embd": 16,
        "n_layer": DEPTH,
        "n_head": 2,
        "n_positions": 32,
    },
    "opt": {
        **_TOKENS,
        "hidden_size": 16,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "word_embed_proj_dim": 16,
        "max_position_embeddings": 32,
    },
    "llama": {**_GROUPED, "pad_token_id": None},
    "mistral": {**_GROUPED, "sliding_window": 4},
    # a window in the upper blocks alone: the kind of attention must follow its block
    "qwen2": {**_GROUPED, "use_sliding_window": True, "sliding_window": 2, "max_window_layers": 2},
    "t5": {
        **_TOKENS,
        "d_model": 16,
        "d_kv": 8,
        "num_layers": DEPTH,
        "num_decoder_layers": DEPTH,
        "num_heads": 2,
        "d_ff": 24,
        "decoder_start_token_id": 0,
    },
    "vit": {**_SHAPE, "image_size": IMAGE_SIZE, "patch_size": 4},
}
_READS_WHOLE_TEXT = ("bert", "roberta", "distilbert")
_LANGUAGE = ("gpt2", "opt", "llama", "mistral", "qwen2", "t5")
CASES: tuple[tuple[str, str], ...] = (
    *((family, "sequence_classification") for family in CONFIGS if family != "vit"),
    *((family, "causal_lm") for family in _LANGUAGE),
    ("vit", "image_classification"),
)
"""Every family with every task it can do."""


def write_tokenizer(folder: Path, family: str, *, pad: bool) -> None:
    """Saves a tokenizer with one token per word; it ends or frames a text as the family's does."""
    names = {"unk_token": "[UNK]", "eos_token": "[EOS]", **({"pad_token": "[PAD]"} if pad else {})}
    if family == "qwen2":  # the library rebuilds this family's tokenizer as byte pairs, always
        pieces: tuple[str, ...] = (*_SPECIAL, "Ġ", "w", "Ġw", *"0123456789")
        transformers.Qwen2Tokenizer(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[("Ġ", "w")],  # type: ignore[list-item]  # its annotation is too narrow
            **names,
        ).save_pretrained(folder)
        return
    vocabulary = {word: i for i, word in enumerate((*_SPECIAL, *WORDS))}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    frame = {"t5": "$A [EOS]"}.get(family)
    if family in _READS_WHOLE_TEXT:
        frame = "[CLS] $A [SEP]"
    if frame is not None:
        inner.post_processor = processors.TemplateProcessing(
            single=frame, special_tokens=[(name, vocabulary[name]) for name in _SPECIAL]
        )
    fast: Any = transformers.PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=inner, **names)
    tokenizer.save_pretrained(folder)


def tiny_config(family: str, **changes: Any) -> Any:
    """Returns a small configuration; token 4 ends a text."""
    fields: dict[str, Any] = {"eos_token_id": 4, "bos_token_id": 4}
    if family == "vit":
        fields = {}
    return transformers.AutoConfig.for_model(family, **(fields | CONFIGS[family] | changes))


def draw_weights(model: Any, seed: int) -> None:
    """Draws every parameter: N(0, 0.3) for matrices, N(1, 0.3) for norms, so logits spread."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            draw = generator(seed, "tiny", name).normal(centre, 0.3, parameter.shape)
            parameter.copy_(torch.from_numpy(draw.astype(np.float32)))


def write_checkpoint(folder: Path, family: str, task: str, **changes: Any) -> Path:
    """Writes a checkpoint with a head of ``LABELS`` (or a language-model head)."""
    config = tiny_config(family, **changes)
    if task != "causal_lm":
        config.id2label = dict(enumerate(LABELS))
        config.label2id = {label: i for i, label in enumerate(LABELS)}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        model = auto_class(task, config).from_config(config)
    draw_weights(model, seed=0)
    model.save_pretrained(folder)
    if family == "vit":
        settings: dict[str, Any] = {"image_mean": IMAGE_MEAN, "image_std": IMAGE_STD}
        settings |= {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    else:
        # GPT-2 and LLaMA checkpoints come without a padding token
        write_tokenizer(folder, family, pad=family not in ("gpt2", "llama"))
    return folder


class TinyModels:
    """Checkpoints on disk, each written, loaded and tokenised once for the whole test session."""

    def __init__(self, root: Path) -> None:
        """Writes below ``root``, on demand."""
        self._root = root
        self.path = cache(self._path)
        self._loaded = cache(self._load)
        self.task = cache(self._task)

    def load(self, family: str, task: str) -> Backbone:
        """Returns what the server loads from a checkpoint; the model is the caller's to change."""
        loaded = self._loaded(family, task)
        return dataclasses.replace(loaded, model=copy.deepcopy(loaded.model))

    def batch(self, family: str, task: str, num_rows: int) -> dict[str, torch.Tensor]:
        """Returns the first rows of ``tiny_examples`` as one padded batch."""
        prepared = self.task(family, task)
        return prepared.batch(prepared.encode(tiny_examples(num_rows)), range(num_rows))

    def _path(self, family: str, task: str) -> Path:
        return write_checkpoint(self._root / f"{family}-{task}", family, task)

    def _load(self, family: str, task: str) -> Backbone:
        return load_backbone(str(self.path(family, task)), task=task, labels=LABELS, seed=0)

    def _task(self, family: str, task: str) -> Task:
        return task_of(self._loaded(family, task))


def task_of(
    backbone: Backbone,
    max_length: int = MAX_LENGTH,
    overall_shares: tuple[float, ...] = (),
    **columns: Any,
) -> Task:
    """Builds the task of a backbone."""
    return build_task(
        backbone.task,
        files=backbone.files,
        labels=backbone.labels,
        columns=Columns(**columns),
        max_length=max_length,
        model_config=backbone.model.config,
        overall_shares=overall_shares,
    )


def tiny_examples(num_rows: int, seed: int = 0) -> Examples:
    """Draws rows every task can read: texts of 1 to 9 words, prompts, completions, images."""
    rng = generator(seed, "examples")

    def sentence(longest: int) -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(1, longest + 1)))

    return Examples(
        {
            "text": [sentence(9) for _ in range(num_rows)],
            "prompt": [sentence(6) for _ in range(num_rows)],
            "completion": [sentence(4) for _ in range(num_rows)],
            "label": [LABELS[i] for i in rng.integers(0, len(LABELS), num_rows)],
            "image": rng.integers(0, 256, (num_rows, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8),
        }
    )


def tiny_package(tiny: TinyModels, family: str, task: str, split: Split) -> EmulatorPackage:
    """Builds an emulator of a tiny model with all that is sent along."""
    backbone = tiny.load(family, task)
    emulator = build_emulator(backbone.model, task, split)
    return EmulatorPackage(emulator, split, task, backbone.labels, backbone.files)


def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns a model's logits; labels are passed on only where they drive a decoder."""
    drives = "labels" in batch and batch["labels"].ndim > 1
    inputs = {name: value for name, value in batch.items() if name != "labels" or drives}
    with torch.inference_mode():
        logits: torch.Tensor = model(**inputs).logits
    return logits.clone()


def state_bytes(model: Any, *, but: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Returns every weight's bytes by name, except names that contain one of ``but``."""
    return {
        name: tensor.detach().numpy().tobytes()
        for name, tensor in model.state_dict().items()
        if not any(part in name for part in but)
    }
