"""Greedy decoding of k prompts in one batch, and a vote on the decoded strings.

The vote is on whole strings: members that have begun differently would vote on tokens of different
sentences. Rows are padded on the left, so that all of them grow at the same end, with one cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from fl_app.fomo.soft_prompt import token_table
from fl_app.prompts.batched import Tensors, require_positions
from fl_app.prompts.errors import PromptError


@dataclass(frozen=True)
class Decoded:
    """What k members say about B texts.

    Attributes:
        texts: [k][B] decoded strings, without special tokens and outer blanks.
        scores: [k][B] mean log-probability in nats of the decoded tokens, the end included.
    """

    texts: list[list[str]]
    scores: list[list[float]]


def decode(
    model: Any,
    tokenizer: Any,
    members: Sequence[Tensors],
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
) -> Decoded:
    """Decodes greedily, all members and texts in one batch.

    Args:
        model: a frozen language model, not wrapped.
        tokenizer: turns ids into text; decoding stops at its end token.
        members: k >= 1, each with one prompt [m, width] for all texts.
        rows: B texts as token ids, without padding, each with at least one token in sight of the
            model (a virtual one counts).
        max_new_tokens: at most this many tokens are decoded, >= 1.

    Raises:
        PromptError: ``no-member``, ``no-text``, or ``too-long`` for the model's positions.
    """
    if not members:
        raise PromptError("no-member", "an ensemble needs at least one prompt")
    table = token_table(model).weight.detach()
    embedded = [
        torch.cat([member.prompt.detach(), table[torch.tensor(list(row), dtype=torch.int64)]])
        for member in members
        for row in rows
    ]
    if not embedded or min(len(states) for states in embedded) == 0:
        raise PromptError("no-text", "there is neither text nor prompt to go on from")
    longest = max(len(states) for states in embedded)
    require_positions(model.config, longest + max_new_tokens)
    states = table.new_zeros(len(embedded), longest, table.shape[1])
    mask = torch.zeros(states.shape[:2], dtype=torch.int64)
    for i, each in enumerate(embedded):
        states[i, longest - len(each) :] = each
        mask[i, longest - len(each) :] = 1
    settings = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        output_logits=True,
        return_dict_in_generate=True,
    )
    with torch.inference_mode():
        out = model.generate(inputs_embeds=states, attention_mask=mask, generation_config=settings)
    ids = out.sequences[:, -len(out.logits) :]  # an encoder-decoder's begin with a start token
    texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    scores = _scores(torch.stack(out.logits, 1), ids, tokenizer.eos_token_id)
    num = len(rows)
    cuts = range(0, len(embedded), num)
    return Decoded([texts[i : i + num] for i in cuts], [scores[i : i + num] for i in cuts])


def vote_strings(
    texts: Sequence[str], scores: Sequence[float], weights: Sequence[float] | None = None
) -> str:
    """Returns the string with most votes.

    Ties go to the string whose best voter was surest, then to the first in alphabetical order, so
    that the order of members does not matter.

    Args:
        texts: one string of each member, k >= 1.
        scores: of the same members, see ``Decoded``.
        weights: votes of each member, >= 0; one each if None.

    Raises:
        PromptError: ``no-member``.
    """
    if not texts:
        raise PromptError("no-member", "nobody decoded anything")
    votes: dict[str, float] = {}
    surest: dict[str, float] = {}
    given = [1.0] * len(texts) if weights is None else weights
    for text, score, weight in zip(texts, scores, given, strict=True):
        votes[text] = votes.get(text, 0.0) + weight
        surest[text] = max(surest.get(text, score), score)
    return min(votes, key=lambda text: (-round(votes[text], 9), -surest[text], text))


def _scores(logits: torch.Tensor, ids: torch.Tensor, end: int) -> list[float]:
    log_probs = logits.float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    is_end = ids == end
    counts = (is_end.cumsum(-1) - is_end.long()) == 0  # up to and with the first end
    total = torch.where(counts, log_probs, 0.0).sum(-1) / counts.sum(-1)
    return [float(score) for score in total]
