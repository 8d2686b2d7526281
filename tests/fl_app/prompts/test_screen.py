"""Who may speak: drawn members of known skill, hostile ones among them, and fresh rows."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fl_app.prompts.ensemble import COMBINERS, combine, exponential_weights
from fl_app.prompts.gate import MAX_DROP
from fl_app.prompts.screen import Said, screen
from fl_app.seeding import generator

_CLASSES, _HONEST, _ROWS, _FRESH = 4, 5, 400, 4000


def _members(labels: np.ndarray, seed: int, num: int = _HONEST, skill: float = 2.0) -> np.ndarray:
    """Logits [num, N, C]: noise of each member, and ``skill`` for the right class."""
    rng = generator(seed, "members")
    logits = rng.normal(0, 1.5, (num, len(labels), _CLASSES))
    logits[:, np.arange(len(labels)), labels] += skill
    return logits


def _hostile(kind: str, labels: np.ndarray, seed: int) -> np.ndarray:
    rng = generator(seed, "hostile")
    wrong = (labels + 1) % _CLASSES
    match kind:
        case "flipped":
            return _members(wrong, seed + 1, 1)[0]
        case "loud":  # a legal head of a hundred times the size
            return 100.0 * _members(wrong, seed + 1, 1)[0]
        case "loud for one class":
            return np.tile([1000.0, 0.0, 0.0, 0.0], (len(labels), 1))
        case "random":
            return rng.normal(0, 5.0, (len(labels), _CLASSES))
        case _:  # an exploded one
            return np.full((len(labels), _CLASSES), np.nan)


def _drawn(kinds: list[str], num_rows: int, seed: int) -> Said:
    labels = generator(seed, "labels").integers(0, _CLASSES, num_rows)
    honest = list(_members(labels, seed))
    hostile = [_hostile(kind, labels, seed + 10 * i) for i, kind in enumerate(kinds)]
    logits = torch.from_numpy(np.stack([*honest, *hostile]))
    return logits.log_softmax(-1), torch.from_numpy(labels)


def _accuracy(said: Said, party: list[int], how: str) -> float:
    return float((combine(how, said[0][party]).classes == said[1]).double().mean())


_KINDS = (["flipped"], ["loud"], ["loud for one class"], ["random"], ["NaN"], ["flipped", "loud"])


@pytest.mark.parametrize("kinds", _KINDS, ids="+".join)
@pytest.mark.parametrize("how", COMBINERS)
def test_hostile_members_have_no_say_and_honest_ones_keep_theirs(
    how: str, kinds: list[str]
) -> None:
    rows, fresh = _drawn(kinds, _ROWS, 0), _drawn(kinds, _FRESH, 500)
    gone = screen(lambda: [rows], how=how, by_class=True)
    assert set(gone) == set(range(_HONEST, _HONEST + len(kinds)))
    assert set(gone.values()) <= {"knows-nothing", "harms-ensemble"}
    left = [j for j in range(len(rows[0])) if j not in gone]
    assert _accuracy(fresh, left, how) >= _accuracy(fresh, list(range(_HONEST)), how) - MAX_DROP


def test_without_a_screen_the_loud_one_decides() -> None:
    """Or the test above would show nothing."""
    said = _drawn(["loud"], _FRESH, 500)
    honest = _accuracy(said, list(range(_HONEST)), "logit_mean")
    assert _accuracy(said, list(range(_HONEST + 1)), "logit_mean") < honest - 0.5


@pytest.mark.parametrize("how", COMBINERS)
def test_honest_members_go_no_more_often_than_chance_lets_them(how: str) -> None:
    """Equally good members: each is missed by less than 2.3 % (two standard errors, one side)."""
    gone = sum(
        len(screen(lambda: [_drawn([], 100, seed)], how=how, by_class=True))  # noqa: B023
        for seed in range(60)
    )
    judged = 60 * _HONEST
    bound = 0.0228 * judged
    assert gone <= bound + 4 * math.sqrt(bound)


def test_members_that_know_one_class_each_are_needed() -> None:
    """All guess worse than evenly, but one; yet without any of them a class is lost."""
    labels = torch.arange(400) % _CLASSES
    table = torch.full((_CLASSES + 1, 400, _CLASSES), 0.95 / 3)
    for j in range(_CLASSES):
        own = labels == j
        table[j, own] = 0.01
        table[j, own, j] = 0.97
        table[j, ~own, labels[~own]] = 0.05
    table[-1] = 0.73 / 3
    table[-1, torch.arange(400), labels] = 0.27
    said = table.log(), labels
    losses = -table[:, torch.arange(400), labels].log().mean(-1)
    assert (losses[:-1] > math.log(_CLASSES)).all()
    assert losses[-1] < math.log(_CLASSES)
    assert screen(lambda: [said], how="mean", by_class=True) == {}


def test_where_nobody_knows_anything_all_stay() -> None:
    labels = torch.arange(200) % _CLASSES
    logits = torch.from_numpy(generator(0, "noise").normal(0, 2.0, (5, 200, _CLASSES)))
    assert screen(lambda: [(logits.log_softmax(-1), labels)], how="vote", by_class=True) == {}
    nothing = torch.full((3, 200, _CLASSES), torch.nan), labels
    assert screen(lambda: [nothing], how="mean", by_class=True) == {}
    assert screen(lambda: [], how="mean", by_class=True) == {}


@pytest.mark.parametrize("how", ["mean", "logit_mean"])
def test_texts_are_judged_by_nats_a_token(how: str) -> None:
    """In two batches; a mixture goes through them once, whole vocabularies again each time."""
    log_probs, labels = _drawn(["loud", "NaN"], 600, 3)
    asked = []

    def said() -> Iterator[Said]:
        asked.append(1)
        yield log_probs[:, :250], labels[:250]
        yield log_probs[:, 250:250], labels[250:250]
        yield log_probs[:, 250:], labels[250:]

    gone = screen(said, how=how, by_class=False)
    assert gone.keys() == {5, 6}
    assert gone[6] == "knows-nothing"  # a NaN changes nothing, so it does no harm
    assert len(asked) == (1 if how == "mean" else 4)


def test_weights_are_those_of_the_members_present() -> None:
    """Who weighs nothing does no harm; the harm is seen where all weigh alike."""
    rows = _drawn(["loud"], _ROWS, 0)
    seen = []

    def weights_of(losses: torch.Tensor) -> torch.Tensor:
        seen.append(losses)
        return exponential_weights(losses, 1.0)

    gone = screen(lambda: [rows], how="mean", by_class=True, weights_of=weights_of)
    assert gone == {_HONEST: "knows-nothing"}
    picked = rows[0][:, torch.arange(_ROWS), rows[1]]
    torch.testing.assert_close(seen[0], -picked.sum(-1))
    torch.testing.assert_close(seen[1], -picked[1:].sum(-1))
