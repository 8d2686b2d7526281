"""Loads a foundation model (FoMo) once, frozen, with everything a device needs to prepare inputs.

The model stays in ``eval`` mode for good, tuning included: dropout would draw from a global random
state and make a federation differ from its centralised twin.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from torch import nn

from fl_app.errors import ModelError
from fl_app.fomo.blocks import family_of
from fl_app.seeding import torch_seed

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

TASKS = ("sequence_classification", "causal_lm", "image_classification")
_TEXT_SUFFIXES = (".json", ".txt", ".jinja")


@dataclass(frozen=True)
class Backbone:
    """A frozen model with its input files.

    Attributes:
        model: float32 ``transformers`` model, ``eval`` mode, no parameter requires a gradient.
        task: one of ``TASKS``.
        labels: class names in the order of the logits; empty for language models.
        files: tokenizer or image-preprocessor files, name to text; all a device needs to prepare
            inputs, so that no device needs a copy of the checkpoint.
        random_head: True where the checkpoint held no head for these labels.
    """

    model: Any
    task: str
    labels: tuple[str, ...]
    files: dict[str, str]
    random_head: bool


def auto_class(task: str, config: Any) -> Any:
    """Returns the ``transformers`` Auto class of a task.

    Raises:
        ModelError: unknown task.
    """
    match task:
        case "sequence_classification":
            return transformers.AutoModelForSequenceClassification
        case "causal_lm" if config.is_encoder_decoder:
            return transformers.AutoModelForSeq2SeqLM
        case "causal_lm":
            return transformers.AutoModelForCausalLM
        case "image_classification":
            return transformers.AutoModelForImageClassification
        case _:
            raise ModelError(f"model.task={task!r} is unknown; choose one of {list(TASKS)}")


def head_modules(model: Any, task: str) -> tuple[str, ...]:
    """Returns the names of the task-head modules, trained in full; none for language models."""
    if task == "causal_lm":
        return ()
    lead = f"{model.base_model_prefix}."
    names = [name for name, _ in model.named_parameters() if not name.startswith(lead)]
    return tuple(dict.fromkeys(name.split(".")[0] for name in names))


def load_backbone(source: str, *, task: str, labels: tuple[str, ...], seed: int) -> Backbone:
    """Loads and freezes a foundation model.

    Args:
        source: a local folder or the name of a model on a hub, as ``from_pretrained`` takes it.
        task: one of ``TASKS``.
        labels: class names; ignored for language models.
        seed: seeds the weights of a task head the checkpoint does not hold.

    Raises:
        ModelError: the model cannot be loaded, or its family has no block table row.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        family_of(config)
        files = _input_files(source, task)
        _set_padding(config, files)
        if task != "causal_lm":
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: i for i, label in enumerate(labels)}
        with torch.random.fork_rng(devices=[]):  # a new head is drawn, below, from its own stream
            model, info = auto_class(task, config).from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, ImportError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"cannot load the model '{source}' for task {task}: {error}. Check model.path or "
            "model.name; without network only local folders and model=minilm work"
        ) from error
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    new = sorted(set(info["missing_keys"]) | mismatched)
    heads = head_modules(model, task)
    if body := [name for name in new if name.split(".")[0] not in heads]:
        raise ModelError(f"the checkpoint '{source}' lacks weights of the model's body: {body[:5]}")
    _draw_head(model, new, seed)
    model.eval().requires_grad_(False)
    return Backbone(
        model=model,
        task=task,
        labels=labels if task != "causal_lm" else (),
        files=files,
        random_head=bool(new),
    )


def num_positions(config: Any) -> int | None:
    """Returns how many tokens a model has positions for; None if relative, or for images."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    if config.model_type == "roberta":  # counts positions from behind its padding token
        positions -= config.pad_token_id + 1
    return int(positions)


def require_length(config: Any, max_length: int, num_tokens: int = 0) -> None:
    """Checks that a model has a position for every token of the longest input.

    Args:
        config: the model's ``transformers`` configuration.
        max_length: tokens of the longest text.
        num_tokens: virtual tokens of a soft prompt in front of it.

    Raises:
        ModelError: it has fewer.
    """
    positions = num_positions(config)
    if positions is None:
        return
    if num_tokens and num_tokens + max_length > positions:
        raise ModelError(
            f"peft.num_tokens={num_tokens} and model.max_length={max_length} are more than the "
            f"{positions} positions of this {config.model_type} model; lower one of them, so that "
            f"their sum is {positions} or less"
        )
    if max_length > positions:
        raise ModelError(
            f"model.max_length={max_length} is more than the {positions} positions of this "
            f"{config.model_type} model; set it to {positions} or less"
        )


def tokenizer_from(files: dict[str, str]) -> Any:
    """Builds the tokenizer from its files alone (the same code on server and device).

    It pads with the model's padding token, so that a saved adapter works on the untouched model;
    where the model names none, with the tokenizer's own, or else with the end token.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        pad = transformers.AutoConfig.from_pretrained(folder).pad_token_id
    if pad is not None and 0 <= pad < len(tokenizer):  # some configurations say -1 for none
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _input_files(source: str, task: str) -> dict[str, str]:
    """Collects the text files that tokenise text or normalise images, plus the configuration."""
    with tempfile.TemporaryDirectory() as folder:
        if task == "image_classification":
            processor, _ = transformers.ImageProcessingMixin.get_image_processor_dict(source)
            (Path(folder) / "preprocessor_config.json").write_text(json.dumps(processor))
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source)
            if len(tokenizer) <= len(tokenizer.all_special_ids):  # made up, for lack of a file
                raise ModelError(f"'{source}' holds no tokenizer; add its tokenizer.json")
            tokenizer.save_pretrained(folder)
            transformers.AutoConfig.from_pretrained(source).save_pretrained(folder)
        return {
            path.name: path.read_text(encoding="utf-8")
            for path in sorted(Path(folder).iterdir())
            if path.suffix in _TEXT_SUFFIXES
        }


def _draw_head(model: nn.Module, names: list[str], seed: int) -> None:
    """Draws missing head weights from a stream of their own: matrices N(0, 0.02), vectors zero."""
    parameters = dict(model.named_parameters())
    for name in names:
        parameter = parameters[name]
        if parameter.ndim < 2:
            nn.init.zeros_(parameter)
        else:
            stream = torch.Generator().manual_seed(torch_seed(seed, "head", name))
            nn.init.normal_(parameter, std=0.02, generator=stream)


def _set_padding(config: Any, files: dict[str, str]) -> None:
    """Makes model and tokenizer agree: decoder classifiers pool the last token that is no padding.

    Raises:
        ModelError: the model has no embedding for the tokenizer's padding.
    """
    if "tokenizer_config.json" not in files:
        return
    pad = tokenizer_from(files).pad_token_id
    if pad is not None and pad >= config.vocab_size:
        raise ModelError(
            f"the tokenizer pads with token {pad}, the model knows 0..{config.vocab_size - 1}; set "
            "pad_token in tokenizer_config.json to one of the model's own tokens"
        )
    config.pad_token_id = pad
