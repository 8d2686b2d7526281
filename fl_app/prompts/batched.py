"""k prompts in one forward pass: every text is repeated k times, each time behind another prompt.

A shorter prompt leaves its row shorter; rows are padded on the right, where causal and masked
attention alike ignore it, so every token keeps the position it has in a pass of its own (Lester et
al. 2021, arXiv:2104.08691, section 6, for prompts of one length). Members may bring heads of their
own: the model's body is run once for all, its head once for each.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fl_app.fomo.backbone import num_positions
from fl_app.fomo.soft_prompt import token_table
from fl_app.prompts.errors import PromptError
from fl_app.prompts.member import Member

Batch = dict[str, torch.Tensor]
IGNORED = -100
_LEAD = "base_model.model."


@dataclass(frozen=True, eq=False)
class Tensors:
    """What one member puts into the pass; gradients reach both.

    Attributes:
        prompt: [m, width], or [B, m, width] for another prompt before every text. m = 0 is the
            model as it is.
        head: the head's parameters by their name in an adapter; empty for the model's own.
    """

    prompt: torch.Tensor
    head: Mapping[str, torch.Tensor] = field(default_factory=dict)


def tensors_of(member: Member) -> Tensors:
    """Returns a member's arrays as tensors of their own."""
    head = {name: torch.from_numpy(array.copy()) for name, array in member.head.items()}
    return Tensors(torch.from_numpy(member.prompt.copy()), head)


def as_it_is(model: Any) -> Tensors:
    """Returns the member without any token: the answer where a pool is empty."""
    return Tensors(token_table(model).weight.new_zeros(0, token_table(model).embedding_dim))


def forward(model: Any, members: Sequence[Tensors], batch: Batch) -> torch.Tensor:
    """Runs all members in one pass.

    Args:
        model: a frozen ``transformers`` model, not wrapped; it is left as it is.
        members: k >= 1.
        batch: ``input_ids`` [B, S], padded on the right if at all; ``attention_mask`` [B, S] where
            it is; ``labels`` [B, T] where they drive a decoder.

    Returns:
        Logits [k, B, classes], or [k, B, S, vocabulary] (T of an encoder-decoder) at the positions
        of the text.

    Raises:
        PromptError: ``no-member``, ``wrong-width``, or ``too-long`` for the model's positions.
    """
    if not members:
        raise PromptError("no-member", "an ensemble needs at least one prompt")
    ids = batch["input_ids"]
    table, longest = token_table(model), max(member.prompt.shape[-2] for member in members)
    if any(member.prompt.shape[-1] != table.embedding_dim for member in members):
        widths = sorted({int(member.prompt.shape[-1]) for member in members})
        raise PromptError("wrong-width", f"prompts are {widths} wide, not {table.embedding_dim}")
    require_positions(model.config, longest + ids.shape[1])
    padding = model.config.pad_token_id
    padding = 0 if padding is None else int(padding)
    # any token but padding: positions and pooling depend on which tokens are padding
    filler = int(padding == 0)
    lengths = [int(member.prompt.shape[-2]) for member in members]
    mask = batch.get("attention_mask", torch.ones_like(ids))
    inputs = {
        "input_ids": _rows(ids, lengths, filler, padding),
        "attention_mask": _rows(mask, lengths, 1, 0),
    }
    two_stacks = bool(model.config.is_encoder_decoder)
    if two_stacks:
        inputs["labels"] = batch["labels"].repeat(len(members), 1)
    with _put_in(table, [member.prompt for member in members], len(ids)), _heads(model, members):
        logits = model(**inputs, **_no_cache(model)).logits
    logits = logits.unflatten(0, (len(members), len(ids)))
    if logits.ndim == 3 or two_stacks:
        return torch.as_tensor(logits)
    parts = zip(logits, lengths, strict=True)
    return torch.stack([part[:, length : length + ids.shape[1]] for part, length in parts])


def log_probabilities(
    model: Any, members: Sequence[Tensors], batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what the members say at every place that has a label.

    Args:
        model: see ``forward``.
        members: see ``forward``.
        batch: as a task makes it, with its ``labels``.

    Returns:
        (log-probabilities [k, N, classes] in nats, labels [N]). For classes N = B; for texts N
        counts the predicted tokens.
    """
    logits, labels = forward(model, members, batch), batch["labels"]
    if logits.ndim == 3:
        return logits.log_softmax(-1), labels
    if not model.config.is_encoder_decoder:  # position t predicts token t + 1
        logits, labels = logits[:, :, :-1], labels[:, 1:]
    read = labels != IGNORED
    return logits[:, read].log_softmax(-1), labels[read]


def member_losses(log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss [k] in nats of each member, from [k, N, classes] and [N]."""
    picked = log_probs.gather(-1, labels.expand(len(log_probs), -1).unsqueeze(-1))
    return -picked.squeeze(-1).mean(-1)


def _rows(text: torch.Tensor, lengths: Sequence[int], before: int, behind: int) -> torch.Tensor:
    """Puts each member's virtual tokens before every text and fills up to the longest."""
    longest = max(lengths)
    return torch.cat(
        [
            torch.cat(
                [
                    text.new_full((len(text), length), before),
                    text,
                    text.new_full((len(text), longest - length), behind),
                ],
                dim=1,
            )
            for length in lengths
        ]
    )


@contextmanager
def _put_in(table: nn.Module, prompts: Sequence[torch.Tensor], num_texts: int) -> Iterator[None]:
    """Replaces the fillers' embeddings by the prompts, while the context lasts."""

    def hook(_table: nn.Module, _inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
        blocks = embedded.chunk(len(prompts))
        return torch.cat(
            [
                torch.cat([prompt.expand(num_texts, -1, -1), block[:, prompt.shape[-2] :]], dim=1)
                for prompt, block in zip(prompts, blocks, strict=True)
            ]
        )

    handle = table.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _heads(model: Any, members: Sequence[Tensors]) -> Iterator[None]:
    """Gives every member's rows their own head, while the context lasts."""
    names = {name for member in members for name in member.head}
    modules = {name.removeprefix(_LEAD).rpartition(".")[0] for name in names}
    with ExitStack() as handles:
        for path in modules:
            own = [
                {
                    leaf: tensor
                    for name, tensor in member.head.items()
                    for owner, _, leaf in [name.removeprefix(_LEAD).rpartition(".")]
                    if owner == path
                }
                for member in members
            ]
            handle = model.get_submodule(path).register_forward_hook(_head_hook(own))
            handles.callback(handle.remove)
        yield


def _head_hook(own: Sequence[Mapping[str, torch.Tensor]]) -> Any:
    busy: list[bool] = []

    def hook(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> Any:
        if busy:  # called by itself, below
            return output
        busy.append(True)
        try:
            parts = args[0].chunk(len(own))
            return torch.cat(
                [
                    torch.func.functional_call(module, dict(weights), (part,))
                    for weights, part in zip(own, parts, strict=True)
                ]
            )
        finally:
            busy.clear()

    return hook


def _no_cache(model: Any) -> dict[str, bool]:
    return {} if model.get_output_embeddings() is None else {"use_cache": False}


def require_positions(config: Any, length: int) -> None:
    """Checks that a model has positions for prompt and text together.

    Raises:
        PromptError: ``too-long``.
    """
    positions = num_positions(config)
    if positions is not None and length > positions:
        raise PromptError(
            "too-long",
            f"prompt and text have {length} tokens together, the model {positions} positions; "
            "shorten one of them",
        )
