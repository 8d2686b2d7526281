"""What crosses the wire of a gradient download: nothing private, every byte booked."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_app.features_wire import FEATURES, GRADIENT, SLOPES, STATES, UPDATE
from fl_app.material import load_material
from fl_app.payload import Payload
from tests.federation_fixtures import NUM_DEVICES, Player, player, tiny_federation
from tests.gradient_fixtures import (
    VARIANTS,
    Exchanged,
    GradientPlayed,
    play,
    relative,
    words_of,
)

__all__ = ["player", "tiny_federation"]

WIDTH, NUM_PROMPT, NUM_CLASSES, RANK = 16, 3, 4, 2
"""Of the tiny model and its adapter, see ``fixtures_models`` and ``federation_fixtures``."""
FLOAT = 4
HEAD_REALS = WIDTH * NUM_CLASSES + NUM_CLASSES
# freeze-a: B [16, 2] beside query and value of each tuned block; two blocks are tuned
REALS = {
    "prompt": NUM_PROMPT * WIDTH + HEAD_REALS,
    "cut": 2 * 2 * WIDTH * RANK + HEAD_REALS,
    "lora": 2 * 2 * WIDTH * RANK + HEAD_REALS,
}


def _uplinks(played: GradientPlayed, kind: str) -> list[tuple[Exchanged, Payload]]:
    found = [(e, up) for e in played.grid.steps for up in e.up if up.kind == kind]
    assert found
    return found


def _kinds(arrays: Mapping[str, NDArray[Any]]) -> Counter[str]:
    return Counter(array.dtype.kind for array in arrays.values())


@pytest.mark.parametrize("features", ["float32", "int8"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_token_ids_and_no_labels_go_up(player: Player, variant: str, features: str) -> None:
    words = words_of(variant, f"strategy.features={features}")
    played = play(player, *words)
    material = load_material(played.bench.config)
    labels, tokens = {}, {}
    for device in range(NUM_DEVICES):
        encoded = played.bench.task.encode(material.of_device(device))
        labels[device] = Counter(encoded.targets)
        tokens[device] = {tuple(row) for row in encoded.rows}
        assert len(labels[device]) == NUM_CLASSES  # so that no constant could pass for labels
    kinds: set[str] = set()
    for exchanged in played.grid.steps:
        for up in exchanged.up:
            kinds.add(up.kind)
            allowed = {"f", "b"} | ({"i"} if features == "int8" else set())
            assert set(_kinds(up.arrays)) <= allowed
            for name, array in up.arrays.items():
                if array.dtype.kind == "i":  # coded features alone
                    assert name.endswith(".codes")
                    assert array.dtype == np.int8
                    assert array.shape[-1] == WIDTH
                rows = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
                assert not ({tuple(row) for row in rows.tolist()} & tokens[exchanged.place.device])
            names = {name.partition("|")[0].partition(".")[0] for name in up.arrays}
            if up.kind == FEATURES:
                assert names <= {"hidden0", "mask0", "readout", "prompt", "own"}
                assert set(up.scalars) == {"feature_error"}
            if up.kind == SLOPES:
                assert names == {"slopes"}
                assert not up.scalars
    assert kinds == {FEATURES, SLOPES, UPDATE}


def test_with_labels_at_the_server_they_are_there(player: Player) -> None:
    """The check above would notice labels: here they are, and no slope is asked for."""
    played = play(player, *words_of("lora", "strategy.labels=server"))
    for exchanged, up in _uplinks(played, FEATURES):
        assert _kinds(up.arrays)["i"] == 1  # no class counts, for nothing is adjusted
        assert up.arrays["labels"].shape == up.arrays["mask0"].shape[:1]
        assert exchanged.place.kind in ("begin", "gradient")
    assert {e.place.kind for e in played.grid.steps} == {"begin", "gradient"}


def test_adjusted_logits_need_the_counts_of_classes_and_no_more(player: Player) -> None:
    words = words_of("cut", "strategy.labels=server", "data.public_fraction=0.2")
    played = play(player, *words, "finetune.logit_adjustment=1")
    material = load_material(played.bench.config)
    for exchanged, up in _uplinks(played, FEATURES):
        encoded = played.bench.task.encode(material.of_device(exchanged.place.device))
        counts = Counter(encoded.targets)
        assert up.arrays["counts"].tolist() == [counts[c] for c in range(NUM_CLASSES)]
        assert _kinds(up.arrays)["i"] == 2


@pytest.mark.parametrize("labels", ["private", "server"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_blob_is_booked_with_its_length(player: Player, variant: str, labels: str) -> None:
    played = play(player, *words_of(variant, f"strategy.labels={labels}"))
    ledger, steps = played.outcome.ledger, played.grid.steps
    down = {"begin": "adapter", STATES: "states", GRADIENT: "gradient"}
    for device in range(NUM_DEVICES):
        for number in (1, 2):
            mine = [e for e in steps if (e.place.device, e.place.round) == (device, number)]
            for kind, what in down.items():
                sent = sum(len(e.sent) for e in mine if e.place.kind == kind)
                booked = ledger.total_bytes(
                    round=number,
                    device=device,
                    link="downlink",
                    what=what,  # type: ignore[arg-type]
                )
                assert booked == sent
                assert (booked > 0) == (kind != STATES or labels == "private")
            for kind in (FEATURES, SLOPES, UPDATE):
                up = sum(len(e.received[0]) for e in mine if e.up[0].kind == kind)
                assert up == ledger.total_bytes(
                    round=number,
                    device=device,
                    link="uplink",
                    what=kind,  # type: ignore[arg-type]
                )
    fronts = sum(size for _, size in played.grid.fronts)
    assert len(played.grid.fronts) == NUM_DEVICES  # once, in the first of two rounds
    assert ledger.total_bytes(what="emulator") == fronts
    every_up = sum(len(blob) for e in steps for blob in e.received)
    assert ledger.total_bytes(link="uplink") == every_up
    assert ledger.total_bytes(link="downlink") == sum(len(e.sent) for e in steps) + fronts


@pytest.mark.parametrize("variant", VARIANTS)
def test_array_bytes_are_those_of_the_payload_table(player: Player, variant: str) -> None:
    """Per step: prompt m d down; cut B S d both ways; states as many as the head reads, d each."""
    played = play(player, *words_of(variant))
    assert len(_uplinks(played, FEATURES)) == NUM_DEVICES * 2 * 3  # rounds, steps
    for exchanged, up in _uplinks(played, FEATURES):
        rows, length = up.arrays["mask0"].shape
        assert up.arrays["hidden0.values"].nbytes == rows * length * WIDTH * FLOAT
        reads = int(up.arrays["readout"].sum())
        assert reads == rows  # a classifier of whole texts reads one state a text
        place = exchanged.place
        mine = [e for e in played.grid.steps if e.place.device == place.device]
        now = [e for e in mine if e.place.round == place.round and e.place.step == up.step]
        (states,) = [e.down for e in now if e.place.kind == STATES]
        (slopes,) = [e.up[0] for e in now if e.place.kind == STATES]
        assert states.arrays["states.values"].nbytes == reads * WIDTH * FLOAT
        assert slopes.arrays["slopes.values"].nbytes == reads * WIDTH * FLOAT
        (gradient,) = [e.down for e in now if e.place.kind == GRADIENT]
        sizes = {name: array.nbytes for name, array in gradient.arrays.items()}
        trunk = (REALS["lora"] - HEAD_REALS) * FLOAT
        wanted = {
            "prompt": NUM_PROMPT * WIDTH * FLOAT,
            "cut": rows * length * WIDTH * FLOAT,
            "lora": trunk,
        }
        assert sum(sizes.values()) == wanted[variant]
        own = sum(a.nbytes for name, a in up.arrays.items() if name.startswith("own|"))
        assert own == (trunk if variant == "lora" else 0)
    for _, update in _uplinks(played, UPDATE):
        assert sum(array.nbytes for array in update.arrays.values()) == REALS[variant] * FLOAT


# --- fewer bytes for features --------------------------------------------------------------------


def _coding_error(played: GradientPlayed, how: str) -> tuple[float, float]:
    """The relative error with its deviation: stochastic rounding; or an upper bound and 0.

    float16 has 11 bits: an entry moves by 2^-11 of itself at most (and tiny ones by 2^-25). int8
    moves an entry x of a row by s sqrt(f (1 - f)) in the mean square, f the part of x / s behind
    the point and s = max |row| / 127. The square of the move has the variance
    s^4 f (1 - f) (1 - 2 f)^2, and a root is off by half of what its square is, relatively.
    """
    if how == "float16":
        return 2.0**-11, 0.0
    exact = [up.arrays for _, up in _uplinks(played, FEATURES)]
    errors, variances = [], []
    for arrays in exact:
        square = size = spread = 0.0
        for name in ("hidden0.values", "prompt.values"):
            if name not in arrays:
                continue
            x = arrays[name].astype(np.float64)
            scale = np.abs(x).max(-1, keepdims=True) / 127
            part = x / scale - np.floor(x / scale)
            square += float((scale**2 * part * (1 - part)).sum())
            spread += float((scale**4 * part * (1 - part) * (1 - 2 * part) ** 2).sum())
            size += float((x**2).sum())
        errors.append(math.sqrt(square / size))
        variances.append(spread / (4 * square * size))
    return float(np.mean(errors)), math.sqrt(sum(variances)) / len(errors)


@pytest.mark.parametrize("how", ["float16", "int8"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_coded_features_cost_less_and_say_what_they_lose(
    player: Player, variant: str, how: str
) -> None:
    words = words_of(variant, "strategy.num_rounds=1", "finetune.max_steps=1")
    exact = play(player, *words)
    coded = play(player, *words, f"strategy.features={how}")
    assert exact.metrics(1)["feature_error"] == 0.0
    given = coded.metrics(1)["feature_error"]
    assert given is not None
    wanted, deviation = _coding_error(exact, how)
    if how == "float16":
        assert 0 < given <= wanted
    else:
        assert abs(given - wanted) < 5 * deviation < 0.15 * wanted
    # Features, states, slopes and gradient are each off by about that, and AdamW's first step is a
    # smooth function of the gradient. How much these blocks magnify was measured: 0.7 to 1.8 for
    # float16 and 1.4 to 7.3 for int8 (largest with a prompt, whose gradient sums over many rows).
    moved = relative(coded.adapter, exact.adapter, exact.start)
    assert 0 < moved < (4 if how == "float16" else 15) * wanted
    size = {
        name: len(up.arrays[f"hidden0.{name}"].tobytes())
        for _, up in _uplinks(coded, FEATURES)[:1]
        for name in ({"float16": ("values",), "int8": ("codes", "scale")}[how])
    }
    mask = _uplinks(coded, FEATURES)[0][1].arrays["mask0"]
    plain = mask.size * WIDTH
    assert size == (
        {"values": 2 * plain} if how == "float16" else {"codes": plain, "scale": 4 * mask.size}
    )
