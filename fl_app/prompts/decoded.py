"""What a vote on decoded strings is worth: how often members, and their vote, say what is right."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fl_app.fomo.backbone import tokenizer_from
from fl_app.prompts.batched import Tensors
from fl_app.prompts.generate import decode, vote_strings
from fl_app.tasks import IGNORED, Encoded


def exact_matches(
    model: Any,
    files: Mapping[str, str],
    members: Sequence[Tensors],
    encoded: Encoded,
    rows: Sequence[int],
    *,
    max_new_tokens: int,
    batch_size: int,
    weights: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Lets members complete prompts, and compares with the completions to the letter.

    Completions longer than ``max_new_tokens`` cannot be matched and are left out.

    Args:
        model: a frozen language model, not wrapped.
        files: its tokenizer's.
        members: k >= 1.
        encoded: as ``CausalLm`` prepares them.
        rows: which of them.
        max_new_tokens: the longest completion, its end token included.
        batch_size: texts of a pass; k times as many rows.
        weights: of the votes, one per member; uniform if None.

    Returns:
        ``member_mean``, ``member_best`` and ``ensemble``, shares in [0, 1] of ``rows`` right
        completions; None where no completion is short enough.
    """
    tokenizer = tokenizer_from(dict(files))
    texts, wanted = [], []
    for i in rows:
        prompt, completion = prompt_and_completion(
            encoded, i, two_stacks=bool(model.config.is_encoder_decoder)
        )
        if len(completion) <= max_new_tokens:
            texts.append(prompt)
            wanted.append(tokenizer.decode(completion, skip_special_tokens=True).strip())
    hits = np.zeros(len(members))
    voted = 0
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        said = decode(model, tokenizer, members, part, max_new_tokens=max_new_tokens)
        for place, right in enumerate(wanted[start : start + batch_size]):
            own = [member[place] for member in said.texts]
            hits += [text == right for text in own]
            scores = [member[place] for member in said.scores]
            voted += vote_strings(own, scores, weights) == right
    num = len(texts)
    return {
        "member_mean": float(hits.mean() / num) if num else None,
        "member_best": float(hits.max() / num) if num else None,
        "ensemble": voted / num if num else None,
        "rows": num,
    }


def prompt_and_completion(
    encoded: Encoded, row: int, *, two_stacks: bool
) -> tuple[list[int], list[int]]:
    """Returns the tokens of a row's prompt and of its completion."""
    ids, targets = encoded.rows[row], encoded.targets[row]
    if two_stacks:
        return list(ids), list(targets)
    length = sum(target == IGNORED for target in targets)
    return list(ids[:length]), list(targets[length:])
