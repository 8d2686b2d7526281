"""The service without HTTP: restarts, limits, broken members, an empty pool."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.prompts.errors import PromptError
from fl_app.prompts.member import Member
from fl_app.prompts.packing import pack
from fl_app.prompts.pool import Pool
from fl_app.prompts.service import EnsembleService
from tests.fixtures_models import LABELS, TinyModels, logits_of
from tests.prompt_fixtures import CLASSES, drawn_member, easy_rows, fit_for, tuned_member

_TEXTS = ["w3 w4", "w11", "w25 w26 w27"]


def _service(
    tiny: TinyModels,
    members: list[Member],
    capacity: int = 4,
    fits: dict[str, float] | None = None,
    **options: Any,
) -> EnsembleService:
    backbone = tiny.load("bert", CLASSES)
    pool = Pool(replace(fit_for(backbone), **(fits or {})), capacity=capacity)
    for member in members:
        pool.admit(member)
    return EnsembleService(backbone, tiny.task("bert", CLASSES), pool, **options)


def _drawn(tiny: TinyModels, num: int) -> list[Member]:
    fit = fit_for(tiny.load("bert", CLASSES))
    return [drawn_member(fit, seed + 1, seed, with_head=True) for seed in range(num)]


def test_an_empty_pool_answers_as_the_model_is(tiny: TinyModels) -> None:
    service = _service(tiny, [])
    task = tiny.task("bert", CLASSES)
    rows = task.encode(type(easy_rows(1))({"text": _TEXTS, "label": [LABELS[0]] * 3}))
    wanted = logits_of(tiny.load("bert", CLASSES).model, task.batch(rows, range(3))).softmax(-1)
    answers = service.answer(_TEXTS)
    for answer, row in zip(answers, wanted, strict=True):
        assert list(answer.probabilities.values()) == pytest.approx(row.tolist(), rel=1e-4)
        assert answer.num_members == 0
    assert service.feedback(answers[0].id, LABELS[0]) == {}
    assert service.state()["regret_bound"] == 0.0


def test_weights_and_members_survive_a_restart(tiny: TinyModels, tmp_path: Path) -> None:
    service = _service(tiny, _drawn(tiny, 3), folder=tmp_path)
    for answer in service.answer(_TEXTS):
        service.feedback(answer.id, LABELS[1])
    service.keep()
    pool = Pool(fit_for(tiny.load("bert", CLASSES)), capacity=4)
    assert pool.load(tmp_path) == {}
    backbone, task = tiny.load("bert", CLASSES), tiny.task("bert", CLASSES)
    again = EnsembleService(backbone, task, pool, folder=tmp_path)
    before, after = service.state(), again.state()
    assert after["members"] == before["members"]
    assert after["num_feedback"] == 3
    assert len({member["weight"] for member in after["members"]}) == 3
    (tmp_path / "hedge.json").write_text("{}")
    with pytest.raises(PromptError, match="damaged"):
        EnsembleService(backbone, task, pool, folder=tmp_path)


def test_few_answer_and_the_rest_keep_their_standing(tiny: TinyModels) -> None:
    """The ones asked are those of most weight; the others sleep."""
    service = _service(tiny, _drawn(tiny, 4), most=2)
    for _ in range(6):
        first = service.answer(_TEXTS[:1])[0]
        assert first.num_members == 2
        service.feedback(first.id, LABELS[2])
    regrets = [member["regret"] for member in service.state()["members"]]
    assert max(regrets) <= np.log(4) + 1e-9
    assert sum(regret == 0.0 for regret in regrets) <= 2


def test_a_member_that_says_nan_is_passed_over(tiny: TinyModels) -> None:
    """Finite weights whose sums overflow inside the model, in a pool without a bound on heads."""
    good, other = _drawn(tiny, 2)
    head = {name: np.full_like(array, 3e38) for name, array in other.head.items()}
    broken = Member(other.prompt, other.card, head)
    with pytest.raises(PromptError, match="huge-norm"):
        _service(tiny, [good, broken])
    unbounded = {"max_head_norm": math.inf}
    service, lone = _service(tiny, [good, broken], fits=unbounded), _service(tiny, [good])
    for ours, wanted in zip(service.answer(_TEXTS), lone.answer(_TEXTS), strict=True):
        assert ours.label == wanted.label
        assert list(ours.probabilities.values()) == pytest.approx(
            list(wanted.probabilities.values()), rel=1e-4
        )
        service.feedback(ours.id, LABELS[0])
    assert service.state()["num_feedback"] == 3


def test_a_full_pool_lets_the_worst_go(tiny: TinyModels) -> None:
    """The newcomer was measured here, the old one was not."""
    old, new = _drawn(tiny, 1)[0], tuned_member(tiny, 3)
    service = _service(tiny, [old], capacity=1, probe_rows=easy_rows(60, seed=50), how="vote")
    newcomer, leaver = service.accept(pack(new))
    assert newcomer.content_hash == new.content_hash
    assert leaver is not None
    assert leaver.content_hash == old.content_hash
    assert [m["content_hash"] for m in service.state()["members"]] == [new.content_hash]
    assert service.answer(_TEXTS)[0].num_members == 1


def test_long_ago_is_forgotten(tiny: TinyModels) -> None:
    service = _service(tiny, [])
    first = service.answer(["w1"])[0]
    for _ in range(16):
        service.answer(["w1"] * 64)
    with pytest.raises(PromptError, match="unknown-query"):
        service.feedback(first.id, LABELS[0])


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"how": "best"}, "unknown-combiner"), ({"eta": 2.0}, "bad-eta"), ({"most": 0}, "bad-capac")],
)
def test_settings_out_of_range_are_named(
    tiny: TinyModels, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PromptError, match=reason):
        _service(tiny, [], **options)


def test_nobody_is_let_in_unmeasured(tiny: TinyModels) -> None:
    with pytest.raises(PromptError, match="no-probe"):
        _service(tiny, []).accept(b"")
