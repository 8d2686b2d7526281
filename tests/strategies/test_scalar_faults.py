"""Devices that fail in a federation by scalars are booked, and the others go on without them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from clients.cache import BlobCache
from fl_app.errors import ConfigError
from fl_app.features_wire import UPDATE
from fl_app.job import adapter_sha256
from fl_app.payload import Payload
from fl_app.scalar_wire import SEEDS, SIDES, SLOPE
from tests.federation_fixtures import NUM_DEVICES, Player, player, tiny_federation
from tests.scalar_fixtures import LABELS, Spoil, Tuned, arrays, scalars, tune

__all__ = ["player", "tiny_federation"]

_BAD = 1
_REST = [device for device in range(NUM_DEVICES) if device != _BAD]
_SERVER = "strategy.labels=server"


def _raises(_payload: Any) -> None:
    return None


def _later(payload: Payload) -> Payload:
    return replace(payload, step=payload.step + 1)


def _seeds(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Spoil:
    return arrays(lambda found: {**found, "seeds": change(found["seeds"])})


def _nan_features(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "1|hidden0.values": np.full_like(found["1|hidden0.values"], np.nan)}


def _huge_features(found: dict[str, Any]) -> dict[str, Any]:
    """Finite, but no block survives it."""
    return {**found, "1|hidden0.values": np.full_like(found["1|hidden0.values"], 3e38)}


def _without_features(found: dict[str, Any]) -> dict[str, Any]:
    return {name: array for name, array in found.items() if not name.startswith("1|")}


FAULTS: dict[str, tuple[str, str, Spoil, str]] = {
    "raises at its seeds": (_SERVER, SEEDS, _raises, "error"),
    "place beyond the pool": (_SERVER, SEEDS, _seeds(lambda s: s + 1024), "out-of-pool"),
    "negative place": (_SERVER, SEEDS, _seeds(lambda s: -1 - s), "out-of-pool"),
    "too few seeds": (_SERVER, SEEDS, _seeds(lambda s: s[:2]), "wrong-shape"),
    "no seed": (_SERVER, SEEDS, _seeds(lambda s: s[:0]), "wrong-shape"),
    "seeds of another type": (_SERVER, SEEDS, _seeds(lambda s: s.astype(np.int64)), "wrong-dtype"),
    "no seeds": (_SERVER, SEEDS, arrays(lambda _found: {}), "missing"),
    "another adapter": (_SERVER, SEEDS, scalars(adapter="0" * 64), "wrong-adapter"),
    "another step": ("strategy.labels=private", SLOPE, _later, "wrong-step"),
    "ends at another step": (_SERVER, UPDATE, _later, "wrong-step"),
    "more steps than asked": (_SERVER, SEEDS, _seeds(lambda s: np.tile(s, 2)), "wrong-step"),
    "raises at the end": (_SERVER, UPDATE, _raises, "error"),
    "no examples": (_SERVER, UPDATE, scalars(**{"num-examples": 0}), "bad-weight"),
    "NaN loss": (_SERVER, UPDATE, scalars(loss=float("nan")), "not-finite"),
    "another model": (_SERVER, UPDATE, scalars(**{"model-hash": "0" * 64}), "wrong-model"),
    "raises at a slope": ("strategy.labels=private", SLOPE, _raises, "error"),
    "NaN slope": ("strategy.labels=private", SLOPE, scalars(slope=float("nan")), "not-finite"),
    "infinite slope": ("strategy.labels=private", SLOPE, scalars(slope=-1e39), "not-finite"),
    "a slope that is no number": ("strategy.labels=private", SLOPE, scalars(slope="1"), "missing"),
}


def _mean_of_rest(tuned: Tuned, without: Tuned) -> None:
    """What round 2 makes of the others does not depend on how the bad device failed."""
    assert adapter_sha256(tuned.outcome.adapter) == adapter_sha256(without.outcome.adapter)


@pytest.mark.parametrize("name", FAULTS)
def test_a_device_that_fails_is_left_out(player: Player, name: str) -> None:
    labels, kind, spoil, reason = FAULTS[name]
    tuned = tune(player, labels, spoil={(2, _BAD, kind): spoil})
    assert tuned.devices(1) == list(range(NUM_DEVICES))
    assert tuned.dropped(1) == {}
    assert tuned.dropped(2) == {reason: [_BAD]}
    assert tuned.devices(2) == _REST
    first_kind = SLOPE if labels.endswith("private") else SEEDS
    silent = tune(player, labels, spoil={(2, _BAD, first_kind): _raises})
    whole = tune(player, labels)
    _mean_of_rest(tuned, silent)
    assert adapter_sha256(tuned.outcome.adapter) != adapter_sha256(whole.outcome.adapter)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_nan_features, "not-finite"),
        (_huge_features, "not-finite"),
        (_without_features, "missing"),
    ],
)
def test_features_that_are_unfit_are_sent_again(
    player: Player, labels: str, change: Any, reason: str
) -> None:
    spoil = {(1, _BAD, "features"): arrays(change)}
    tuned = tune(player, f"strategy.labels={labels}", "strategy.num_rounds=3", spoil=spoil)
    assert tuned.dropped(1) == {reason: [_BAD]}
    assert tuned.devices(2) == tuned.devices(3) == list(range(NUM_DEVICES))
    assert [tuned.of(r, _BAD)[0].up.kind for r in (1, 2, 3)] == ["features", "features", "seeds"]
    assert [tuned.of(r, 0)[0].up.kind for r in (1, 2, 3)] == ["features", "seeds", "seeds"]


def test_features_asked_for_and_not_sent(player: Player) -> None:
    def keeps_them(payload: Any) -> Any:
        return type(payload)(SEEDS, 0, payload.scalars, {"seeds": payload.arrays["seeds"]})

    tuned = tune(player, _SERVER, spoil={(1, _BAD, "features"): keeps_them})
    assert tuned.dropped(1) == {"missing": [_BAD]}
    assert tuned.devices(2) == list(range(NUM_DEVICES))


def test_other_rows_than_before_are_asked_for(player: Player) -> None:
    """A device whose number of batches changed sends its features in the round after."""
    spoil = {(2, _BAD, SEEDS): _seeds(lambda s: s[:2])}
    tuned = tune(player, _SERVER, "strategy.num_rounds=3", spoil=spoil)
    assert tuned.of(3, _BAD)[0].up.kind == "features"
    assert tuned.devices(3) == list(range(NUM_DEVICES))


def test_nobody_left_keeps_the_adapter(player: Player) -> None:
    """And the round after goes on from there."""
    gone = {(2, device, SEEDS): _raises for device in range(NUM_DEVICES)}
    tuned = tune(player, _SERVER, "strategy.num_rounds=3", spoil=gone)
    assert tuned.dropped(2) == {"error": list(range(NUM_DEVICES))}
    assert tuned.devices(2) == []
    opened = [tuned.of(r, 0)[0].down.arrays["coefficients"] for r in (2, 3)]
    assert np.array_equal(*opened)
    assert tuned.devices(3) == list(range(NUM_DEVICES))


def test_who_does_not_fit_the_cache_is_booked(player: Player) -> None:
    """Room for one device's features: the first keeps it, and those after find none."""
    whole = tune(player, _SERVER, "strategy.num_rounds=1")
    features = [whole.of(1, d)[0].up.arrays for d in range(NUM_DEVICES)]
    sizes = [sum(a.nbytes for n, a in one.items() if "|" in n) for one in features]
    megabytes = 1.5 * max(sizes) / 1e6
    assert 2 * min(sizes) > 1.5 * max(sizes)
    tuned = tune(player, _SERVER, f"strategy.scalar.max_cached_mb={megabytes}")
    assert tuned.dropped(1) == {"cache-full": [1, 2, 3]}
    assert tuned.devices(1) == tuned.devices(2) == [0]


