"""A soft prompt: m virtual tokens in front of the input embeddings (Lester et al. 2021).

arXiv:2104.08691. The model is left as it is; only while a forward pass runs are the embeddings of m
filler tokens in front of the text replaced by the prompt. The model thus still sees token ids, and
whatever it reads from them stays right: RoBERTa's positions, and which token of a padded text a
decoder classifier pools. PEFT's own wrapping passes embeddings alone, with which ``transformers``
pools the last *padding* token; everywhere else the two agree bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import safetensors.torch
import torch
from torch import nn
from typing_extensions import override

from fl_app.errors import ModelError
from fl_app.seeding import generator

PROMPT_NAME = "base_model.prompt_embeddings"
"""The prompt's name among an adapter's parameters, the same on emulator and full model."""
_IGNORED = -100
"""Label of positions without a loss (the convention of ``transformers``)."""


@dataclass(frozen=True)
class PromptSpec:
    """What a soft prompt adds.

    Attributes:
        num_tokens: m >= 1 virtual tokens.
        init: ``vocabulary`` (embeddings of m tokens, drawn uniformly, padding left out) or
            ``normal`` (N(0, s^2), s the standard deviation of the embedding table).
    """

    num_tokens: int
    init: str = "vocabulary"


class PromptedModel(nn.Module):
    """A model that reads a tunable prompt [m, width] in front of every text.

    An encoder-decoder's encoder reads it, the decoder does not. Logits of the prompt's positions
    are dropped, so that logits and labels have the positions of the text, as without a prompt.

    Args:
        model: a frozen ``transformers`` model, neither copied nor changed but for its heads.
        spec: length and starting values of the prompt.
        seed: the run's seed.
        heads: names of head modules tuned in full, in place.
        carried: names of frozen modules saved along.

    Raises:
        ModelError: the model reads no token ids, or is an encoder-decoder with a classifier.
    """

    def __init__(
        self,
        model: Any,
        spec: PromptSpec,
        *,
        seed: int,
        heads: Sequence[str] = (),
        carried: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.config = model.config
        self.num_tokens = spec.num_tokens
        self.base_model = nn.Module()
        self.base_model.model = model
        start = starting_prompt(token_table(model).weight, model.config.pad_token_id, spec, seed)
        self.base_model.prompt_embeddings = nn.Parameter(start)
        for head in heads:
            model.get_submodule(head).requires_grad_(True)
        self._heads, self._carried = tuple(heads), tuple(carried)
        # any token but padding: positions and pooling depend on which tokens are padding
        self._filler = int(model.config.pad_token_id == 0)

    @override
    def forward(self, **inputs: Any) -> Any:
        """Runs the model.

        Args:
            **inputs: ``input_ids`` [B, S], optionally ``attention_mask`` [B, S] and ``labels`` (of
                texts [B, S] or of classes [B]), and options of the model.

        Returns:
            The model's output; a decoder's language-model logits are [B, S, vocabulary].
        """
        model: Any = self.base_model.model
        ids = inputs.pop("input_ids")
        is_decoder_text = not self.config.is_encoder_decoder
        inputs["input_ids"] = self._extended(ids, self._filler)
        if inputs.get("attention_mask") is not None:
            inputs["attention_mask"] = self._extended(inputs["attention_mask"], 1)
        labels = inputs.get("labels")
        if is_decoder_text and labels is not None and labels.ndim == 2:
            inputs["labels"] = self._extended(labels, _IGNORED)
        handle = token_table(model).register_forward_hook(self._put_in)
        try:
            output = model(**inputs)
        finally:
            handle.remove()
        logits = output.get("logits")  # a body without its head has none
        if is_decoder_text and logits is not None and logits.ndim == 3:
            output.logits = logits[:, self.num_tokens :]
        return output

    def _extended(self, rows: torch.Tensor, filler: int) -> torch.Tensor:
        return torch.cat([rows.new_full((len(rows), self.num_tokens), filler), rows], dim=1)

    def _put_in(self, _table: nn.Module, _inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
        prompt: Any = self.base_model.prompt_embeddings
        return torch.cat(
            [prompt.expand(len(embedded), -1, -1), embedded[:, self.num_tokens :]], dim=1
        )

    def save_pretrained(self, folder: Path) -> None:
        """Saves in Hugging Face PEFT format, for ``peft.PeftModel.from_pretrained``.

        What PEFT then computes equals this model's output, but for a decoder classifier on texts
        with padding behind them, which PEFT pools at the wrong token: give it one text at a time.
        """
        model: Any = self.base_model.model
        prompt: Any = self.base_model.prompt_embeddings
        saved = (*self._heads, *self._carried)
        state = {"prompt_embeddings": prompt.detach()} | {
            f"base_model.{module}.{name}": tensor
            for module in saved
            for name, tensor in model.get_submodule(module).state_dict().items()
        }
        config = peft.PromptTuningConfig(
            task_type=self._task_type(),
            inference_mode=True,
            base_model_name_or_path=model.name_or_path,
            num_virtual_tokens=self.num_tokens,
            token_dim=prompt.shape[1],
            num_transformer_submodules=1,
            num_attention_heads=self.config.num_attention_heads,
            num_layers=self.config.num_hidden_layers,
            modules_to_save=list(saved) or None,
        )
        config.save_pretrained(str(folder))
        tensors = {name: tensor.contiguous() for name, tensor in sorted(state.items())}
        safetensors.torch.save_file(
            tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"}
        )

    def _task_type(self) -> peft.TaskType:
        if self._heads:
            return peft.TaskType.SEQ_CLS
        if self.config.is_encoder_decoder:
            return peft.TaskType.SEQ_2_SEQ_LM
        return peft.TaskType.CAUSAL_LM


def token_table(model: Any) -> nn.Embedding:
    """Returns the embedding table [vocabulary, width] that reads a model's text.

    Raises:
        ModelError: the model reads no token ids, or is an encoder-decoder with a classifier.
    """
    kind = model.config.model_type
    two_stacks = bool(model.config.is_encoder_decoder)
    if two_stacks and model.get_output_embeddings() is None:
        raise ModelError(
            f"peft=prompt: the decoder of a {kind} classifier reads the text again, without the "
            "prompt, and transformers cannot tell the two lengths apart; choose peft=lora, or "
            "model.task=causal_lm"
        )
    table: Any = (model.get_encoder() if two_stacks else model).get_input_embeddings()
    if getattr(table, "num_embeddings", None) is None:
        raise ModelError(
            f"peft=prompt puts virtual tokens in front of token embeddings, and a {kind} model has "
            "none; choose peft=lora or peft=head"
        )
    embedding: nn.Embedding = table
    return embedding


def starting_prompt(
    table: torch.Tensor, padding: int | None, spec: PromptSpec, seed: int
) -> torch.Tensor:
    """Draws the starting values [m, width] of a prompt from a stream of its own.

    Args:
        table: the embedding table [vocabulary, width].
        padding: the padding token, never drawn; None if there is none.
        spec: length and kind of starting values.
        seed: the run's seed.

    Raises:
        ModelError: unknown kind.
    """
    rng = generator(seed, "prompt", spec.init)
    match spec.init:
        case "vocabulary":
            tokens = np.array([token for token in range(len(table)) if token != padding])
            return table.detach()[torch.from_numpy(rng.choice(tokens, spec.num_tokens))].clone()
        case "normal":
            spread = float(table.detach().double().std(correction=0))
            drawn = rng.normal(0.0, spread, (spec.num_tokens, table.shape[1]))
            return torch.from_numpy(drawn.astype(np.float32))
        case _:
            raise ModelError(f"peft.init={spec.init!r} is unknown; choose vocabulary or normal")
