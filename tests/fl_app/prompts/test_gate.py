"""What guessing costs, above which a prompt knows nothing."""

import math

import numpy as np
import pytest
import torch

from fl_app.prompts.errors import PromptError
from fl_app.prompts.gate import guessing_loss, probe, require_use
from fl_app.prompts.transfer import let_in
from fl_app.seeding import generator

_ROWS = 16


def _answers(labels: list[int], num_classes: int, right: float) -> torch.Tensor:
    """Log-probabilities [N, C] of who gives the right class a probability, the rest evenly."""
    table = np.full((len(labels), num_classes), (1 - right) / (num_classes - 1))
    table[np.arange(len(labels)), labels] = right
    return torch.from_numpy(np.log(table))


def test_guessing_by_hand() -> None:
    """Shares 4/8, 3/8, 1/8 after one is added to each class."""
    wanted = -(math.log(4 / 8) + math.log(3 / 8)) / 2
    assert guessing_loss([3, 2, 0], [0, 1]) == pytest.approx(wanted)
    assert guessing_loss([3, 2, 0], [2]) == pytest.approx(math.log(3))  # not ln 8
    assert guessing_loss([0, 0], [0, 1]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("num_classes", [2, 8, 64])
def test_few_rows_of_many_classes_do_not_lower_it(num_classes: int) -> None:
    """On even classes nothing is known, so guessing costs about ln C however few the rows are."""
    rng = generator(0, "guessing", num_classes)
    found, alone = [], []
    for _ in range(200):
        other, labels = rng.integers(0, num_classes, (2, _ROWS))
        counts = np.bincount(other, minlength=num_classes)
        found.append(guessing_loss(counts, [int(label) for label in labels]))
        said = _answers(labels.tolist(), num_classes, 0.5)
        alone.append(probe(torch.zeros(0), said, torch.tensor(labels)).shares_loss)
    assert np.mean(alone) > 0.9 * math.log(num_classes)
    assert np.mean(found) > 0.9 * math.log(num_classes)
    assert max(found + alone) <= math.log(num_classes) + 1e-12


def test_sixteen_rows_of_64_classes_let_in_who_knows_something() -> None:
    """Loss 3.2 is far below ln 64 = 4.16, and above ln 16, the entropy of these rows."""
    labels = list(range(_ROWS))
    found = probe(torch.zeros(0), _answers(labels, 64, math.exp(-3.2)), torch.tensor(labels))
    assert found.loss == pytest.approx(3.2)
    require_use(found)
    ceiling = guessing_loss(np.zeros(64, np.int64), labels)
    assert let_in([5.0, found.loss], margin=0.0, ceiling=ceiling) == 1
    with pytest.raises(PromptError, match="knows-nothing"):
        require_use(probe(torch.zeros(0), _answers(labels, 64, 1 / 64), torch.tensor(labels)))


def test_rows_of_one_class_let_in_who_is_sure_of_it() -> None:
    """(n + 1) / (n + C) is the share of the class: there is something left to be better than."""
    labels = [1] * _ROWS
    ceiling = guessing_loss([0, 20, 0], labels)
    assert ceiling == pytest.approx(math.log(23 / 21))
    assert let_in([5.0, 0.01], margin=0.0, ceiling=ceiling) == 1
    assert let_in([5.0, 0.2], margin=0.0, ceiling=ceiling) == 0
    require_use(probe(torch.zeros(0), _answers(labels, 3, 0.99), torch.tensor(labels)))
    with pytest.raises(PromptError, match="knows-nothing"):
        require_use(probe(torch.zeros(0), _answers(labels, 3, 0.8), torch.tensor(labels)))