def test_room_is_made_by_devices_that_are_not_in_the_round(player: Player) -> None:
    """One device a round: each finds room, and one that comes back sends its features again."""
    words = (_SERVER, "federation.devices_per_round=1", "strategy.num_rounds=8")
    tuned = tune(player, *words, "strategy.scalar.max_cached_mb=0.02")
    order = [tuned.devices(r)[0] for r in range(1, 9)]
    kinds = [tuned.of(r, d)[0].up.kind for r, d in enumerate(order, start=1)]
    held: list[int] = []
    for device, kind in zip(order, kinds, strict=True):
        assert kind == (SEEDS if device in held else "features")
        held = [device]
    assert len(set(order)) > 1
    assert SEEDS in kinds
    assert len(order) - len(set(order)) > kinds.count(SEEDS)  # some came back and sent again


@pytest.mark.parametrize("look", [2, 3])
def test_a_lost_part_is_sent_again(
    player: Player, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """A device finds its part gone in round 2; its features stay at the server.

    The first look of a process reads the part whole, those after only see whether it is there: the
    first of these ends round 1, the second opens round 2, the third ends it.
    """
    get, touch = BlobCache.get, BlobCache.touch
    looks = {"of the bad device": 0}

    def is_gone(device: int) -> bool:
        return device == _BAD and looks["of the bad device"] == look

    def touch_it(cache: BlobCache, device: int, name: str) -> bool:
        looks["of the bad device"] += device == _BAD
        return not is_gone(device) and touch(cache, device, name)

    def get_it(cache: BlobCache, device: int, name: str) -> bytes | None:
        return None if is_gone(device) else get(cache, device, name)

    monkeypatch.setattr(BlobCache, "touch", touch_it)
    monkeypatch.setattr(BlobCache, "get", get_it)
    tuned = tune(player, _SERVER, "strategy.num_rounds=3")
    assert tuned.dropped(2) == {"no-emulator": [_BAD]}
    assert tuned.devices(3) == list(range(NUM_DEVICES))
    assert tuned.of(3, _BAD)[0].up.kind == SEEDS
    assert tuned.outcome.ledger.total_bytes(round=3, device=_BAD, what="emulator") > 0


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("strategy.server_rule.name=fedadam",), "fedadam is no sum, choose fedavg"),
        (("channel=digital",), "choose channel=ideal"),
        (("channel=aircomp",), "choose channel=ideal"),
        (("peft.aggregation=alternate",), "choose freeze-a or factors"),
        (("peft.aggregation=exact",), "choose freeze-a or factors"),
        (("strategy.shared_gradient=true",), "choose variant prompt or lora"),
        (("strategy.scalar.num_seeds=0",), "num_seeds=0"),
        (("strategy.scalar.max_cached_mb=0",), "max_cached_mb=0"),
    ],
)
def test_what_is_no_sum_over_directions_is_refused(
    player: Player, words: tuple[str, ...], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        tune(player, *words)


def test_private_steps_are_asked_of_all_devices_at_once(player: Player) -> None:
    """Passes are bounded, exchanges are not multiplied."""
    tuned = tune(player, "strategy.labels=private", "strategy.max_in_flight=1")
    kinds = [c.down.kind for c in tuned.grid.crossings if c.round == 2]
    assert kinds == ["open"] * 4 + [SIDES] * 12 + ["close"] * 4
    devices = [c.device for c in tuned.grid.crossings if c.down.kind == SIDES and c.round == 2]
    assert devices == [*range(NUM_DEVICES)] * 3
