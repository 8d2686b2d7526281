"""The door of a service: a row of newcomers, and those who would answer with one."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_app.prompts.batched import log_probabilities, member_losses, tensors_of
from fl_app.prompts.door import BestFile, Door, measured_by
from fl_app.prompts.ensemble import combine
from fl_app.prompts.errors import PromptError
from fl_app.prompts.gate import MAX_DROP, blind_loss, probe, require_use
from fl_app.prompts.packing import pack
from fl_app.prompts.pool import Pool
from fl_app.prompts.service import EnsembleService
from fl_app.tasks import Encoded
from tests.fixtures_models import TinyModels
from tests.prompt_fixtures import CLASSES, easy_rows, fit_for, tuned_member

_ROWS, _NEWCOMERS, _EACH = 400, 15, 3
_WEAK = 20
_LABELS = torch.arange(_ROWS) % 2


def _said(right: np.ndarray) -> torch.Tensor:
    """Log-probabilities [N, 2] by those of the right class."""
    table = torch.from_numpy(np.stack([right, 1 - right], 1))
    return table.gather(1, torch.stack([_LABELS, 1 - _LABELS], 1)).log().float()


def _sly(i: int) -> torch.Tensor:
    """Keeps the vote on the edge in the rows that it and others after it will turn."""
    right = np.full(_ROWS, 0.95)
    right[: _EACH * _NEWCOMERS] = 0.49 if i % 2 == 0 else 0.55
    right[: _EACH * i] = 0.1
    right[_EACH * i : _EACH * (i + 1)] = 1e-4
    return _said(right)


def _accuracy(members: list[torch.Tensor]) -> float:
    return float((combine("vote", torch.stack(members)).classes == _LABELS).double().mean())


def test_newcomers_cost_a_point_altogether() -> None:
    """Each costs 3 rows of 400, under the limit of a point; by the gate alone all come in."""
    honest = _said(np.full(_ROWS, 0.6))
    let_in = [honest]
    for i in range(_NEWCOMERS):
        require_use(probe(torch.stack(let_in), _sly(i), _LABELS, how="vote"))
        let_in.append(_sly(i))
        assert _accuracy(let_in) == pytest.approx(1 - (i + 1) * _EACH / _ROWS)

    door, names, inside = Door(_LABELS, "vote"), ["honest"], [honest]
    door.seat("honest", honest)
    reasons = []
    for i in range(_NEWCOMERS):
        try:
            door.require(_sly(i), answering=names, beside=names, weights=None)
        except PromptError as error:
            reasons.append(error.reason)
            continue
        names.append(str(i))
        inside.append(_sly(i))
        door.seat(str(i), _sly(i))
    assert _accuracy(inside) >= 1 - MAX_DROP
    assert set(reasons) == {"harms-ensemble"}
    # who takes nothing away is welcome all the same, though the best is out of reach
    door.require(_said(np.full(_ROWS, 0.97)), answering=names, beside=names, weights=None)


def test_newcomers_cost_a_point_altogether_whatever_is_restarted(tmp_path: Path) -> None:
    """A new door before every newcomer; without a file nearly all the accuracy they want goes."""
    left = {}
    for kept in (None, BestFile(tmp_path / "pool" / "door.json", "these rows")):
        names, inside = ["honest"], [_said(np.full(_ROWS, 0.6))]
        for i in range(_NEWCOMERS):
            door = Door(_LABELS, "vote", kept)
            for name, said in zip(names, inside, strict=True):
                door.seat(name, said)
            with suppress(PromptError):
                door.require(_sly(i), answering=names, beside=names, weights=None)
                names.append(str(i))
                inside.append(_sly(i))
        left[kept is None] = _accuracy(inside)
    assert left[True] == pytest.approx(1 - _NEWCOMERS * _EACH / _ROWS)
    assert 1 - MAX_DROP <= left[False] < 1


def test_the_best_is_void_where_it_was_measured_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "door.json"
    rows = Encoded([[1, 2], [3]], [0, 1], np.array([2, 1]))
    key = measured_by(rows, "vote")
    BestFile(path, key).save(0.75)
    assert BestFile(path, key).load() == 0.75
    assert [one.name for one in tmp_path.iterdir()] == ["door.json"]
    turned = Encoded([[3], [1, 2]], [1, 0], np.array([1, 2]))
    assert BestFile(path, measured_by(turned, "vote")).load() == 0.75
    others = [
        measured_by(rows, "mean"),
        measured_by(Encoded([[1, 2], [4]], [0, 1], np.array([2, 1])), "vote"),
        measured_by(Encoded([[1, 2], [3]], [1, 0], np.array([2, 1])), "vote"),
        measured_by(Encoded([[1, 2]], [0], np.array([2])), "vote"),
    ]
    assert len({key, *others}) == 5
    for other in others:
        assert BestFile(path, other).load() == 0.0
    assert BestFile(tmp_path / "none.json", key).load() == 0.0
    for best in ("NaN", "2.0", "-0.5", "true", "null", '"0.5"'):
        path.write_text(f'{{"measured_by": "{key}", "best": {best}}}')
        with pytest.raises(PromptError, match=r"damaged.*delete the file"):
            BestFile(path, key).load()
    for text in ("", "[]", "{}", '{"measured_by": "a"}'):
        path.write_text(text)
        with pytest.raises(PromptError, match="damaged"):
            Door(_LABELS, "vote", BestFile(path, key))


def test_a_service_remembers_the_best_it_has_had(tiny: TinyModels, tmp_path: Path) -> None:
    """In its folder, measured by brute force; a damaged file is named when it starts."""
    backbone, task = tiny.load("bert", CLASSES), tiny.task("bert", CLASSES)
    members, rows = [tuned_member(tiny, seed) for seed in range(2)], easy_rows(90, seed=50)
    pool = Pool(fit_for(backbone), capacity=9)
    pool.admit(members[0])
    service = EnsembleService(
        backbone, task, pool, probe_rows=rows, how="vote", folder=tmp_path / "pool"
    )
    with suppress(PromptError):
        service.accept(pack(members[1]))
    batch = task.batch(task.encode(rows), range(90))
    with torch.inference_mode():
        said = log_probabilities(backbone.model, [tensors_of(members[0])], batch)[0][0]
    best = float((said.argmax(-1) == batch["labels"]).double().mean())
    assert best > 0.5
    assert json.loads((tmp_path / "pool" / "door.json").read_text())["best"] == best
    (tmp_path / "pool" / "door.json").write_text("{}")
    with pytest.raises(PromptError, match="damaged"):
        EnsembleService(backbone, task, pool, probe_rows=rows, how="vote", folder=tmp_path / "pool")


@pytest.mark.parametrize(
    ("most", "capacity", "company", "comes_in"),
    [
        (None, 9, [0, 1, 2], True),
        (3, 9, [0, 1, 2], True),
        (2, 9, [0, 2], False),
        (1, 9, [2], False),
        (None, 2, [1, 2], False),  # the first one, measured worst, would have to go
    ],
)
def test_a_newcomer_is_judged_with_those_who_would_answer(
    tiny: TinyModels, most: int | None, capacity: int, company: list[int], comes_in: bool
) -> None:
    """Two good ones outvote the third; beside one of them, or none, it would do harm."""
    backbone, task = tiny.load("bert", CLASSES), tiny.task("bert", CLASSES)
    members = [tuned_member(tiny, 0), tuned_member(tiny, 1), tuned_member(tiny, 2, max_steps=_WEAK)]
    rows = easy_rows(90, seed=50)
    batch = task.batch(task.encode(rows), range(90))
    with torch.inference_mode():
        tensors = [tensors_of(member) for member in members]
        said = log_probabilities(backbone.model, tensors, batch)[0]
    hits = [
        float((combine("vote", said[party]).classes == batch["labels"]).double().mean())
        for party in ([0, 1][:most], company)
    ]
    assert float(member_losses(said[2:], batch["labels"])) < blind_loss(batch["labels"], 3)
    assert (hits[1] >= hits[0] - MAX_DROP) == comes_in
    pool = Pool(fit_for(backbone), capacity=capacity)
    for member, loss in zip(members[:2], (5.0, 0.1), strict=True):
        pool.admit(member, measured_loss=loss)
    service = EnsembleService(backbone, task, pool, probe_rows=rows, how="vote", most=most)
    if comes_in:
        service.accept(pack(members[2]))
    else:
        with pytest.raises(PromptError, match="harms-ensemble: accuracy"):
            service.accept(pack(members[2]))
