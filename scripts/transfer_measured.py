"""What every transfer between two domains brought, and what follows from all of them."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy.stats import spearmanr

from fl_app.prompts.batched import tensors_of
from fl_app.prompts.descriptors import (
    activation_bits,
    cosine,
    flat_cosine,
    mean_embedding,
    nearness,
    overlap,
)
from fl_app.prompts.gate import guessing_loss
from fl_app.prompts.member import Member
from fl_app.prompts.packing import pack
from fl_app.prompts.transfer import let_in
from fl_app.prompts.transfer_measures import negative_rate, retention, steps_to_reach
from fl_app.tasks import Batch
from scripts.transfer_tuning import Domain, Settings, Tuned, Workbench

Entry = dict[str, Any]
DESCRIPTORS = ("mean_cosine", "flat_cosine", "euclid", "bits", "probe_loss")
"""Of mean embeddings and of whole prompts; 1 / (1 + distance); overlap of active neurons; minus the
loss on the target's probe rows, which costs the transfer of every candidate. What is compared with
a source's finished prompt is the target's early one, for that is all a requester has."""
_FLOAT = 4


def cross(
    bench: Workbench,
    domains: Sequence[Domain],
    own: Sequence[Tuned],
    start: Member,
    target: int,
    settings: Settings,
    seed: int,
    texts: Batch,
) -> list[Entry]:
    """Uses every domain's member on one target, as it is, and tunes on from the best one.

    Args:
        bench: tunes and measures.
        domains: all of them.
        own: what was tuned on each.
        start: the prompt nobody has tuned.
        target: place of the target domain.
        settings: of the tunings.
        seed: of the tunings.
        texts: the batch on which neurons are read.

    Returns:
        One entry for every source but the target itself.
    """
    domain, mine = domains[target], own[target]
    members = [mine.early, *(each.member for each in own), start]
    probed, _ = bench.losses(members, domain.probe)
    tested, scores = bench.losses(members, domain.test)
    compared = [mine.early, *(each.member for each in own)]
    bits = activation_bits(bench.model, [tensors_of(member) for member in compared], texts)
    others = [source for source in range(len(own)) if source != target]
    chosen = min(others, key=lambda source: probed[1 + source])
    name = f"{domain.name}-from-{domains[chosen].name}"
    again = bench.tuned(domain, own[chosen].member, settings, seed, name)
    level = min(mine.losses)
    reached = [steps_to_reach(each.losses, level) for each in (mine, again)]
    saved = {
        "steps_random": _times(reached[0], settings.every),
        "steps_chosen": _times(reached[1], settings.every),
        "final_random": min(mine.losses),
        "final_chosen": min(again.losses),
    }
    counts = bench.task.class_counts(domain.train)
    ceiling = guessing_loss(counts, domain.probe.targets)
    per_step = mine.tokens / settings.steps
    width = start.width
    entries = []
    for source in others:
        theirs, prompt = own[source].member, mine.early.prompt
        entries.append(
            {
                "seed": seed,
                "target": domain.name,
                "source": domains[source].name,
                "own_score": scores[1 + target],
                "early_score": scores[0],
                "start_score": scores[-1],
                "score": scores[1 + source],
                "retention": retention(scores[1 + source], scores[1 + target]),
                "early_loss": tested[0],
                "loss": tested[1 + source],
                "passes": let_in([probed[0], probed[1 + source]], margin=0.0, ceiling=ceiling) == 1,
                "mean_cosine": cosine(mean_embedding(prompt), mean_embedding(theirs.prompt)),
                "flat_cosine": flat_cosine(prompt, theirs.prompt),
                "euclid": nearness(prompt, theirs.prompt),
                "bits": overlap(bits[0], bits[1 + source]),
                "probe_loss": -probed[1 + source],
                "bytes": len(pack(theirs)),
                "retraining_bytes": round(settings.steps * step_bytes(per_step, settings, width)),
                "is_chosen": source == chosen,
                **(saved if source == chosen else dict.fromkeys(saved)),
            }
        )
    return entries


def step_bytes(tokens: float, settings: Settings, width: int) -> float:
    """Returns the bytes of one local step by gradient download in float32, framing left out.

    Up: states of all tokens and the prompt's, the gradient at the states the head reads. Down:
    these states, and the gradient of the prompt. Masks go as one byte a token.

    Args:
        tokens: of all texts of a step.
        settings: batch and prompt.
        width: d.
    """
    prompt, read = settings.num_tokens * width, settings.batch_size * width
    return _FLOAT * (tokens * width + 2 * prompt + 2 * read) + tokens


def summarise(entries: Sequence[Entry]) -> dict[str, Any]:
    """Returns means over targets and seeds.

    Returns:
        ``retention`` of all transfers, of the chosen source, and of the best one, which is picked
        on the test rows: with hindsight, a bar and no method; and of the prompt nobody has tuned,
        which is what guessing retains. ``accuracy`` on test rows: of that prompt (``untuned``), of
        the requester's ``early`` one, of the ``chosen`` one as it is, of its ``own`` at the end;
        ``spearman``: for every descriptor the mean rank correlation, over targets, with the score
        of the transfer (None where there are fewer than three sources, or all alike);
        ``negative_rate``: share of transfers that raise the test loss above that of the
        requester's own early prompt, over all, and over those that pass the gate; ``let_in``: the
        share of these; ``steps``: medians over all ``targets`` until the random start's best
        validation loss is reached, and of the steps saved. The ``censored`` among them never
        reach it from the chosen prompt, and count as slower than any that do; a median that falls
        among them is None; ``bytes``: of a transfer and of retraining.
    """
    groups: dict[tuple[int, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry["seed"], entry["target"]), []).append(entry)
    chosen = [entry for entry in entries if entry["is_chosen"]]
    passed = [entry for entry in entries if entry["passes"]]
    steps = [math.inf if (n := e["steps_chosen"]) is None else float(n) for e in chosen]
    best = [max(e["retention"] for e in group) for group in groups.values()]
    return {
        "retention": {
            "mean": _mean(entries, "retention"),
            "chosen": _mean(chosen, "retention"),
            "best_on_test_rows": statistics.mean(best),
            "untuned": statistics.mean(e["start_score"] / e["own_score"] for e in chosen),
        },
        "accuracy": {
            "untuned": _mean(chosen, "start_score"),
            "early": _mean(chosen, "early_score"),
            "chosen": _mean(chosen, "score"),
            "own": _mean(chosen, "own_score"),
        },
        "spearman": {name: _correlation(list(groups.values()), name) for name in DESCRIPTORS},
        "negative_rate": {"gate_off": _negative(entries), "gate_on": _negative(passed)},
        "let_in": len(passed) / len(entries),
        "steps": {
            "targets": len(chosen),
            "censored": sum(map(math.isinf, steps)),
            "random": _median([float(e["steps_random"]) for e in chosen]),
            "chosen": _median(steps),
            "saved": _median(
                [e["steps_random"] - step for e, step in zip(chosen, steps, strict=True)]
            ),
        },
        "bytes": {
            "transfer": _mean(entries, "bytes"),
            "retraining": _mean(entries, "retraining_bytes"),
        },
    }


def _correlation(groups: Sequence[Sequence[Entry]], name: str) -> float | None:
    found = []
    for group in groups:
        given, real = [e[name] for e in group], [e["score"] for e in group]
        if len(group) >= 3 and len(set(given)) > 1 and len(set(real)) > 1:
            found.append(float(spearmanr(given, real).statistic))
    return statistics.mean(found) if found else None


def _negative(entries: Sequence[Entry]) -> float | None:
    if not entries:
        return None
    return negative_rate([e["early_loss"] for e in entries], [e["loss"] for e in entries])


def _times(points: int | None, every: int) -> int | None:
    return None if points is None else points * every


def _mean(entries: Sequence[Entry], name: str) -> float:
    return math.fsum(entry[name] for entry in entries) / len(entries)


def _median(values: Sequence[float]) -> float | None:
    """Returns the median; None of nothing, or where it lies among infinite values."""
    found = statistics.median(values) if values else math.inf
    return found if math.isfinite(found) else None
