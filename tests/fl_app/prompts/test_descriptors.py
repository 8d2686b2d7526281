"""Descriptors against set formulas and a second way to read activations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.fomo.blocks import family_of
from fl_app.prompts.batched import tensors_of
from fl_app.prompts.descriptors import (
    activation_bits,
    cosine,
    flat_cosine,
    mean_embedding,
    nearness,
    overlap,
    token_cosine,
)
from fl_app.prompts.errors import PromptError
from fl_app.prompts.lengths import fit_length
from fl_app.seeding import generator
from tests.fixtures_models import CASES, DEPTH, TinyModels
from tests.prompt_fixtures import CLASSES, drawn_member, fit_for, prompted

_PROMPTED = [case for case in CASES if case[0] != "vit" and case != ("t5", CLASSES)]


def _drawn(seed: int, m: int = 4) -> np.ndarray:
    return generator(seed, "prompt").normal(0, 1, (m, 3)).astype(np.float32)


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_scores_are_symmetric_bounded_and_one_for_the_same(seed: int, m: int, n: int) -> None:
    one, other = _drawn(seed, m), _drawn(seed + 1, n)
    for score in (flat_cosine, nearness):
        assert score(one, one) == pytest.approx(1)
        same = fit_length(other, m)
        assert score(one, same) == pytest.approx(score(same, one))
    means = mean_embedding(one), mean_embedding(other)
    assert cosine(*means) == pytest.approx(cosine(*means[::-1]))
    for value in (cosine(*means), flat_cosine(one, other), token_cosine(one, other)):
        assert -1 <= value <= 1
    assert 0 < nearness(one, other) <= 1
    pairs = [cosine(a, b) for a in one for b in other]
    assert token_cosine(one, other) == pytest.approx(np.mean(pairs), abs=1e-9)
    np.testing.assert_allclose(means[0], one.astype(np.float64).sum(0) / m, rtol=1e-5, atol=1e-7)


def test_a_zero_vector_is_like_nothing() -> None:
    zero = np.zeros((2, 3), np.float32)
    assert cosine(zero, zero) == flat_cosine(_drawn(0), zero) == token_cosine(zero, _drawn(0)) == 0
    with pytest.raises(PromptError, match="wrong-shape"):
        cosine(zero, zero[:1])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_overlap_is_the_set_formula(bits: list[tuple[bool, bool]]) -> None:
    one, other = (np.array(side) for side in zip(*bits, strict=True))
    a, b = ({i for i, bit in enumerate(side) if bit} for side in (one, other))
    wanted = len(a & b) / math.sqrt(len(a) * len(b)) if a and b else 0.0
    assert overlap(one, other) == pytest.approx(wanted)


def _spy(model: torch.nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Adds up, by block, the pre-activations of the last token of every text that is run."""
    seen: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        if path.endswith(name) and "decoder.block" not in path:

            def hook(_module: object, _inputs: object, out: torch.Tensor, path: str = path) -> None:
                seen[path] = seen.get(path, torch.zeros(())) + out.reshape(-1, out.shape[-1])[-1]

            module.register_forward_hook(hook)
    return seen


@pytest.mark.parametrize(("family", "task"), _PROMPTED)
def test_bits_are_those_of_every_prompt_alone(tiny: TinyModels, family: str, task: str) -> None:
    """Each text by itself through ``PromptedModel``: no padding, no other member in the batch."""
    backbone, batch = tiny.load(family, task), tiny.batch(family, task, 3)
    members = [drawn_member(fit_for(backbone), m, m) for m in (2, 5)]
    found = activation_bits(backbone.model, [tensors_of(m) for m in members], batch)
    name = family_of(backbone.model.config).feed_forward
    for bits, member in zip(found, members, strict=True):
        model = prompted(tiny.load(family, task), member).model
        seen = _spy(model, name)
        for row in range(3):
            length = int(batch["attention_mask"][row].sum())
            text = {n: t[row : row + 1, :length] for n, t in batch.items() if n != "labels"}
            more = {"labels": batch["labels"][row : row + 1]} if family == "t5" else {}
            with torch.inference_mode():
                model(**text, **more)
        assert len(seen) == DEPTH
        total = torch.cat(list(seen.values()))
        clear = (total.abs() > 1e-4).numpy()  # rounding may turn a sign at 0
        assert np.array_equal(bits[clear], (total > 0).numpy()[clear])
        assert clear.mean() > 0.99
        assert 0.1 < bits.mean() < 0.9
    assert not np.array_equal(*found)
    assert not any(module._forward_hooks for module in backbone.model.modules())


def test_lengths_are_cut_repeated_and_resampled() -> None:
    prompt = np.array([[0.0, 0.0], [2.0, 4.0], [4.0, 8.0]], np.float32)
    assert fit_length(prompt, 2).tolist() == [[0, 0], [2, 4]]
    assert fit_length(prompt, 5).tolist() == [[0, 0], [2, 4], [4, 8], [0, 0], [2, 4]]
    assert fit_length(prompt, 5, "resample").tolist() == [[0, 0], [1, 2], [2, 4], [3, 6], [4, 8]]
    assert fit_length(prompt, 1, "resample").tolist() == [[0, 0]]
    for how in ("repeat", "resample"):
        same = fit_length(prompt, 3, how)
        assert np.array_equal(same, prompt)
        assert same is not prompt
    for bad in ((prompt[:0], 2, "repeat"), (prompt, 0, "repeat"), (prompt, 2, "cut")):
        with pytest.raises(PromptError):
            fit_length(*bad)
