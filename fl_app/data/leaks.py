"""Finds test sentences that (nearly) occur in the training split."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fl_app.errors import ConfigError

_APOSTROPHE = re.compile(r"['\u2019]")
_PUNCTUATION = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Leak:
    """One pair of sentences that are too similar.

    Attributes:
        test_row: row in the test split.
        train_row: row in the training split.
        overlap: shared words over all words of the pair (Jaccard), in [0, 1].
        test: the test sentence.
        train: the training sentence.
    """

    test_row: int
    train_row: int
    overlap: float
    test: str
    train: str


def fold(sentence: str) -> str:
    """Returns the sentence in lower case without punctuation and with single spaces."""
    plain = _APOSTROPHE.sub("", sentence.casefold())
    return " ".join(_PUNCTUATION.sub(" ", plain).split())


def find_leaks(train: Sequence[str], test: Sequence[str], *, threshold: float = 0.6) -> list[Leak]:
    """Returns every pair of a test and a training sentence that are too similar.

    A pair is reported where both are equal after ``fold``, or where the Jaccard overlap of their
    word sets is at least ``threshold``.

    Args:
        train: training sentences.
        test: test sentences.
        threshold: least overlap that counts as a leak, in (0, 1].

    Returns:
        The pairs in the order of test, then training rows.

    Raises:
        ConfigError: ``threshold`` is out of range.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold must be above 0 and at most 1, got {threshold}")
    folded = [fold(sentence) for sentence in train]
    words = [frozenset(sentence.split()) for sentence in folded]
    # Only sentences that share a word can overlap; the index spares comparing every pair.
    holders: dict[str, list[int]] = defaultdict(list)
    for row, known in enumerate(words):
        for word in known:
            holders[word].append(row)
    equal: dict[str, list[int]] = defaultdict(list)
    for row, sentence in enumerate(folded):
        equal[sentence].append(row)

    leaks = []
    for test_row, sentence in enumerate(test):
        probe = fold(sentence)
        own = frozenset(probe.split())
        shared = Counter(row for word in own for row in holders.get(word, ()))
        overlaps = {
            row: count / (len(own) + len(words[row]) - count) for row, count in shared.items()
        }
        found = {row: overlap for row, overlap in overlaps.items() if overlap >= threshold}
        found.update(dict.fromkeys(equal.get(probe, ()), 1.0))
        leaks += [Leak(test_row, row, found[row], sentence, train[row]) for row in sorted(found)]
    return leaks
