"""The service without HTTP: restarts, limits, broken members, an empty pool."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.prompts.batched import log_probabilities, member_losses, tensors_of
from fl_app.prompts.ensemble import combine
from fl_app.prompts.errors import PromptError
from fl_app.prompts.gate import blind_loss
from fl_app.prompts.hedge import bounded_log_loss
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


def test_kept_weights_of_another_rate_are_refused(tiny: TinyModels, tmp_path: Path) -> None:
    _service(tiny, _drawn(tiny, 2), folder=tmp_path, eta=0.5).keep()
    with pytest.raises(PromptError, match=r"made with eta=0\.5, asked for is eta=1\.0"):
        _service(tiny, _drawn(tiny, 2), folder=tmp_path)
    path = tmp_path / "hedge.json"
    path.write_text(path.read_text().replace('"eta": 0.5', '"eta": 3.0'))
    with pytest.raises(PromptError, match="bad-eta"):
        _service(tiny, _drawn(tiny, 2), folder=tmp_path, eta=0.5)


def _loud(member: Member) -> Member:
    """Its own answers, a hundred times as sure: good at the mean, too loud for a geometric one."""
    head = {name: np.float32(40.0) * array for name, array in member.head.items()}
    return Member(member.prompt, member.card, head)


@pytest.mark.parametrize("how", ["weighted", "mean", "logit_mean", "median", "vote"])
def test_the_gate_asks_the_combiner_that_answers(tiny: TinyModels, how: str) -> None:
    """A newcomer of every kind goes in or not as brute force over the probe rows says."""
    honest = [tuned_member(tiny, seed) for seed in range(4)]
    rows = easy_rows(60, seed=50)
    newcomers = [honest[3], _loud(tuned_member(tiny, 5, max_steps=40)), tuned_member(tiny, 6)]
    verdicts = []
    for newcomer in newcomers:
        service = _service(tiny, honest[:3], how=how, probe_rows=rows)
        for answer in service.answer(_TEXTS):  # weights that are not alike
            service.feedback(answer.id, LABELS[0])
        state = {m["content_hash"]: m["weight"] for m in service.state()["members"]}
        old = [state[m.content_hash] for m in honest[:3]]
        try:
            service.accept(pack(newcomer))
            verdicts.append(True)
        except PromptError:
            verdicts.append(False)
        assert verdicts[-1] == _would_pass(tiny, honest[:3], newcomer, old, how, rows)
    assert verdicts[1] is False


def _would_pass(
    tiny: TinyModels, members: list[Member], newcomer: Member, old: list[float], how: str, rows: Any
) -> bool:
    """By the definitions, with log-probabilities of each member alone."""
    backbone, task = tiny.load("bert", CLASSES), tiny.task("bert", CLASSES)
    batch = task.batch(task.encode(rows), range(len(rows)))
    labels = batch["labels"]
    with torch.inference_mode():
        said = torch.cat(
            [
                log_probabilities(backbone.model, [tensors_of(m)], batch)[0]
                for m in [*members, newcomer]
            ]
        )
    own = float(member_losses(said[-1:], labels)[0])
    # who joins has the weight of the mixture so far: 1 of k + 1 where the others' sum to k
    raw = [*old, _joining(tiny, members, old)]
    weights = torch.tensor(raw) if how == "weighted" else None
    mixes = "mean" if how == "weighted" else how
    before = combine(mixes, said[:-1], None if weights is None else weights[:-1])
    after = combine(mixes, said, weights)
    losses = [float(member_losses(one.log_probs[None], labels)[0]) for one in (before, after)]
    hits = [float((one.classes == labels).double().mean()) for one in (before, after)]
    harms = (how != "vote" and losses[1] > losses[0]) or hits[1] < hits[0] - 0.01
    return own < blind_loss(labels, len(LABELS)) and not harms


def _joining(tiny: TinyModels, members: list[Member], old: list[float]) -> float:
    """The weight of a newcomer before scaling, from the mixture's loss of three feedbacks."""
    service = _service(tiny, members)
    said = service.answer(_TEXTS)
    losses = {m.content_hash: 0.0 for m in members}
    mixture = 0.0
    for answer in said:
        place = list(LABELS).index(LABELS[0])
        alone = {
            m.content_hash: bounded_log_loss(
                float(np.log(list(_alone(tiny, m, answer.id - 1))[place])), len(LABELS)
            )
            for m in members
        }
        raw = {name: math.exp(-loss) for name, loss in losses.items()}
        total = sum(raw.values())
        mixture -= math.log(sum(raw[n] / total * math.exp(-alone[n]) for n in raw))
        losses = {name: losses[name] + alone[name] for name in losses}
    scale = old[0] / math.exp(-losses[members[0].content_hash])
    return scale * math.exp(-mixture)


def _alone(tiny: TinyModels, member: Member, text: int) -> list[float]:
    return list(_service(tiny, [member]).answer(_TEXTS)[text].probabilities.values())


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
