"""Likelihoods one example and one token at a time, in Python floats, without padding."""

import math
from collections.abc import Sequence
from typing import Any

import torch


def log_probability(logits: Sequence[float], index: int) -> float:
    """Returns log softmax(logits)[index]."""
    top = max(logits)
    return logits[index] - top - math.log(sum(math.exp(logit - top) for logit in logits))


def decoder_nll(model: Any, prompt: list[int], completion: list[int]) -> tuple[float, int]:
    """Returns (nats, tokens) of a completion after a prompt; nothing predicts the first token."""
    ids = prompt + completion
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().tolist()
    positions = range(max(len(prompt), 1), len(ids))
    return -sum(log_probability(logits[t - 1], ids[t]) for t in positions), len(positions)


def encoder_decoder_nll(model: Any, prompt: list[int], completion: list[int]) -> tuple[float, int]:
    """Returns (nats, tokens) of a completion the decoder writes from its start token."""
    start = model.config.decoder_start_token_id
    with torch.inference_mode():
        logits = (
            model(
                input_ids=torch.tensor([prompt]),
                decoder_input_ids=torch.tensor([[start, *completion[:-1]]]),
                use_cache=False,
            )
            .logits[0]
            .double()
            .tolist()
        )
    nats = -sum(log_probability(row, token) for row, token in zip(logits, completion, strict=True))
    return nats, len(completion)
