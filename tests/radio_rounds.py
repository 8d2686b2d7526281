"""Rounds of small random updates, sent over the uplink that override words choose."""

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from fl_app.config import load_config
from fl_app.schema import Config
from fl_app.seeding import generator
from strategies.build_uplink import build_uplink
from strategies.uplink import Received, Sent

SIZES = [6, 1, 40, 9]


def round_of(num_devices: int = 5, *, round: int = 3, sizes: Sequence[int] = SIZES) -> Sent:
    rng = np.random.default_rng(0)
    rows = (1e-3 * rng.standard_normal((num_devices, sum(sizes)))).astype(np.float32)
    weights = rng.integers(1, 9, num_devices).astype(np.float64)
    devices = sorted(rng.choice(50, num_devices, replace=False).tolist())
    return Sent(updates=rows, weights=weights, round=round, devices=devices, sizes=sizes)


def config_of(*words: str) -> Config:
    return load_config(shlex.join(words))


def receive(sent: Sent, *words: str, draw: int = 0) -> Received:
    config = config_of(*words)
    uplink = build_uplink(config.channel, config.seed)
    assert uplink.is_radio
    return uplink.receive(sent, generator(1, "noise", draw))


def mean_of(sent: Sent) -> np.ndarray[Any, Any]:
    return sent.weights @ sent.updates.astype(np.float64) / sent.weights.sum()
