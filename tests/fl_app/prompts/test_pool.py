"""Members on disk and on the wire; who gets into a pool, who goes first, and why."""

import contextlib
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.errors import WireError
from fl_app.prompts.errors import PromptError
from fl_app.prompts.fit import Fit, tokenizer_hash
from fl_app.prompts.member import Card, Member, member_of
from fl_app.prompts.packing import pack, unpack
from fl_app.prompts.pool import Pool
from fl_app.seeding import generator
from tests.fixtures_models import TinyModels
from tests.prompt_fixtures import CLASSES, card_for, drawn_member, fit_for

_FIT = Fit("m" * 64, "t" * 64, 4, 6, 50.0, {"base_model.model.classifier.weight": (3, 4)})
_MAX = 10**6


def _member(seed: int = 0, num_tokens: int = 3, **fields: Any) -> Member:
    return drawn_member(_FIT, num_tokens, seed, with_head=True, **fields)


def _same(one: Member, other: Member) -> bool:
    arrays = [{n: (a.shape, a.tobytes()) for n, a in m.arrays().items()} for m in (one, other)]
    return arrays[0] == arrays[1] and one.card == other.card


@pytest.mark.parametrize("loss", [None, 0.7])
def test_a_member_survives_packing_bit_for_bit(loss: float | None) -> None:
    member = _member(validation_loss=loss)
    back = unpack(pack(member), max_bytes=_MAX)
    assert _same(back, member)
    assert back.content_hash == member.content_hash
    assert pack(back) == pack(member)


@given(st.integers(0, 2**20), st.floats(1e-30, 1e30))
@settings(max_examples=50, deadline=None)
def test_int8_moves_an_entry_by_half_a_scale(seed: int, size: float) -> None:
    """Oracle: round to nearest; the scale of a row is its largest entry / 127."""
    values = generator(seed, "int8").normal(0, 1, (5, 4)) * size
    prompt = values.astype(np.float32)
    prompt[2] = 0.0
    back = unpack(pack(Member(prompt, card_for(_FIT)), "int8"), max_bytes=_MAX).prompt
    half = np.abs(prompt.astype(np.float64)).max(axis=1, keepdims=True) / 127 / 2
    assert (np.abs(back.astype(np.float64) - prompt) <= half * (1 + 1e-5)).all()
    assert (back[2] == 0).all()


