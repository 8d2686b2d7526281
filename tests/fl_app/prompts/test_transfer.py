"""Choice against brute force, transfers that arrive whole or not at all, and the gate's promise."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.errors import WireError
from fl_app.prompts.advert import Advert, advert_of, read_advert
from fl_app.prompts.errors import PromptError
from fl_app.prompts.fit import Fit
from fl_app.prompts.member import Member
from fl_app.prompts.mixing import mix
from fl_app.prompts.packing import pack
from fl_app.prompts.transfer import Link, Offer, adopt, choose, receive, score
from fl_app.seeding import generator
from tests.prompt_fixtures import card_for, drawn_member

_FIT = Fit("m" * 64, "t" * 64, 4, 6, 50.0)


def _advert(member: Member, codec: str = "float32") -> tuple[Advert, bytes]:
    blob = pack(member, codec)
    bits = generator(member.card.device, "bits").random(20) < 0.5
    return advert_of(member.card, blob, bits), blob


_offers = st.lists(
    st.tuples(
        st.integers(100, 10_000),  # bytes
        st.floats(-1, 1),  # score
        st.sampled_from([0.0, 1e3, 1e4, 1e6]),  # bit/s
        st.sampled_from([0.1, 5.0, 100.0]),  # contact
        st.integers(0, 20),  # round
        st.sampled_from(["m", "n"]),
    ),
    max_size=8,
)


@given(_offers, st.sampled_from([0.0, 0.1, 2.0]), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_the_choice_is_the_best_feasible_one(
    drawn: list[tuple[int, float, float, float, int, str]], price: float, most: int
) -> None:
    """Brute force over all offers, from the formula score - lambda 8 bytes / rate."""
    offers = [
        Offer(
            Advert(f"{i:064d}", size, model * 64, "t" * 64, i, made, np.ones(3, np.bool_)),
            Link(rate, contact_s),
            value,
        )
        for i, (size, value, rate, contact_s, made, model) in enumerate(drawn)
    ]
    chosen = choose(offers, _FIT, price_per_s=price, most=most, now_round=15, max_age=10)
    worth = {}
    for i, (size, value, rate, contact_s, made, model) in enumerate(drawn):
        if model == "m" and made >= 5 and rate > 0 and 8 * size / rate <= contact_s:
            worth[i] = value - price * 8 * size / rate
    assert len(chosen) == min(most, len(worth))
    if chosen:
        assert worth[chosen[0].advert.device] == max(worth.values())
    left_out = set(worth) - {offer.advert.device for offer in chosen}
    for offer in chosen:
        assert all(worth[offer.advert.device] >= worth[other] for other in left_out)


def test_who_announces_more_than_fits_is_not_asked() -> None:
    """The longest prompt of this model is packed with room to spare; a byte more is too long."""
    longest, _ = _advert(drawn_member(_FIT, _FIT.max_tokens))
    assert longest.num_bytes < _FIT.max_bytes < 10 * longest.num_bytes + 2**16
    for size, asked in ((_FIT.max_bytes, 1), (_FIT.max_bytes + 1, 0)):
        advert = dataclasses.replace(longest, num_bytes=size)
        offers = [Offer(advert, Link(1e9, 100.0), 0.9)]
        assert len(choose(offers, _FIT, price_per_s=0.0)) == asked


def test_poor_scores_mean_no_transfer() -> None:
    advert, _ = _advert(drawn_member(_FIT, 3))
    offers = [Offer(advert, Link(1e6, 10.0), 0.2)]
    assert choose(offers, _FIT, price_per_s=0.0, least_score=0.3) == []
    assert choose(offers, _FIT, price_per_s=0.0, least_score=0.2) == offers


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
def test_what_was_advertised_arrives(codec: str) -> None:
    """Exactly the blob's bytes; with float32 the member is the origin's bit for bit."""
    member = drawn_member(_FIT, 3, validation_loss=0.5)
    advert, blob = _advert(member, codec)
    again = read_advert(advert.to_blob())
    same, other = ({**vars(a), "descriptor": None} for a in (again, advert))
    assert same == other
    assert np.array_equal(again.descriptor, advert.descriptor)
    assert score(again.descriptor, advert) == pytest.approx(1.0)
    got = receive(blob, advert, _FIT)
    assert advert.num_bytes == len(blob)
    assert (got.content_hash == member.content_hash) == (codec == "float32")
    np.testing.assert_allclose(got.prompt, member.prompt, atol=0.02)


def test_an_embedding_can_be_advertised_too() -> None:
    member = drawn_member(_FIT, 3)
    advert = advert_of(member.card, pack(member), member.prompt.mean(0))
    again = read_advert(advert.to_blob())
    assert np.array_equal(again.descriptor, advert.descriptor)
    assert again.descriptor.dtype == np.float32
    with pytest.raises(PromptError, match="wrong-shape"):
        score(np.ones(5, np.bool_), advert)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_part_or_a_changed_prompt_is_thrown_away(data: st.DataObject) -> None:
    advert, blob = _advert(drawn_member(_FIT, 3))
    cut = data.draw(st.integers(0, len(blob) - 1))
    with pytest.raises(WireError):
        receive(blob[:cut], advert, _FIT)
    changed = bytearray(blob)
    changed[cut] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PromptError, match="wrong-hash"):
        receive(bytes(changed), advert, _FIT)


def test_a_strange_advert_or_prompt_is_refused() -> None:
    advert, blob = _advert(drawn_member(_FIT, 3))
    with pytest.raises(PromptError, match="too-large"):
        receive(blob + b"x", advert, _FIT)
    with pytest.raises(PromptError, match="wrong-model"):
        receive(blob, advert, dataclasses.replace(_FIT, model_hash="n" * 64))
    other = pack(drawn_member(_FIT, 3, seed=5))
    with pytest.raises(PromptError, match="wrong-hash"):
        receive(other[: advert.num_bytes], advert, _FIT)
    with pytest.raises(PromptError, match="bad-advert"):
        read_advert(blob)
    with pytest.raises(PromptError, match="bad-advert"):
        read_advert(dataclasses.replace(advert, num_bytes=0).to_blob())


@given(
    st.lists(st.floats(0, 5) | st.just(math.nan), min_size=1, max_size=4),
    st.lists(st.floats(0, 5) | st.just(math.nan), min_size=3, max_size=3),
    st.floats(0, 0.5),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_no_transfer_makes_it_worse(
    probes: list[float], finals: list[float], margin: float, tunes: bool
) -> None:
    """The stated rule by hand, whatever the losses; NaN never wins."""
    own_loss = 0.0 if math.isnan(finals[0]) else finals[0]
    members = [drawn_member(_FIT, 2, seed) for seed in range(len(probes) + 2)]
    own, received, tuned = members[0], members[1:-1], members[-1]
    finals[0] = own_loss
    candidates: list[Member] = []

    def probe(asked: Sequence[Member]) -> list[float]:
        assert list(asked) == [own, *received]
        return [2.5, *probes]

    def tune(candidate: Member) -> Member:
        candidates.append(candidate)
        return tuned

    found = adopt(
        own,
        received,
        probe=probe,
        validate=lambda asked: finals[: len(asked)],
        tune=tune if tunes else None,
        margin=margin,
    )
    usable = [loss for loss in probes if not math.isnan(loss)]
    if not usable or not min(usable) < 2.5 - margin:
        assert (found.action, found.member) == ("kept", own)
        assert candidates == []
        return
    best = received[probes.index(min(usable))]
    options = {"rolled-back": own_loss, "zero-shot": finals[1]}
    if tunes:
        assert candidates == [best]
        options["tuned"] = finals[2]
    real = {name: math.inf if math.isnan(x) else x for name, x in options.items()}
    assert real[found.action] == min(real.values()) <= own_loss
    assert found.member is {"rolled-back": own, "zero-shot": best, "tuned": tuned}[found.action]


def test_mixing_by_hand() -> None:
    one, other = (drawn_member(_FIT, m, m) for m in (2, 4))
    card = card_for(_FIT)
    mixed = mix([one, other], [1.0, 0.0], card, temperature=0.5, num_tokens=4)
    share = 1 / (1 + math.exp(-2.0))
    longer = np.concatenate([one.prompt, one.prompt])
    wanted = share * longer + (1 - share) * other.prompt
    np.testing.assert_allclose(mixed.prompt, wanted, rtol=1e-5)
    sharp = mix([one, other], [1.0, 0.0], card, temperature=1e-3)
    assert np.array_equal(sharp.prompt, one.prompt)
    for tau in (1e-310, 5e-324):  # scores over it are beyond float64
        assert np.array_equal(
            mix([one, other], [0.1, 0.9], card, temperature=tau).prompt,
            mix([other], [0.9], card, num_tokens=2).prompt,
        )
    for members, scores, temperature in (([], [], 1.0), ([one], [1.0], 0.0)):
        with pytest.raises(PromptError):
            mix(members, scores, card, temperature=temperature)
