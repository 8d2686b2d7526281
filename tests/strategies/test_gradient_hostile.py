"""What a device may send to hurt the others: it is dropped by reason, and they notice nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fl_app.errors import WireError
from fl_app.features_wire import FeatureWire
from fl_app.payload import Payload
from tests.fakes import Fault
from tests.federation_fixtures import NUM_DEVICES, Player, player, tiny_federation
from tests.gradient_fixtures import arrays, equal_bits, lying, on, play, relative, words_of

__all__ = ["player", "tiny_federation"]

BAD = 1
OTHERS = [device for device in range(NUM_DEVICES) if device != BAD]
Change = Callable[[Payload], Payload]
Array = NDArray[Any]


def _nan(array: Array) -> Array:
    spoiled = array.copy()
    spoiled.flat[-1] = np.nan
    return spoiled


def _huge(array: Array) -> Array:
    """Finite, but no block survives it."""
    return np.full_like(array, 3e38)


def _double(array: Array) -> Array:
    return array.astype(np.float64).astype(np.float16)


def _wider(array: Array) -> Array:
    return np.concatenate([array, array], -1)


def _longer(payload: Payload) -> Payload:
    """As if the texts had more words than the model has positions; everything fits but that."""
    found = dict(payload.arrays)
    rows, _, width = found["hidden0.values"].shape
    num_prompt = len(found.get("prompt.values", ()))
    found["hidden0.values"] = np.zeros((rows, 40, width), np.float32)
    found["mask0"] = np.ones((rows, 40), np.bool_)
    found["readout"] = np.zeros((rows, num_prompt + 40), np.bool_)
    found["readout"][:, 0] = True
    return Payload(payload.kind, payload.step, payload.scalars, found)


def _sized(num_rows: int, length: int) -> Change:
    """Features of ones; all positions of every row are real, and each row reads one."""

    def change(payload: Payload) -> Payload:
        found = dict(payload.arrays)
        width = found["hidden0.values"].shape[-1]
        num_prompt = len(found.get("prompt.values", ()))
        found["hidden0.values"] = np.ones((num_rows, length, width), np.float32)
        found["mask0"] = np.ones((num_rows, length), np.bool_)
        found["readout"] = np.zeros((num_rows, num_prompt + length), np.bool_)
        found["readout"][:, 0] = True
        return Payload(payload.kind, payload.step, payload.scalars, found)

    return change


def _nobody(payload: Payload) -> Payload:
    """No row at all."""
    found = {
        name: array[:0] if name in ("hidden0.values", "mask0", "readout") else array
        for name, array in payload.arrays.items()
    }
    return Payload(payload.kind, payload.step, payload.scalars, found)


def _without_prompt(payload: Payload) -> Payload:
    found = {n: a for n, a in payload.arrays.items() if n != "prompt.values"}
    found["readout"] = found["readout"][:, 3:]
    return Payload(payload.kind, payload.step, payload.scalars, found)


def _scalar(**changed: Any) -> Change:
    return lambda p: Payload(p.kind, p.step, {**p.scalars, **changed}, p.arrays)


def _each(prefix: str, make: Callable[[Array], Array]) -> Change:
    """Changes every array under a prefix."""
    return lambda p: Payload(
        p.kind,
        p.step,
        p.scalars,
        {n: make(a) if n.startswith(prefix) else a for n, a in p.arrays.items()},
    )


def _more(name: str) -> Change:
    """Adds a parameter nobody tunes."""
    return arrays(**{name: lambda _none: np.ones(3, np.float32)})


def _peak(name: str, array: Array | None) -> Change:
    """Adds, replaces or takes away what a relative tensor is multiplied by."""
    key = f"{name}__peak"
    return arrays(**{key: None if array is None else lambda _old: array})


ONE = np.ones(1, np.float32)
PRIVATE: dict[str, tuple[str, str, Change, str]] = {
    "nan features": ("prompt", "begin", arrays(hidden0__values=_nan), "not-finite"),
    "nan prompt": ("prompt", "begin", arrays(prompt__values=_nan), "not-finite"),
    "huge features": ("lora", "begin", arrays(hidden0__values=_huge), "not-finite"),
    "half features": ("cut", "begin", arrays(hidden0__values=_double), "wrong-dtype"),
    "wide features": ("cut", "begin", arrays(hidden0__values=_wider), "wrong-shape"),
    "no features": ("cut", "begin", arrays(hidden0__values=None), "missing"),
    "no mask": ("cut", "begin", arrays(mask0=None), "missing"),
    "other readout": ("cut", "begin", arrays(readout=_wider), "wrong-shape"),
    "too long": ("prompt", "begin", _longer, "wrong-shape"),
    "too long, cut": ("cut", "begin", _longer, "wrong-shape"),
    "no rows": ("lora", "begin", _nobody, "wrong-shape"),
    "no prompt": ("prompt", "begin", _without_prompt, "wrong-shape"),
    "no error": ("cut", "begin", lambda p: Payload(p.kind, p.step, {}, p.arrays), "missing"),
    "error": ("cut", "begin", _scalar(feature_error=float("nan")), "missing"),
    "huge error": ("cut", "begin", _scalar(feature_error=1.7e308), "missing"),
    "wide factors": ("lora", "begin", _each("own|", _wider), "wrong-shape"),
    "nan factors": ("lora", "begin", _each("own|", _nan), "not-finite"),
    "more factors": ("lora", "begin", _more("own|new"), "missing"),
    "nan slopes": ("prompt", "states", arrays(slopes__values=_nan), "not-finite"),
    "huge slopes": ("lora", "states", arrays(slopes__values=_huge), "not-finite"),
    "wide slopes": ("cut", "states", arrays(slopes__values=_wider), "wrong-shape"),
    "no slopes": ("cut", "states", arrays(slopes__values=None), "missing"),
    "flat slopes": ("cut", "states", arrays(slopes__values=lambda a: a[None]), "wrong-shape"),
    "flat features": ("cut", "begin", arrays(hidden0__values=lambda a: a[0]), "wrong-shape"),
    "flat mask": ("cut", "begin", arrays(mask0=lambda a: a[0]), "wrong-shape"),
    "flat readout": ("cut", "begin", arrays(readout=lambda _a: np.array(True)), "wrong-shape"),
    "flat prompt": ("prompt", "begin", arrays(prompt__values=lambda a: a[0, 0]), "wrong-shape"),
    "peak of slopes": ("cut", "states", _peak("slopes", np.repeat(ONE, 7)), "missing"),
    "peak of features": ("cut", "begin", _peak("hidden0", np.array([1])), "missing"),
    # 10 MB sent, and 240 GB asked for where it is multiplied
    "a bomb": ("cut", "begin", _peak("hidden0", np.ones((2_500_000, 1, 1, 1), "f4")), "missing"),
    "many rows": ("prompt", "begin", _sized(9, 2), "wrong-shape"),
    "a long text": ("cut", "begin", _sized(2, 13), "wrong-shape"),
    "all states": ("prompt", "begin", arrays(readout=np.ones_like), "wrong-shape"),
    "more slopes": ("cut", "states", _more("parameter|new"), "missing"),
}
SHARED: dict[str, tuple[str, str, Change, str]] = {
    "wide head": ("lora", "states", _each("parameter|", _wider), "wrong-shape"),
    "nan head": ("prompt", "states", _each("parameter|", _nan), "not-finite"),
    "more head": ("prompt", "states", _more("parameter|new"), "missing"),
}
AT_SERVER: dict[str, tuple[str, str, Change, str]] = {
    "no labels": ("lora", "begin", arrays(labels=None), "missing"),
    "short labels": ("lora", "begin", arrays(labels=lambda a: a[1:]), "wrong-shape"),
    "strange labels": ("prompt", "begin", arrays(labels=lambda a: a + 4), "bad-labels"),
    "negative labels": ("prompt", "begin", arrays(labels=lambda a: a - 1000), "bad-labels"),
    "float labels": ("cut", "begin", arrays(labels=lambda a: a.astype(np.float32)), "wrong-dtype"),
    "strange counts": ("cut", "begin", arrays(counts=lambda a: a + 2**40), "bad-labels"),
    "no counts": ("cut", "begin", arrays(counts=None), "missing"),
    "wide head": ("cut", "begin", _each("own|", _wider), "wrong-shape"),
}


PEAKS: dict[str, tuple[Array | None, str]] = {
    "none": (None, "missing"),
    "seven": (np.repeat(ONE, 7), "wrong-shape"),
    "no axis": (ONE[0], "wrong-shape"),
    "whole": (np.array([1]), "wrong-dtype"),
    "nan": (ONE * np.nan, "not-finite"),
    "infinite": (ONE * np.inf, "not-finite"),
    "negative": (-ONE, "not-finite"),
}


def _drops(player: Player, variant: str, kind: str, fault: Fault, *more: str) -> tuple[Any, Any]:
    """Plays with device BAD lying, and with device BAD dropped for saying nothing sensible."""
    words = words_of(
        variant,
        "strategy.num_rounds=1",
        "finetune.max_steps=2",
        "strategy.exchange_timeout_s=0.3",
        "data.public_fraction=0.2",  # so that counts are looked at
        "finetune.logit_adjustment=1",
        *more,
    )
    played = play(player, *words, spoil=on(kind, fault, devices=[BAD]))
    bland = lying(lambda p: Payload("nonsense", p.step, p.scalars, p.arrays))
    return played, play(player, *words, spoil=on(kind, bland, devices=[BAD]))


def _check(player: Player, case: tuple[str, str, Change, str], *more: str) -> None:
    variant, kind, change, reason = case
    played, wanted = _drops(player, variant, kind, lying(change), *more)
    assert played.dropped(1) == {reason: [BAD]}
    assert played.devices(1) == OTHERS
    assert wanted.dropped(1) == {"wrong-kind": [BAD]}
    if equal_bits(played.adapter, wanted.adapter):
        return
    # a device whose features are in the pass and fail only there shifts the others' float sums
    assert relative(played.adapter, wanted.adapter, wanted.start) < 2e-5


@pytest.mark.parametrize("case", PRIVATE)
def test_private_labels(player: Player, case: str) -> None:
    _check(player, PRIVATE[case])


@pytest.mark.parametrize("case", PEAKS)
def test_relative_tensors_have_one_positive_peak(case: str) -> None:
    array, reason = PEAKS[case]
    wire = FeatureWire("float16")
    sent = wire.code("x", torch.ones(2, 3), np.random.default_rng(0), relative=True)
    assert torch.equal(wire.decode(sent, "x", dims=2, relative=True), torch.ones(2, 3))
    spoilt = {name: a for name, a in sent.items() if name != "x.peak"}
    with pytest.raises(WireError) as caught:
        wire.decode(
            spoilt if array is None else sent | {"x.peak": array}, "x", dims=2, relative=True
        )
    assert caught.value.reason == reason
    with pytest.raises(WireError, match="missing"):  # and others have none
        wire.decode(sent, "x", dims=2)


@pytest.mark.parametrize("case", SHARED)
def test_a_shared_gradient(player: Player, case: str) -> None:
    _check(player, SHARED[case], "strategy.shared_gradient=true")


@pytest.mark.parametrize("case", AT_SERVER)
def test_labels_at_the_server(player: Player, case: str) -> None:
    _check(player, AT_SERVER[case], "strategy.labels=server")


@pytest.mark.parametrize("labels", ["private", "server"])
def test_states_that_have_no_code_cost_one_device(player: Player, labels: str) -> None:
    """Int8 has no infinity: coding such states would raise, for everybody."""
    change = _each("hidden0.scale", lambda a: np.full_like(a, 3e38))
    words = ("strategy.features=int8", f"strategy.labels={labels}")
    played, wanted = _drops(player, "cut", "begin", lying(change), *words)
    assert played.dropped(1) == {"not-finite": [BAD]}
    assert played.devices(1) == wanted.devices(1) == OTHERS


def test_states_beyond_half_precision_are_refused_by_name(player: Player) -> None:
    words = player.tiny.overrides(*words_of("cut", "strategy.features=float16"))
    server = player.bench(words)[0].piece.server
    assert server is not None
    with pytest.raises(WireError) as caught:
        server.states(torch.full((2, 16), 1e5), 1, BAD, 0)
    assert caught.value.reason == "overflow"


def test_a_device_cannot_go_on_for_ever(player: Player) -> None:
    """Instead of its update it sends its last features again, for the step that would follow."""
    words = words_of("cut", "strategy.num_rounds=1", "finetune.max_steps=1")
    kept: list[Payload] = []

    def keep(payload: Payload) -> Payload:
        kept.append(payload)
        return payload

    def again(payload: Payload) -> Payload:
        return Payload("features", payload.step, kept[0].scalars, kept[0].arrays)

    first, second = (
        on("begin", lying(keep), devices=[BAD]),
        on("gradient", lying(again), devices=[BAD]),
    )

    def both(place: Any, sent: Any, reply: Any) -> Any:
        return (first if place.kind == "begin" else second)(place, sent, reply)

    played = play(player, *words, spoil=both)
    assert len(kept) == 1
    assert played.dropped(1) == {"wrong-step": [BAD]}
    assert played.devices(1) == OTHERS
