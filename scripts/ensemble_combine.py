"""Every combiner on every window of members, from what members say once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fl_app.fomo.backbone import tokenizer_from
from fl_app.prompts.attentive import FITS, Fitted
from fl_app.prompts.batched import Batch, Tensors, log_probabilities, member_losses
from fl_app.prompts.decoded import prompt_and_completion
from fl_app.prompts.ensemble import Combined, combine, exponential_weights
from fl_app.prompts.generate import decode, vote_strings
from fl_app.seeding import generator
from fl_app.tasks import Encoded
from scripts.ensemble_fitted import PublicFits
from scripts.ensemble_members import Prepared

Row = dict[str, Any]
Heard = tuple[Batch, torch.Tensor, torch.Tensor]
"""A batch, what members say of it [k, N, classes], and its labels [N]."""
Found = tuple[list[int], float, float]
"""A window, the ensemble's measure there, its loss in nats."""
PLAIN = ("vote", "mean", "logit_mean", "median")
_ROWS = 64
_MAX_NEW_TOKENS, _DECODED_ROWS = 16, 200


@dataclass(frozen=True)
class Spoken:
    """Members of a prepared task.

    Attributes:
        held: the task.
        members: k of them.
        seed: draws what is fitted.
        fusion_windows: windows of k members for which fusion is fitted, the first ones, >= 1.
    """

    held: Prepared
    members: Sequence[Tensors]
    seed: int
    fusion_windows: int = 3

    def batches(self, encoded: Encoded) -> Iterator[Batch]:
        """Yields all rows, like lengths together."""
        order = np.argsort(encoded.lengths, kind="stable")
        size = max(1, _ROWS // len(self.members))
        for start in range(0, len(order), size):
            rows = [int(i) for i in order[start : start + size]]
            yield self.held.bench.task.batch(encoded, rows)

    def said(self, encoded: Encoded) -> Iterator[Heard]:
        """Yields batches with log-probabilities [k, N, classes] and labels [N]."""
        with torch.inference_mode():
            for batch in self.batches(encoded):
                log_probs, labels = log_probabilities(
                    self.held.bench.full.bare_model, self.members, batch
                )
                if len(labels):
                    yield batch, log_probs, labels


def windows(num: int, k: int) -> list[list[int]]:
    """Returns windows of k of ``num`` members in a circle: each member in k of them.

    All members together are one window.
    """
    if k == num:
        return [list(range(num))]
    return [[(first + i) % num for i in range(k)] for first in range(num)]


def by_class(spoken: Spoken, ks: Sequence[int]) -> tuple[list[Row], list[float]]:
    """Measures accuracy.

    Returns:
        (a row per combiner and k, each member's accuracy).
    """
    test = list(spoken.said(spoken.held.bench.test))
    log_probs = torch.cat([said for _, said, _ in test], 1)
    labels = torch.cat([own for *_, own in test])
    hits = (log_probs.argmax(-1) == labels).double().mean(-1)
    losses = public_losses(spoken)
    fits = PublicFits(spoken.held, spoken.members, spoken.seed)
    rows = []
    for k in ks:
        found: dict[str, list[Found]] = {}
        failed: dict[str, int] = {}
        for place, window in enumerate(windows(len(spoken.members), k)):
            answers = {how: combine(how, log_probs[window]) for how in PLAIN}
            weights = exponential_weights(losses[window], 1.0)
            answers["weighted"] = combine("mean", log_probs[window], weights)
            for kind in FITS if k > 1 else ():
                if kind == "fusion" and place >= spoken.fusion_windows:
                    continue
                fitted = fits.fitted(kind, window)
                failed[kind] = failed.get(kind, 0) + (fitted.failed is not None)
                answers[kind] = _answered(spoken, fitted, window, test)
            for name, answer in answers.items():
                right = float((answer.classes == labels).double().mean())
                loss = float(member_losses(answer.log_probs.clamp(min=-20.0)[None], labels)[0])
                found.setdefault(name, []).append((window, right, loss))
        for name, one in found.items():
            rows.append({**_row("accuracy", name, k, hits, one), "failed": failed.get(name, 0)})
    return rows, hits.tolist()


def by_token(spoken: Spoken, ks: Sequence[int]) -> tuple[list[Row], list[float]]:
    """Measures perplexity, and the vote on strings.

    Returns:
        (a row per combiner and k, each member's perplexity).
    """
    num = len(spoken.members)
    public = public_losses(spoken)
    places = [(k, window) for k in ks for window in windows(num, k)]
    hows: dict[str, Callable[[list[int]], torch.Tensor | None]] = {
        "mean": lambda _window: None,
        "logit_mean": lambda _window: None,
        "weighted": lambda window: exponential_weights(public[window], 1.0),
    }
    totals = {(name, i): 0.0 for name in hows for i in range(len(places))}
    own, count = torch.zeros(num, dtype=torch.float64), 0
    for _, log_probs, labels in spoken.said(spoken.held.bench.test):
        own += member_losses(log_probs, labels).double() * len(labels)
        count += len(labels)
        # a mixture's probability of the label needs no other word's; a geometric mean's does
        picked = log_probs.gather(-1, labels.expand(num, -1).unsqueeze(-1))
        first = torch.zeros_like(labels)
        for i, (_, window) in enumerate(places):
            for name, weights in hows.items():
                is_whole = name == "logit_mean"
                said, wanted = (log_probs, labels) if is_whole else (picked, first)
                how = name if is_whole else "mean"
                mixed = combine(how, said[window], weights(window)).log_probs
                totals[name, i] += float(member_losses(mixed[None], wanted)[0]) * len(labels)
    alone = (own / count).exp()
    rows = []
    for name in hows:
        for k in ks:
            found = [
                (window, float(np.exp(totals[name, i] / count)), totals[name, i] / count)
                for i, (own_k, window) in enumerate(places)
                if own_k == k
            ]
            rows.append(_row("perplexity", name, k, alone, found))
    return rows + _strings(spoken, ks), alone.tolist()


def public_losses(spoken: Spoken) -> torch.Tensor:
    """Returns each member's loss [k] in nats, summed over public labels as ``weights_on`` has it.

    Labels are classes of rows, or predicted tokens.
    """
    total = torch.zeros(len(spoken.members), dtype=torch.float64)
    for _, log_probs, labels in spoken.said(spoken.held.public):
        total += member_losses(log_probs, labels).double() * len(labels)
    return total


def _strings(spoken: Spoken, ks: Sequence[int]) -> list[Row]:
    """Lets members complete test rows, and votes in every window."""
    bench, test = spoken.held.bench, spoken.held.bench.test
    tokenizer = tokenizer_from(bench.backbone.files)
    is_pair = bool(bench.backbone.model.config.is_encoder_decoder)
    parts = [prompt_and_completion(test, i, two_stacks=is_pair) for i in range(len(test))]
    short = [part for part in parts if len(part[1]) <= _MAX_NEW_TOKENS]
    drawn = generator(spoken.seed, "decoded").permutation(len(short))[:_DECODED_ROWS]
    short = [short[int(i)] for i in sorted(drawn)]
    texts: list[list[str]] = [[] for _ in spoken.members]
    scores: list[list[float]] = [[] for _ in spoken.members]
    size = max(1, _ROWS // len(spoken.members))
    for start in range(0, len(short), size):
        prompts = [prompt for prompt, _ in short[start : start + size]]
        said = decode(
            bench.full.bare_model,
            tokenizer,
            spoken.members,
            prompts,
            max_new_tokens=_MAX_NEW_TOKENS,
        )
        for j in range(len(spoken.members)):
            texts[j] += said.texts[j]
            scores[j] += said.scores[j]
    wanted = [tokenizer.decode(ids, skip_special_tokens=True).strip() for _, ids in short]
    hits = torch.tensor(
        [[text == right for text, right in zip(own, wanted, strict=True)] for own in texts]
    )
    hits = hits.double().mean(-1) if len(short) else torch.zeros(len(spoken.members))
    rows = []
    for k in ks if short else ():
        found = []
        for window in windows(len(spoken.members), k):
            right = [
                vote_strings([texts[j][i] for j in window], [scores[j][i] for j in window]) == word
                for i, word in enumerate(wanted)
            ]
            found.append((window, float(np.mean(right)), float("nan")))
        rows.append(_row("exact match", "vote", k, hits, found))
    return rows


def _row(metric: str, combiner: str, k: int, alone: torch.Tensor, found: Sequence[Found]) -> Row:
    """Returns one row; mean and best members are those of the windows measured."""
    best = torch.min if metric == "perplexity" else torch.max
    own = [alone[window] for window, *_ in found]
    loss = float(np.mean([loss for *_, loss in found]))
    return {
        "metric": metric,
        "combiner": combiner,
        "k": k,
        "windows": len(found),
        "member_mean": float(np.mean([float(one.mean()) for one in own])),
        "member_best": float(np.mean([float(best(one)) for one in own])),
        "ensemble": float(np.mean([value for _, value, _ in found])),
        "loss": loss if np.isfinite(loss) else None,
    }


def _answered(spoken: Spoken, fitted: Fitted, window: list[int], test: Sequence[Heard]) -> Combined:
    """Returns the answers of a fitted ensemble to all test rows."""
    model = spoken.held.bench.full.bare_model
    with torch.inference_mode():
        parts = [fitted.answer(model, batch, said[window]) for batch, said, _ in test]
    return Combined(
        torch.cat([part.classes for part in parts]), torch.cat([part.log_probs for part in parts])
    )
