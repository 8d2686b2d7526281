"""The ledger adds up what was booked, whatever the order, and refuses what cannot be."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.errors import RunError
from fl_app.ledger import PAYLOADS, Ledger

_KINDS = [(link, what) for link, whats in PAYLOADS.items() for what in whats]
_BOOKINGS = st.lists(
    st.builds(
        lambda round, device, kind, num_bytes: {
            "round": round,
            "device": device,
            "link": kind[0],
            "what": kind[1],
            "num_bytes": num_bytes,
        },
        st.integers(0, 4),
        st.integers(0, 3),
        st.sampled_from(_KINDS),
        st.integers(0, 10**12),
    ),
    max_size=20,
)


def _booked(bookings: list[dict[str, Any]]) -> Ledger:
    ledger = Ledger()
    for booking in bookings:
        ledger.book(**booking)
    return ledger


_SILENT = {
    **{"channel_uses": 0, "radio_seconds": 0.0, "radio_joules": 0.0},
    **{"connection_uses": 0, "connection_seconds": 0.0},
    **{"connection_joules": 0.0, "connection_server_joules": 0.0},
    **{"d2d_seconds": 0.0, "d2d_joules": 0.0},
    **{"scheduled_compute_s": 0.0, "scheduled_uplink_s": 0.0, "scheduled_s": 0.0},
}
"""What a run without a radio and without a neural connection has to say of them."""


@settings(derandomize=True, deadline=None)
@given(bookings=_BOOKINGS, data=st.data())
def test_totals_equal_the_sums_of_the_bookings_in_any_order(
    bookings: list[dict[str, Any]], data: st.DataObject
) -> None:
    """Every total is the plain sum of what matches, for any permutation of the bookings."""
    ledger = _booked(data.draw(st.permutations(bookings)))

    def total(**wanted: object) -> int:
        return sum(b["num_bytes"] for b in bookings if wanted.items() <= b.items())

    rounds = sorted({booking["round"] for booking in bookings})
    assert ledger.as_dict() == {
        "uplink_bytes": total(link="uplink"),
        "downlink_bytes": total(link="downlink"),
        "emulator_bytes": total(what="emulator"),
        "adapter_downlink_bytes": total(link="downlink", what="adapter"),
        "gradient_bytes": total(what="states") + total(what="gradient"),
        "feature_bytes": total(what="features") + total(what="slopes"),
        "relay_bytes": total(what="relay"),
        "trial_bytes": total(what="trial"),
        "score_bytes": total(what="scores"),
        "control_bytes": total(what="control"),
        "d2d_bytes": total(link="d2d"),
        **_SILENT,
        "per_round": [
            {
                "round": number,
                "uplink_bytes": total(round=number, link="uplink"),
                "downlink_bytes": total(round=number, link="downlink"),
                "emulator_bytes": total(round=number, what="emulator"),
                "d2d_bytes": total(round=number, link="d2d"),
                **_SILENT,
            }
            for number in rounds
        ],
    }
    for round, device in itertools.product(range(5), range(4)):
        assert ledger.total_bytes(round=round, device=device) == total(round=round, device=device)


@settings(derandomize=True, deadline=None)
@given(
    booked=st.lists(
        st.tuples(st.sampled_from(["fit", "evaluate"]), st.floats(0, 1e6)), min_size=1, max_size=20
    ),
    data=st.data(),
)
def test_seconds_are_exact_sums_in_any_order(
    booked: list[tuple[str, float]], data: st.DataObject
) -> None:
    """Seconds are the exactly rounded sum per phase, for any permutation."""
    ledger = Ledger()
    for phase, seconds in data.draw(st.permutations(booked)):
        ledger.book_seconds(round=1, device=0, phase=phase, seconds=seconds)
    assert ledger.seconds_by_phase() == {
        name: math.fsum(seconds for phase, seconds in booked if phase == name)
        for name in sorted({phase for phase, _ in booked})
    }


def test_seconds_do_not_enter_the_byte_account() -> None:
    """Measured time differs between runs; the byte account of one seed must not."""
    ledger, other = Ledger(), Ledger()
    ledger.book_seconds(round=1, device=0, phase="fit", seconds=1.5)
    assert ledger.as_dict() == other.as_dict()


def test_the_radio_is_added_up_by_round_and_in_all() -> None:
    ledger = Ledger()
    for number, uses, seconds in ((1, 10, 0.5), (2, 20, 0.25), (1, 5, 0.125)):
        ledger.book_airtime(round=number, channel_uses=uses, seconds=seconds)
    for number, device, joules in ((1, 0, 1.0), (1, 3, 2.0), (2, 0, 4.0)):
        ledger.book_joules(round=number, device=device, joules=joules)
    ledger.book(round=2, device=0, link="uplink", what="control", num_bytes=7)
    account = ledger.as_dict()
    radio = ("channel_uses", "radio_seconds", "radio_joules")
    assert [account[key] for key in radio] == [35, 0.875, 7.0]
    # a round in which nothing but symbols was sent has a row, too
    assert [[row["round"], *(row[key] for key in radio)] for row in account["per_round"]] == [  # type: ignore[union-attr]
        [1, 15, 0.625, 3.0],
        [2, 20, 0.25, 4.0],
    ]


@settings(derandomize=True, deadline=None)
@given(
    crossings=st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 10**9), *(st.floats(0, 1e3) for _ in range(3))),
        max_size=12,
    ),
    data=st.data(),
)
def test_connections_are_added_up_by_round_and_in_all_in_any_order(
    crossings: list[tuple[int, int, float, float, float]], data: st.DataObject
) -> None:
    """Exact sums, and a row for a round in which nothing else was booked."""
    ledger = Ledger()
    names = ("round", "uses", "seconds", "joules", "server_joules")
    for crossing in data.draw(st.permutations(crossings)):
        ledger.book_connection(**dict(zip(names, crossing, strict=True)))  # type: ignore[arg-type]

    def sums(of: list[tuple[int, int, float, float, float]]) -> list[float]:
        columns = list(zip(*of, strict=True))[2:] if of else [[], [], []]
        return [sum(row[1] for row in of), *(math.fsum(column) for column in columns)]

    account = ledger.as_dict()
    parts = ("uses", "seconds", "joules", "server_joules")
    keys = [f"connection_{part}" for part in parts]
    assert [account[key] for key in keys] == sums(crossings)
    assert [(row["round"], [row[key] for key in keys]) for row in account["per_round"]] == [  # type: ignore[union-attr]
        (number, sums([c for c in crossings if c[0] == number]))
        for number in sorted({c[0] for c in crossings})
    ]


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("field", ["seconds", "joules", "server_joules", "uses"])
def test_a_wrong_crossing_is_refused_and_leaves_no_trace(field: str, wrong: float) -> None:
    ledger = Ledger()
    booking: dict[str, Any] = {"uses": 3, "seconds": 1.0, "joules": 1.0, "server_joules": 1.0}
    with pytest.raises(RunError, match=field):
        ledger.book_connection(round=1, **{**booking, field: wrong})
    assert ledger.as_dict() == Ledger().as_dict()


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_wrong_airtime_is_refused_and_leaves_no_trace(seconds: float) -> None:
    ledger = Ledger()
    with pytest.raises(RunError, match="seconds"):
        ledger.book_airtime(round=1, channel_uses=3, seconds=seconds)
    with pytest.raises(RunError, match="joules"):
        ledger.book_joules(round=1, device=0, joules=seconds)
    with pytest.raises(RunError, match="channel_uses"):
        ledger.book_airtime(round=1, channel_uses=-3, seconds=1.0)
    assert ledger.as_dict() == Ledger().as_dict()


def test_numpy_integers_are_booked_as_plain_ones() -> None:
    """Sizes often come from NumPy, which JSON cannot write."""
    ledger = Ledger()
    ledger.book(
        round=np.int64(1),  # type: ignore[arg-type]
        device=np.uint64(2),  # type: ignore[arg-type]
        link="uplink",
        what="update",
        num_bytes=np.int32(3),  # type: ignore[arg-type]
    )
    assert type(ledger.as_dict()["uplink_bytes"]) is int
    assert ledger.total_bytes(device=2, round=1) == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_bytes": -1}, "num_bytes=-1"),
        ({"num_bytes": 1.5}, "num_bytes=1.5"),
        ({"round": -1}, "round=-1"),
        ({"device": -2}, "device=-2"),
        ({"device": "3"}, "device='3'"),
        ({"link": "sideways"}, "link='sideways' is unknown; choose one of downlink, uplink"),
        ({"what": "gossip"}, "what='gossip' does not travel on the downlink"),
        ({"what": "update"}, "what='update' does not travel on the downlink"),
        (
            {"link": "uplink", "what": "emulator"},
            "choose one of update, features, slopes, scores, control",
        ),
    ],
)
def test_a_wrong_booking_is_refused_and_leaves_no_trace(change: dict[str, Any], field: str) -> None:
    """The error names field and value, and the totals stay as they were."""
    ledger = Ledger()
    booking = {"round": 1, "device": 0, "link": "downlink", "what": "adapter", "num_bytes": 8}
    with pytest.raises(RunError, match=field.replace("(", r"\(")):
        ledger.book(**{**booking, **change})
    assert ledger.as_dict() == Ledger().as_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": -0.1},
        {"seconds": math.nan},
        {"seconds": math.inf},
        {"phase": ""},
        {"round": -1},
        {"device": -1},
    ],
)
def test_wrong_seconds_are_refused_and_leave_no_trace(change: dict[str, Any]) -> None:
    """Time that is negative, not finite or without a phase is refused."""
    ledger = Ledger()
    booking = {"round": 1, "device": 0, "phase": "fit", "seconds": 1.0}
    with pytest.raises(RunError, match=next(iter(change))):
        ledger.book_seconds(**{**booking, **change})
    assert ledger.seconds_by_phase() == {}


def test_a_schedules_seconds_add_up_and_a_round_ends_with_its_last_device() -> None:
    ledger = Ledger()
    for number, compute_s, uplink_s in ((1, 2.0, 1.0), (1, 0.5, 4.0), (2, 1.0, 1.0)):
        ledger.book_turn(round=number, compute_s=compute_s, uplink_s=uplink_s)
    ledger.book(round=1, device=0, link="uplink", what="update", num_bytes=1)
    totals = ledger.as_dict()
    assert [totals[n] for n in ("scheduled_compute_s", "scheduled_uplink_s")] == [3.5, 6.0]
    assert totals["scheduled_s"] == 4.5 + 2.0
    rows = totals["per_round"]
    assert isinstance(rows, list)
    assert [row["scheduled_s"] for row in rows] == [4.5, 2.0]
    with pytest.raises(RunError, match="uplink_s"):
        ledger.book_turn(round=1, compute_s=1.0, uplink_s=-1.0)
