"""Greedy decoding in one batch against a loop that runs the whole text anew for every token."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_app.fomo.backbone import tokenizer_from
from fl_app.prompts.batched import tensors_of
from fl_app.prompts.errors import PromptError
from fl_app.prompts.generate import decode, vote_strings
from fl_app.prompts.member import Member
from tests.fixtures_models import TinyModels
from tests.prompt_fixtures import drawn_member, fit_for, prompted

_NEW = 5
_ROWS = ([7, 12, 30], [9], [20, 21, 22, 23, 24, 25])


def _slow(tiny: TinyModels, family: str, member: Member, row: list[int]) -> tuple[str, float]:
    backbone = tiny.load(family, "causal_lm")
    model: Any = prompted(backbone, member).model
    tokenizer = tokenizer_from(backbone.files)
    two_stacks = backbone.model.config.is_encoder_decoder
    said, scores = list[int](), list[float]()
    with torch.inference_mode():
        while len(said) < _NEW:
            ids = torch.tensor([row if two_stacks else row + said])
            more = {"decoder_input_ids": torch.tensor([[0, *said]])} if two_stacks else {}
            last = model(input_ids=ids, **more).logits[0, -1].log_softmax(-1)
            said.append(int(last.argmax()))
            scores.append(float(last.max()))
            if said[-1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(said, skip_special_tokens=True).strip(), sum(scores) / len(scores)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "mistral", "qwen2", "t5"])
def test_one_batch_decodes_what_every_member_says_alone(tiny: TinyModels, family: str) -> None:
    backbone = tiny.load(family, "causal_lm")
    members = [drawn_member(fit_for(backbone), m, m) for m in (3, 1, 6)]
    found = decode(
        backbone.model,
        tokenizer_from(backbone.files),
        [tensors_of(member) for member in members],
        _ROWS,
        max_new_tokens=_NEW,
    )
    for j, member in enumerate(members):
        for b, row in enumerate(_ROWS):
            text, score = _slow(tiny, family, member, row)
            assert found.texts[j][b] == text
            assert found.scores[j][b] == pytest.approx(score, abs=1e-4)
    assert len({text for texts in found.texts for text in texts}) > 1


def test_votes_on_strings() -> None:
    assert vote_strings(["a", "b", "b"], [0.0, -9.0, -9.0]) == "b"
    assert vote_strings(["a", "b"], [-2.0, -1.0]) == "b"  # a tie: the surer one
    assert vote_strings(["b", "a"], [-1.0, -1.0]) == "a"  # still a tie: the alphabet
    assert vote_strings(["a", "b", "b"], [0.0, 0.0, 0.0], [0.6, 0.2, 0.2]) == "a"
    with pytest.raises(PromptError, match="no-member"):
        vote_strings([], [])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([-1.0, -2.0])), min_size=1))
def test_order_of_voters_does_not_matter(ballots: list[tuple[str, float]]) -> None:
    texts, scores = zip(*ballots, strict=True)
    won = vote_strings(texts, scores)
    assert vote_strings(texts[::-1], scores[::-1]) == won
    assert texts.count(won) == max(texts.count(text) for text in texts)


def test_what_cannot_be_decoded_is_named(tiny: TinyModels) -> None:
    backbone = tiny.load("gpt2", "causal_lm")
    tokenizer, model = tokenizer_from(backbone.files), backbone.model
    tensors = [tensors_of(drawn_member(fit_for(backbone), 3))]
    cases: list[tuple[list[Any], list[list[int]], int, str]] = [
        ([], [[1]], 2, "no-member"),
        (tensors, [], 2, "no-text"),
        (tensors, [[1]], 29, "too-long"),
    ]
    for members, rows, num, reason in cases:
        with pytest.raises(PromptError) as caught:
            decode(model, tokenizer, members, rows, max_new_tokens=num)
        assert caught.value.reason == reason
