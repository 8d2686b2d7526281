"""From device to device: advertise, score, choose, receive, gate, use or roll back.

A device i that wants a prompt ranks what its neighbours advertise by score minus the price of the
time on air, asks for the first few, and takes one only if its loss on i's own probe rows is lower
than that of i's own prompt. What stays in use at the end is what does best on rows that neither the
gate nor tuning has seen, so a transfer never makes it worse there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fl_app.fomo.blob import content_hash
from fl_app.prompts.advert import Advert, Descriptor
from fl_app.prompts.descriptors import cosine
from fl_app.prompts.errors import PromptError
from fl_app.prompts.fit import Fit
from fl_app.prompts.member import Member
from fl_app.prompts.packing import unpack


@dataclass(frozen=True)
class Link:
    """A link to the device that advertises.

    Attributes:
        rate_bps: bit/s towards the requester, >= 0.
        contact_s: seconds for which the contact lasts.
    """

    rate_bps: float
    contact_s: float

    def transfer_s(self, num_bytes: int) -> float:
        """Returns the seconds on air, infinite without a rate."""
        return 8.0 * num_bytes / self.rate_bps if self.rate_bps > 0 else float("inf")


@dataclass(frozen=True)
class Offer:
    """An advert with the link it came over and its score."""

    advert: Advert
    link: Link
    score: float

    @property
    def transfer_s(self) -> float:
        """Seconds the transfer would take."""
        return self.link.transfer_s(self.advert.num_bytes)


def score(mine: Descriptor, advert: Advert) -> float:
    """Returns the cosine of two descriptors; for bits that is the overlap, in [0, 1].

    Raises:
        PromptError: ``wrong-shape``, the descriptors are of different kinds.
    """
    return cosine(mine, advert.descriptor)


def choose(
    offers: Sequence[Offer],
    fit: Fit,
    *,
    price_per_s: float,
    most: int = 1,
    now_round: int = 0,
    max_age: int = 10,
    least_score: float = -1.0,
) -> list[Offer]:
    """Returns the offers to ask for, the best first.

    Args:
        offers: what was heard.
        fit: what the requester's model takes; other models and tokenizers, and prompts too long
            for it, are left out.
        price_per_s: lambda >= 0, score units that a second on air costs.
        most: at most this many.
        now_round: present round.
        max_age: older ones are left out.
        least_score: worse ones are left out.

    Returns:
        Those whose transfer fits into the contact, by score - lambda seconds; ties by blob hash.
    """
    right = [
        offer
        for offer in offers
        if offer.advert.model_hash == fit.model_hash
        and offer.advert.tokenizer_hash == fit.tokenizer_hash
        and now_round - offer.advert.round <= max_age
        and offer.advert.num_bytes <= fit.max_bytes
        and offer.transfer_s <= offer.link.contact_s
        and offer.score >= least_score
    ]
    right.sort(key=lambda o: (price_per_s * o.transfer_s - o.score, o.advert.blob_hash))
    return right[:most]


def receive(blob: bytes, advert: Advert, fit: Fit) -> Member:
    """Takes a transferred prompt apart; a part of it, or another one, is thrown away whole.

    Raises:
        WireError: ``too-large``, ``wrong-hash``, and what ``packing.unpack`` and
            ``Fit.require`` raise.
    """
    if len(blob) > advert.num_bytes:
        raise PromptError("too-large", f"{len(blob)} bytes, advertised were {advert.num_bytes}")
    if content_hash(blob) != advert.blob_hash:
        raise PromptError("wrong-hash", "the prompt is not the advertised one, or a part of it")
    member = unpack(blob, max_bytes=advert.num_bytes)
    fit.require(member)
    return member


Losses = Callable[[Sequence[Member]], Sequence[float]]
"""Mean losses in nats of members on rows of the requester's own; NaN counts as infinite."""


@dataclass(frozen=True, eq=False)
class Adoption:
    """How a transfer ended.

    Attributes:
        member: what is in use now.
        action: ``kept`` (the gate let nobody in), ``zero-shot`` (a received one as it is),
            ``tuned`` (from a received one), or ``rolled-back`` (tuning from it was no better).
        probe_losses: of the own prompt, then of the received ones.
    """

    member: Member
    action: str
    probe_losses: tuple[float, ...]


def adopt(
    own: Member,
    received: Sequence[Member],
    *,
    probe: Losses,
    validate: Losses,
    tune: Callable[[Member], Member] | None = None,
    margin: float = 0.0,
    ceiling: float = float("inf"),
) -> Adoption:
    """Gates received prompts, tunes from the best one if asked to, and keeps what is best.

    Args:
        own: the prompt in use; the model as it is (no token) where there is none.
        received: candidates that fit.
        probe: losses on probe rows, for the gate.
        validate: losses on rows that ``probe`` and ``tune`` do not see.
        tune: tunes a copy; None uses the candidate as it is.
        margin: nats >= 0 by which a candidate must be better on the probe rows.
        ceiling: nats; a candidate must be below, see ``let_in``.
    """
    losses = tuple(_finite_or_worst(loss) for loss in probe([own, *received]))
    best = let_in(losses, margin=margin, ceiling=ceiling)
    if best == 0:
        return Adoption(own, "kept", losses)
    candidate = received[best - 1]
    finals = [own, candidate] if tune is None else [own, candidate, tune(candidate)]
    final = settle(validate(finals))
    return Adoption(finals[final], ENDS[final], losses)


ENDS = ("rolled-back", "zero-shot", "tuned")
"""How a transfer ends, by what ``settle`` chose."""


def settle(losses: Sequence[float]) -> int:
    """Returns what stays in use: the place of the lowest loss on validation rows, NaN is infinite.

    Args:
        losses: of what was in use before, of the candidate, and, where there was tuning, of what
            that made of the candidate.
    """
    return int(np.argmin([_finite_or_worst(loss) for loss in losses]))


def let_in(losses: Sequence[float], *, margin: float, ceiling: float = float("inf")) -> int:
    """Returns who passes the gate: the place of the best candidate, or 0 for nobody.

    Args:
        losses: on the probe rows, of the own prompt, then of the candidates; NaN is infinite.
        margin: nats >= 0 by which a candidate must be better than the own prompt.
        ceiling: nats; who is not below knows nothing. For classes that is the loss of guessing by
            the labels' shares (``gate.guessing_loss``), so that no random prompt is let in only
            because the own one is worse still.
    """
    finite = [_finite_or_worst(loss) for loss in losses]
    best = int(np.argmin(finite))
    return best if finite[best] < min(finite[0] - margin, ceiling) else 0


def _finite_or_worst(loss: float) -> float:
    return float("inf") if np.isnan(loss) else float(loss)
