"""What the server keeps of features stays within its bound."""

import numpy as np
import pytest
import torch

from fl_app.errors import WireError
from fl_app.fomo.features import Features
from strategies.feature_cache import FeatureCache
from strategies.feature_reader import Arrived

_BATCH_BYTES = 2 * 4 * 8 * 4 + 2 * (2 * 4) + 2 * 8 + 3 * 8
"""float32 [2, 4, 8], two bool [2, 4], int64 [2] and [3]."""


def _batches(count: int) -> list[Arrived]:
    mask = torch.ones(2, 4, dtype=torch.bool)
    features = Features((torch.zeros(2, 4, 8),), (mask,), None, mask)
    return [
        Arrived(features, {}, torch.zeros(2, dtype=torch.long), np.ones(3, np.int64), 0.0)
    ] * count


def _cache(num_batches: float) -> FeatureCache:
    return FeatureCache(num_batches * _BATCH_BYTES / 1e6)


def test_everything_is_counted() -> None:
    cache = _cache(10)
    cache.keep(0, _batches(2), busy=[])
    cache.keep(1, _batches(1), busy=[])
    assert cache.num_bytes == 3 * _BATCH_BYTES


def test_who_was_used_longest_ago_makes_room() -> None:
    cache = _cache(3)
    for device in range(3):
        cache.keep(device, _batches(1), busy=[])
    cache.use(0)
    cache.keep(3, _batches(1), busy=[3])
    assert [device for device in range(4) if cache.holds(device)] == [0, 2, 3]


def test_who_is_in_the_round_makes_none() -> None:
    cache = _cache(2)
    for device in (0, 1):
        cache.keep(device, _batches(1), busy=[0, 1])
    with pytest.raises(WireError, match=r"strategy\.scalar\.max_cached_mb") as caught:
        cache.keep(2, _batches(1), busy=[0, 1, 2])
    assert caught.value.reason == "cache-full"
    assert [device for device in range(3) if cache.holds(device)] == [0, 1]


def test_what_a_device_sends_again_takes_the_place_of_the_old() -> None:
    cache = _cache(2)
    cache.keep(0, _batches(2), busy=[0])
    cache.keep(0, _batches(1), busy=[0])
    assert len(cache.use(0)) == 1
    assert cache.num_bytes == _BATCH_BYTES


def test_what_is_forgotten_is_gone() -> None:
    cache = _cache(2)
    cache.keep(0, _batches(2), busy=[])
    cache.forget(0)
    cache.forget(5)
    assert (cache.holds(0), cache.num_bytes) == (False, 0)
