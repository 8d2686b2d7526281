"""What a device says of its prompt, whom it asks, and what it takes in."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import WireError
from fl_app.fomo.soft_prompt import PROMPT_NAME, token_table
from fl_app.prompts.advert import advert_of, read_advert
from fl_app.prompts.descriptors import cosine, mean_embedding
from fl_app.prompts.fit import Fit
from fl_app.prompts.lengths import fit_length
from fl_app.prompts.member import Card, Member
from fl_app.prompts.mixing import mix
from fl_app.prompts.packing import pack
from fl_app.prompts.transfer import Link, Offer, choose, receive, score
from fl_app.schema import TransferPrompt
from fl_app.transfer_wire import MIXED, Heard

_MAX_TOKENS = 1000
_NORM_RATIO = 100.0
"""Longest row of a prompt over the longest token embedding."""


def fit_to(model: object, model_hash: str) -> Fit:
    """Returns what prompts fit a device's part of the model.

    The part's content hash stands for tokenizer and model: both are in it.
    """
    table = token_table(model).weight.detach()
    norm = float(table.double().norm(dim=1).max())
    return Fit(model_hash, model_hash, int(table.shape[1]), _MAX_TOKENS, _NORM_RATIO * norm)


def packed(
    prompt: NDArray[np.float32],
    *,
    made: int,
    device: int,
    model_hash: str,
    task: str,
    settings: TransferPrompt,
) -> tuple[bytes, bytes]:
    """Returns (advert, prompt) of a device's own prompt, both as they are sent.

    Args:
        prompt: [m, width].
        made: round in which it was made.
        device: partition index.
        model_hash: of the device's part of the model.
        task: name of the task.
        settings: descriptor and coding.

    Raises:
        WireError: ``not-finite``, or ``overflow`` in half precision.
    """
    card = Card(model_hash, model_hash, device, task, made)
    blob = pack(Member(prompt, card), settings.codec)
    return advert_of(card, blob, described(prompt, settings)).to_blob(), blob


def described(prompt: NDArray[np.float32], settings: TransferPrompt) -> NDArray[np.float32]:
    """Returns a prompt's descriptor, one axis."""
    return prompt.ravel() if settings.descriptor == "flat" else mean_embedding(prompt)


def wanted(
    heard: Sequence[Heard],
    mine: NDArray[np.float32] | None,
    fit: Fit,
    settings: TransferPrompt,
    *,
    now_round: int,
) -> dict[int, str]:
    """Returns whom to ask for which blob, by source; see ``fl_app.prompts.transfer.choose``.

    Args:
        heard: adverts with their links. One that cannot be read, or be compared, is left out.
        mine: the device's own prompt; without one all scores are 0 and the price of the link
            decides.
        fit: what prompts fit.
        settings: number, price and age.
        now_round: present round.
    """
    offers: dict[int, Offer] = {}
    for one in heard:
        try:
            advert = read_advert(one.advert)
            likeness = 0.0 if mine is None else score(described(mine, settings), advert)
        except WireError:
            continue
        offers[one.source] = Offer(advert, Link(one.rate_bps, one.contact_s), likeness)
    chosen = choose(
        list(offers.values()),
        fit,
        price_per_s=settings.price_per_s,
        most=settings.most,
        now_round=now_round,
        max_age=settings.max_age,
    )
    return {
        source: offer.advert.blob_hash
        for source, offer in offers.items()
        if any(offer is one for one in chosen)
    }


def taken_in(
    blobs: Mapping[int, bytes], adverts: Mapping[int, bytes], fit: Fit, num_tokens: int
) -> tuple[dict[int, NDArray[np.float32]], list[str]]:
    """Checks what arrived against its adverts.

    Args:
        blobs: packed prompts by source.
        adverts: by source, those that were asked for.
        fit: what prompts fit.
        num_tokens: m of this federation; other lengths are cut or repeated.

    Returns:
        (prompts [m, width] by source, reasons for which others are refused).
    """
    found: dict[int, NDArray[np.float32]] = {}
    refused = ["lost"] * len(set(adverts) - set(blobs))
    for source in sorted(set(blobs) & set(adverts)):
        try:
            member = receive(blobs[source], read_advert(adverts[source]), fit)
        except WireError as error:
            refused.append(error.reason)
        else:
            found[source] = fit_length(member.prompt, num_tokens)
    return found, refused


def mixture(
    prompts: Mapping[int, NDArray[np.float32]],
    mine: NDArray[np.float32],
    settings: TransferPrompt,
) -> dict[int, NDArray[np.float32]]:
    """Returns the mixture of what was taken in, as of source ``MIXED``; {} where there is none.

    Args:
        prompts: [m, width] by source, as of ``taken_in``.
        mine: [m, width], what stands for the device's own prompt: the mean prompt of the federation
            where it has none. Likeness to it is measured on the prompts, not believed of adverts.
        settings: temperature and descriptor.
    """
    if settings.mix_temperature is None or len(prompts) < 2:
        return {}
    nobody = Card("", "", 0, "mixture", 0)  # only the prompt is of use, and it goes nowhere as such
    own = described(mine, settings)
    mixed = mix(
        [Member(prompt, nobody) for prompt in prompts.values()],
        [cosine(own, described(prompt, settings)) for prompt in prompts.values()],
        nobody,
        temperature=settings.mix_temperature,
    )
    return {MIXED: mixed.prompt}


def own_only(adapter: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Returns an adapter's prompt, which is the device's own; its head is everybody's."""
    return {PROMPT_NAME: adapter[PROMPT_NAME].copy()}
