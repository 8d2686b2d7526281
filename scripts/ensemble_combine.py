"""Every combiner on every window of members, from what members say once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fl_app.fomo.backbone import tokenizer_from
from fl_app.prompts.attention import PromptAttention, pooled_texts
from fl_app.prompts.batched import Batch, Tensors, log_probabilities, member_losses
from fl_app.prompts.decoded import prompt_and_completion
from fl_app.prompts.ensemble import combine, exponential_weights
from fl_app.prompts.fitting import fit_parameters
from fl_app.prompts.generate import decode, vote_strings
from fl_app.seeding import generator
from fl_app.tasks import Encoded
from scripts.ensemble_members import Prepared

Row = dict[str, Any]
Said = dict[str, torch.Tensor]
"""Of some rows: log_probs [k, N, classes], labels [N], pooled [N, width]."""
PLAIN = ("vote", "mean", "logit_mean", "median")
_ROWS = 64
_ATTENTION_LR, _ATTENTION_EPOCHS, _ATTENTION_BATCH = 3e-3, 5, 32
_MAX_NEW_TOKENS, _DECODED_ROWS = 16, 200


@dataclass(frozen=True)
class Spoken:
    """Members of a prepared task.

    Attributes:
        held: the task.
        members: k of them.
        seed: draws what is fitted.
    """

    held: Prepared
    members: Sequence[Tensors]
    seed: int

    def batches(self, encoded: Encoded) -> Iterator[Batch]:
        """Yields all rows, like lengths together."""
        order = np.argsort(encoded.lengths, kind="stable")
        size = max(1, _ROWS // len(self.members))
        for start in range(0, len(order), size):
            rows = [int(i) for i in order[start : start + size]]
            yield self.held.bench.task.batch(encoded, rows)

    def said(self, encoded: Encoded) -> Iterator[tuple[Batch, torch.Tensor, torch.Tensor]]:
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
    tables = [_table(spoken, rows) for rows in (spoken.held.public, spoken.held.bench.test)]
    public, test = tables
    labels = test["labels"]
    hits = (test["log_probs"].argmax(-1) == labels).double().mean(-1)
    losses = member_losses(public["log_probs"], public["labels"]).double() * len(public["labels"])
    rows = []
    for k in ks:
        found: dict[str, list[tuple[float, float]]] = {}
        for window in windows(len(spoken.members), k):
            said = test["log_probs"][window]
            weighed: dict[str, tuple[str, torch.Tensor | None]] = dict.fromkeys(PLAIN, ("", None))
            weighed["weighted"] = "mean", exponential_weights(losses[window], 1.0)
            weighed["attention"] = "mean", _attention(spoken, window, public, test)
            for name, (how, weights) in weighed.items():
                answer = combine(how or name, said, weights)
                right = float((answer.classes == labels).double().mean())
                loss = float(member_losses(answer.log_probs.clamp(min=-20.0)[None], labels)[0])
                found.setdefault(name, []).append((right, loss))
        rows += [_row(spoken, "accuracy", name, k, hits, one) for name, one in found.items()]
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
            losses = [totals[name, i] / count for i, (own_k, _) in enumerate(places) if own_k == k]
            found = [(float(np.exp(loss)), loss) for loss in losses]
            rows.append(_row(spoken, "perplexity", name, k, alone, found))
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
            found.append((float(np.mean(right)), float("nan")))
        rows.append(_row(spoken, "exact match", "vote", k, hits, found))
    return rows


def _row(
    spoken: Spoken,
    metric: str,
    combiner: str,
    k: int,
    alone: torch.Tensor,
    found: Sequence[tuple[float, float]],
) -> Row:
    """Returns one row; best members are those of each window."""
    best = torch.min if metric == "perplexity" else torch.max
    chosen = [float(best(alone[window])) for window in windows(len(spoken.members), k)]
    loss = float(np.mean([loss for _, loss in found]))
    return {
        "metric": metric,
        "combiner": combiner,
        "k": k,
        "windows": len(found),
        "member_mean": float(alone.mean()),
        "member_best": float(np.mean(chosen)),
        "ensemble": float(np.mean([value for value, _ in found])),
        "loss": loss if np.isfinite(loss) else None,
    }


def _table(spoken: Spoken, encoded: Encoded) -> Said:
    """Returns what members say of all rows, and the texts' pooled embeddings."""
    said, labels, pooled = [], [], []
    for batch, log_probs, own in spoken.said(encoded):
        said.append(log_probs)
        labels.append(own)
        pooled.append(pooled_texts(spoken.held.bench.full.bare_model, batch))
    return {
        "log_probs": torch.cat(said, 1).clone(),
        "labels": torch.cat(labels).clone(),
        "pooled": torch.cat(pooled).clone(),
    }


def _attention(
    spoken: Spoken,
    window: list[int],
    public: dict[str, torch.Tensor],
    test: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Returns weights [k, N] of the test rows by an attention fitted on public rows."""
    prompts = [spoken.members[j].prompt for j in window]
    attention = PromptAttention(prompts[0].shape[1], seed=spoken.seed)

    def loss_of(batch: Batch) -> torch.Tensor:
        weights = attention(batch["pooled"], prompts)
        mixed = (batch["log_probs"].permute(1, 0, 2) + weights.log().unsqueeze(-1)).logsumexp(0)
        return torch.nn.functional.nll_loss(mixed, batch["labels"])

    order = generator(spoken.seed, "attention-rows").permutation(len(public["labels"]))
    said = public["log_probs"][window].permute(1, 0, 2)  # rows first
    batches = [
        {
            "pooled": public["pooled"][rows],
            "log_probs": said[rows],
            "labels": public["labels"][rows],
        }
        for start in range(0, len(order), _ATTENTION_BATCH)
        for rows in [torch.from_numpy(order[start : start + _ATTENTION_BATCH].copy())]
    ]
    fit_parameters(
        loss_of,
        list(attention.parameters()),
        batches,
        lr=_ATTENTION_LR,
        epochs=_ATTENTION_EPOCHS,
    )
    with torch.inference_mode():
        weights: torch.Tensor = attention(test["pooled"], prompts)
    return weights