def test_bytes_of_a_packed_prompt_are_those_of_its_arrays() -> None:
    """The frame is the same for every length, so differences are m d b (deft.md table 6.6)."""
    sizes: dict[str, list[int]] = {}
    for codec in ("float32", "float16", "int8"):
        for m in (1000, 2000):
            prompt = np.ones((m, 64), np.float32)
            blob = pack(Member(prompt, card_for(_FIT)), codec)
            sizes.setdefault(codec, []).append(len(blob))
    grown = {codec: big - small for codec, (small, big) in sizes.items()}
    # names of offsets in the header grow by a few digits
    assert abs(grown["float32"] - 1000 * 64 * 4) <= 16
    assert abs(grown["float16"] - 1000 * 64 * 2) <= 16
    assert abs(grown["int8"] - 1000 * (64 + 4)) <= 16


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_flipped_bit_is_found(data: st.DataObject) -> None:
    blob = bytearray(pack(_member()))
    at = data.draw(st.integers(0, 8 * len(blob) - 1))
    blob[at // 8] ^= 1 << at % 8
    with pytest.raises(WireError):
        unpack(bytes(blob), max_bytes=_MAX)


def test_what_is_no_member_is_refused() -> None:
    with pytest.raises(WireError, match="too-large"):
        unpack(pack(_member()), max_bytes=100)
    with pytest.raises(PromptError, match="wrong-shape"):
        Member(np.zeros(3, np.float32), card_for(_FIT))
    with pytest.raises(PromptError, match="wrong-dtype"):
        Member(np.zeros((3, 2)), card_for(_FIT))  # type: ignore[arg-type]
    for bad in ({"device": -1}, {"round": -1}, {"task": ""}, {"validation_loss": float("nan")}):
        with pytest.raises(PromptError, match="bad-card"):
            dataclasses.replace(card_for(_FIT), **bad)
    with pytest.raises(PromptError, match="peft=prompt"):
        member_of({}, card_for(_FIT))
    with pytest.raises(ValueError, match="read-only"):
        _member().prompt[0] = 1.0


def _huge() -> Member:
    prompt = _member().prompt.copy()
    prompt[1] *= 50.1 / np.linalg.norm(prompt[1])
    return Member(prompt, card_for(_FIT))


def _with_huge_head() -> Member:
    """Finite, as float32 allows it; its logits would not be."""
    member = _member()
    return Member(
        member.prompt, member.card, {n: np.full_like(a, 3e38) for n, a in member.head.items()}
    )


def _with_nan() -> Member:
    prompt = _member().prompt.copy()
    prompt[1, 2] = np.nan
    return Member(prompt, card_for(_FIT))


@pytest.mark.parametrize(
    ("stranger", "reason"),
    [
        (_member(model_hash="x" * 64), "wrong-model"),
        (_member(tokenizer_hash="x" * 64), "wrong-tokenizer"),
        (Member(np.ones((3, 5), np.float32), card_for(_FIT)), "wrong-width"),
        (_member(num_tokens=7), "too-long"),
        (Member(np.ones((0, 4), np.float32), card_for(_FIT)), "too-long"),
        (Member(_member().prompt, card_for(_FIT), {"odd": np.ones(2, np.float32)}), "wrong-head"),
        (_with_nan(), "not-finite"),
        (_huge(), "huge-norm"),
        (_with_huge_head(), "huge-norm"),
        (_member(round=2), "stale"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(stranger: Member, reason: str) -> None:
    pool = Pool(_FIT, capacity=3, max_age=5)
    pool.admit(_member(seed=9, round=3), now_round=8)
    with pytest.raises(PromptError) as caught:
        pool.admit(stranger, now_round=8)
    assert caught.value.reason == reason
    assert len(pool) == 1


def test_the_same_content_counts_once() -> None:
    """Another card, the same prompt: its weight must not double."""
    pool = Pool(_FIT, capacity=3)
    pool.admit(_member())
    again = Member(_member().prompt, card_for(_FIT, device=7, task="other"), _member().head)
    with pytest.raises(PromptError, match="duplicate"):
        pool.admit(again)
    pool.admit(Member(_member().prompt, card_for(_FIT)))  # without the head it is another
    assert len(pool) == 2


def test_who_goes_first() -> None:
    """Every order of arrival ends with the members a sort by the stated rule would keep."""
    known = [
        (_member(1, round=1), 0.5),
        (_member(2, round=4), 0.9),
        (_member(3, round=5), 0.9),
        (_member(4, round=9), 1.2),
        (_member(5, round=9, validation_loss=0.0), None),  # a claim of no loss at all
    ]
    kept = {m.content_hash for m, _ in (known[0], known[2], known[1])}
    for order in itertools.permutations(known):
        pool = Pool(_FIT, capacity=3)
        for member, loss in order:
            with contextlib.suppress(PromptError):  # a newcomer may be the first to go
                pool.admit(member, now_round=9, measured_loss=loss)
        assert {member.content_hash for member in pool.members} == kept


def test_a_pool_survives_saving(tmp_path: Path) -> None:
    pool = Pool(_FIT, capacity=4, max_age=5)
    for seed, loss in enumerate((0.25, None, 0.125)):
        pool.admit(_member(seed, round=seed), measured_loss=loss)
    gone = pool.members[1]
    pool.save(tmp_path)
    pool.forget(gone.content_hash)
    pool.save(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    back = Pool(_FIT, capacity=4, max_age=5)
    assert back.load(tmp_path) == {}
    assert [e.measured_loss for e in back.entries] == [0.25, 0.125]
    assert all(_same(a, b) for a, b in zip(back.members, pool.members, strict=True))
    assert [m.card.round for m in back.forget_stale(7)] == [0]
    with pytest.raises(PromptError, match="unknown-prompt"):
        back.forget(gone.content_hash)


def test_damaged_files_are_named_and_the_rest_is_loaded(tmp_path: Path) -> None:
    pool = Pool(_FIT, capacity=9)
    for seed in range(4):
        pool.admit(_member(seed))
    pool.save(tmp_path)
    damaged, missing, swapped, whole = (m.content_hash for m in pool.members)
    file = tmp_path / f"{damaged}.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (tmp_path / f"{missing}.safetensors").unlink()
    (tmp_path / f"{swapped}.safetensors").write_bytes(pack(_member(77)))
    back = Pool(_FIT, capacity=9)
    assert back.load(tmp_path) == {damaged: "damaged", missing: "missing", swapped: "damaged"}
    assert [m.content_hash for m in back.members] == [whole]
    other = Pool(dataclasses.replace(_FIT, model_hash="n" * 64), capacity=9)
    assert other.load(tmp_path)[whole] == "wrong-model"
    (tmp_path / "pool.json").write_text(json.dumps({"members": [1]}))
    with pytest.raises(PromptError, match="damaged"):
        back.load(tmp_path)


@pytest.mark.parametrize(
    ("fit", "capacity", "reason"),
    [
        (dataclasses.replace(_FIT, model_hash="n" * 64), 3, "wrong-model"),
        (dataclasses.replace(_FIT, head_shapes={}), 3, "wrong-head"),
        (_FIT, 1, "pool-full"),
    ],
)
def test_what_does_not_fit_here_is_not_deleted(
    tmp_path: Path, fit: Fit, capacity: int, reason: str
) -> None:
    """Wrong model, wrong labels, less room: the owner with the right ones finds all again."""
    pool = Pool(_FIT, capacity=3)
    for seed, loss in enumerate((None, 0.25, 0.125)):  # the first one goes first
        pool.admit(_member(seed), measured_loss=loss)
    pool.save(tmp_path)
    file = tmp_path / f"{pool.members[2].content_hash}.safetensors"
    half = file.read_bytes()[:-1]
    file.write_bytes(half)
    stranger = Pool(fit, capacity=capacity)
    refused = stranger.load(tmp_path)
    assert set(refused.values()) == {reason, "damaged"}
    if capacity > 1:
        stranger.admit(drawn_member(fit, 3, seed=9))  # as a running service does
    stranger.save(tmp_path)
    stranger.save(tmp_path)
    assert file.read_bytes() == half
    back = Pool(_FIT, capacity=4)
    assert list(back.load(tmp_path).values()).count("damaged") == 1
    found = {entry.member.content_hash: entry.measured_loss for entry in back.entries}
    for entry in pool.entries[:2]:
        assert found[entry.member.content_hash] == entry.measured_loss


def test_hashes_name_what_matters(tiny: TinyModels) -> None:
    """Body and tokenizer, not the head, which prompts bring along."""
    backbone, again = tiny.load("bert", CLASSES), tiny.load("bert", CLASSES)
    fit = fit_for(backbone)
    assert fit.head_shapes["base_model.model.classifier.weight"] == (3, 16)
    again.model.classifier.bias.add_(1.0)
    assert fit_for(again) == fit
    again.model.bert.encoder.layer[4].output.dense.bias[0] += 1e-6
    assert fit_for(again).model_hash != fit.model_hash
    files = {**backbone.files, "config.json": "{}"}
    assert tokenizer_hash(files) == fit.tokenizer_hash
    assert tokenizer_hash({**files, "tokenizer.json": "{}"}) != fit.tokenizer_hash
    assert Card("a", "b", 0, "t", 9).age(4) == 0
