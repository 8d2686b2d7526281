"""Combiners against closed forms and brute force."""

import math
from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.prompts.ensemble import COMBINERS, combine, exponential_weights
from fl_app.prompts.errors import PromptError
from fl_app.seeding import generator

_seeds = st.integers(0, 2**31)


def _drawn(seed: int, k: int = 4, num: int = 6, classes: int = 3) -> torch.Tensor:
    logits = generator(seed, "logits").normal(0, 2, (k, num, classes))
    return torch.from_numpy(logits).log_softmax(-1)


def _weights(seed: int, k: int = 4) -> torch.Tensor:
    drawn = generator(seed, "weights").random(k)
    return torch.from_numpy(drawn / drawn.sum())


def _nll(log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return -log_probs.gather(-1, labels.unsqueeze(-1)).mean()


@pytest.mark.parametrize("how", COMBINERS)
def test_k_equal_members_are_one(how: str) -> None:
    """Oracle 1: bit for bit in the answer, 1e-6 in the probabilities."""
    one = _drawn(0, k=1)
    together, alone = combine(how, one.expand(5, -1, -1)), combine(how, one)
    assert torch.equal(together.classes, one[0].argmax(-1))
    assert torch.equal(together.classes, alone.classes)
    torch.testing.assert_close(together.log_probs, alone.log_probs, rtol=1e-6, atol=1e-6)
    if how != "vote":
        torch.testing.assert_close(alone.log_probs, one[0], rtol=1e-6, atol=1e-6)


@given(_seeds)
@settings(max_examples=30, deadline=None)
def test_order_of_members_does_not_matter(seed: int) -> None:
    """Oracle 3."""
    log_probs, weights = _drawn(seed), _weights(seed)
    order = torch.from_numpy(generator(seed, "order").permutation(4))
    for how in COMBINERS:
        one, other = (
            combine(how, log_probs, weights),
            combine(how, log_probs[order], weights[order]),
        )
        assert torch.equal(one.classes, other.classes)
        torch.testing.assert_close(one.log_probs, other.log_probs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.log_probs.exp().sum(-1), torch.ones(6).double())


@given(_seeds)
@settings(max_examples=50, deadline=None)
def test_the_mixture_is_no_worse_than_its_members_on_average(seed: int) -> None:
    """Oracle 5: Jensen, always."""
    log_probs, weights = _drawn(seed), _weights(seed)
    labels = torch.from_numpy(generator(seed, "labels").integers(0, 3, 6))
    members = torch.stack([_nll(member, labels) for member in log_probs])
    mixed = _nll(combine("mean", log_probs, weights).log_probs, labels)
    assert mixed <= (weights * members).sum() + 1e-12


@given(_seeds)
@settings(max_examples=50, deadline=None)
def test_mean_geometric_mean_and_median_by_hand(seed: int) -> None:
    log_probs, weights = _drawn(seed), _weights(seed)
    p, w = log_probs.exp().numpy(), weights.numpy()
    mean = sum(w[j] * p[j] for j in range(4))
    np.testing.assert_allclose(combine("mean", log_probs, weights).log_probs.exp(), mean)
    product = np.prod(p ** w[:, None, None], axis=0)
    product /= product.sum(-1, keepdims=True)
    np.testing.assert_allclose(combine("logit_mean", log_probs, weights).log_probs.exp(), product)
    middle = np.empty_like(p[0])
    for n in range(6):
        for c in range(3):
            order = np.argsort(p[:, n, c])
            middle[n, c] = p[order[np.searchsorted(np.cumsum(w[order]), 0.5 - 1e-9)], n, c]
    middle /= middle.sum(-1, keepdims=True)
    np.testing.assert_allclose(combine("median", log_probs, weights).log_probs.exp(), middle)


@given(_seeds, st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_votes_are_counted_and_ties_go_to_the_likelier(seed: int, k: int) -> None:
    log_probs = _drawn(seed, k=k, num=8)
    found = combine("vote", log_probs).classes
    for n in range(8):
        counts = Counter(int(c) for c in log_probs[:, n].argmax(-1))
        tied = [c for c in counts if counts[c] == max(counts.values())]
        mean = log_probs[:, n].exp().mean(0)
        assert int(found[n]) == max(tied, key=lambda c: float(mean[c]))


def test_five_voters_at_seventy_percent() -> None:
    """Oracle 6: independent voters of two classes; P(Binomial(5, 0.7) >= 3) = 0.83692."""
    expected = float(scipy.stats.binom.sf(2, 5, 0.7))
    assert expected == pytest.approx(0.83692)
    num = 20_000
    right = generator(0, "voters").random((5, num)) < 0.7
    sure = torch.from_numpy(np.where(right, math.log(0.9), math.log(0.1)))
    log_probs = torch.stack([sure, (1 - sure.exp()).log()], -1)
    hits = (combine("vote", log_probs).classes == 0).double().mean()
    assert abs(float(hits) - expected) < 5 * (expected * (1 - expected) / num) ** 0.5


@given(_seeds, st.floats(0, 50))
@settings(max_examples=50, deadline=None)
def test_exponential_weights(seed: int, eta: float) -> None:
    """Oracle 7: on the simplex; uniform at eta = 0, the best member at infinity."""
    losses = torch.from_numpy(generator(seed, "losses").random(5) * 100)
    weights = exponential_weights(losses, eta)
    assert (weights >= 0).all()
    assert float(weights.sum()) == pytest.approx(1)
    ratio = (weights[0] / weights[1]).log() if min(weights[:2]) > 1e-250 else None
    if ratio is not None:
        assert float(ratio) == pytest.approx(float(eta * (losses[1] - losses[0])), abs=1e-6)
    assert torch.equal(exponential_weights(losses, 0.0), torch.full((5,), 0.2, dtype=torch.float64))
    best = exponential_weights(losses, float("inf"))
    assert int(best.argmax()) == int(losses.argmin())
    assert float(best.max()) == 1.0


def test_equal_losses_share_infinite_eta() -> None:
    shared = exponential_weights(torch.tensor([1.0, 1.0, 2.0]), float("inf"))
    assert shared.tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("eta", [0.0, 1.0, float("inf")])
def test_who_has_no_finite_loss_weighs_nothing(eta: float, broken: float) -> None:
    """The others weigh what they would weigh without it."""
    rest = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    weights = exponential_weights(torch.cat([torch.tensor([broken]).double(), rest]), eta)
    assert weights[0] == 0.0
    torch.testing.assert_close(weights[1:], exponential_weights(rest, eta))
    assert float(weights.sum()) == pytest.approx(1)
    with pytest.raises(PromptError, match="no-member"):
        exponential_weights(torch.full((2,), broken), eta)


@pytest.mark.parametrize("how", COMBINERS)
def test_a_member_with_nan_is_left_out(how: str) -> None:
    """Only at that sample; the others' weights are scaled up."""
    log_probs, weights = _drawn(1), _weights(1)
    broken = log_probs.clone()
    broken[2, 3, 1] = torch.nan
    broken[1, 4, 0] = torch.inf
    found = combine(how, broken, weights)
    for n, out in ((3, 2), (4, 1)):
        rest = [j for j in range(4) if j != out]
        wanted = combine(how, log_probs[rest, n : n + 1], weights[rest])
        torch.testing.assert_close(found.log_probs[n : n + 1], wanted.log_probs)
    whole = combine(how, log_probs, weights)
    torch.testing.assert_close(found.log_probs[:3], whole.log_probs[:3])


def test_less_than_half_cannot_move_the_median_beyond_the_others() -> None:
    honest = _drawn(2, k=3)
    hostile = torch.tensor([[[0.0, -torch.inf, -torch.inf]]]).double().expand(2, 6, -1)
    found = combine("median", torch.cat([honest, hostile])).log_probs.exp()
    # before scaling every class lies within the honest range, so the odds do as well
    low, high = honest.exp().min(0).values, honest.exp().max(0).values
    for a in range(3):
        for b in range(3):
            odds = found[:, a] / found[:, b]
            assert (odds <= high[:, a] / low[:, b] + 1e-9).all()
            assert (odds >= low[:, a] / high[:, b] - 1e-9).all()


def test_what_cannot_be_combined_is_named() -> None:
    log_probs = _drawn(0)
    cases = [
        (("mode", log_probs, None), "unknown-combiner"),
        (("mean", log_probs * torch.nan, None), "no-member"),
        (("mean", log_probs, torch.zeros(4)), "no-member"),
        (("mean", log_probs, -torch.ones(4)), "bad-weights"),
    ]
    for arguments, reason in cases:
        with pytest.raises(PromptError) as caught:
            combine(*arguments)
        assert caught.value.reason == reason
