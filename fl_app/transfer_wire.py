"""What travels in a transfer phase of gradient download, as payloads.

To a device that has something to give: ``advertise`` down, ``advert`` up; ``give`` down, ``given``
up. To one that looks for a prompt: ``offers`` down, ``want`` up; ``try`` down, ``trial`` up (its
probe rows as features, with every candidate's prompt); ``judge`` down (last states), ``report`` up.
After tuning ``settle`` down, ``trial`` up, ``judge`` down, ``report`` up. ``meeting_wire`` has what
takes the place of adverts, offers and gifts where devices have direct links.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import WireError
from fl_app.features_wire import require_kind
from fl_app.payload import Payload, Scalar
from fl_app.prompts.advert import MAX_ADVERT_BYTES

ADVERTISE, ADVERT = "advertise", "advert"
OFFERS, WANT = "offers", "want"
GIVE, GIVEN = "give", "given"
TRY, TRIAL, JUDGE, REPORT = "try", "trial", "judge", "report"
SETTLE = "settle"
ACTIONS = ("kept", "passed", "zero-shot", "tuned", "rolled-back")
_BEFORE_TUNING = ("kept", "passed", "zero-shot", "rolled-back")
NOBODY = -1
"""Device number that stands for no source."""
MIXED = -2
"""In the place of a source: the mixture of all prompts that arrived."""
_CANDIDATE = "candidate"
_MAX_DIGITS = 9
_TEXTS = ("action", "refused")
_LOSSES = ("loss_own", "loss_candidate", "loss_tuned", "probe_own", "probe_candidate")


@dataclass(frozen=True)
class Place:
    """Which device in which round, with which part of the model."""

    round: int
    device: int
    model_hash: str

    def to_payload(self, kind: str, arrays: Mapping[str, NDArray[Any]] | None = None) -> Payload:
        """Returns a payload that opens an exchange."""
        return Payload(kind, 0, dict(vars(self)), arrays or {})


def read_place(payload: Payload) -> Place:
    """Reads where a payload belongs.

    Raises:
        WireError: ``missing``.
    """
    found = payload.scalars
    wanted = {"round": int, "device": int, "model_hash": str}
    if any(type(found.get(name)) is not kind for name, kind in wanted.items()):
        raise WireError("missing", f"a {payload.kind!r} names {sorted(wanted)}")
    return Place(int(found["round"]), int(found["device"]), str(found["model_hash"]))


@dataclass(frozen=True)
class Heard:
    """An advert as a neighbour heard it.

    Attributes:
        source: partition id of who sent it.
        rate_bps: bit/s of the link, >= 0.
        contact_s: seconds for which the contact lasts.
        advert: as it was sent.
    """

    source: int
    rate_bps: float
    contact_s: float
    advert: bytes


def offers_payload(place: Place, heard: Sequence[Heard]) -> Payload:
    """Tells a device what its neighbours advertise."""
    scalars: dict[str, Scalar] = dict(vars(place))
    arrays = {}
    for one in heard:
        scalars[f"rate_bps|{one.source}"] = one.rate_bps
        scalars[f"contact_s|{one.source}"] = one.contact_s
        arrays[str(one.source)] = octets(one.advert)
    return Payload(OFFERS, 0, scalars, arrays)


def read_offers(payload: Payload) -> list[Heard]:
    """Reads them, by source.

    Raises:
        WireError: ``wrong-kind`` or ``missing``.
    """
    require_kind(payload, OFFERS)
    return [
        Heard(
            int(name),
            number_of(payload, f"rate_bps|{name}"),
            number_of(payload, f"contact_s|{name}"),
            bytes_of(payload, name, MAX_ADVERT_BYTES),
        )
        for name in sorted(payload.arrays, key=int)
    ]


@dataclass(frozen=True)
class Report:
    """How a device's transfer went, as the device says; losses in nats, NaN where not measured.

    Attributes:
        action: ``kept`` (nobody passed the gate), ``passed`` (tuning begins from a candidate),
            ``zero-shot``, ``tuned`` or ``rolled-back``.
        source: device whose prompt passed the gate, ``MIXED``, or ``NOBODY`` if none did.
        num_received: prompts that arrived whole and fit.
        refused: reasons for which others did not, separated by blanks.
        loss_own: on the validation rows, of the device's own prompt before.
        loss_candidate: likewise of the best candidate, as it is.
        loss_tuned: likewise after tuning from it.
        probe_own: on the gate's rows, of the own prompt.
        probe_candidate: likewise of the best candidate.
    """

    action: str
    source: int
    num_received: int = 0
    refused: str = ""
    loss_own: float = math.nan
    loss_candidate: float = math.nan
    loss_tuned: float = math.nan
    probe_own: float = math.nan
    probe_candidate: float = math.nan

    def to_payload(self) -> Payload:
        """Returns the payload."""
        return Payload(REPORT, 0, dict(vars(self)))


def read_report(payload: Payload) -> Report:
    """Reads what a device reports.

    Raises:
        WireError: ``wrong-kind``, or ``missing``: a field is missing, strange or out of range.
    """
    require_kind(payload, REPORT)
    found: dict[str, Any] = dict(payload.scalars)
    wanted: dict[str, type] = dict.fromkeys(_TEXTS, str) | dict.fromkeys(_LOSSES, float)
    wanted |= {"source": int, "num_received": int}
    if {name: type(value) for name, value in found.items()} != wanted:
        raise WireError("missing", f"a report has {sorted(wanted)}, got {sorted(found)}")
    in_range = found["source"] >= MIXED and found["num_received"] >= 0
    if found["action"] not in ACTIONS or not in_range or len(found["refused"]) > 1000:
        raise WireError("missing", f"a report of action {found['action'][:20]!r} is strange")
    return Report(**found)


def may_name(delivered: Collection[int], *, mixes: bool) -> set[int]:
    """Returns the sources a device may report that looked for a prompt, besides ``NOBODY``.

    Args:
        delivered: devices whose prompt came to it.
        mixes: whether mixtures are on trial (``prompt.mix_temperature``).
    """
    return {*delivered, MIXED} if mixes and len(delivered) > 1 else set(delivered)


def read_search(payload: Payload, sources: Collection[int]) -> Report:
    """Reads the report of a device that has looked for a prompt and tuned nothing yet.

    Args:
        payload: the report.
        sources: what it may name besides ``NOBODY``, see ``may_name``.

    Raises:
        WireError: as ``read_report``; ``missing`` also for an action that tuning alone ends with,
            or another source.
    """
    report = read_report(payload)
    if report.action not in _BEFORE_TUNING or report.source not in {NOBODY, *sources}:
        raise WireError(
            "missing",
            f"{report.action!r} from {report.source} is no end of a search among {sorted(sources)}",
        )
    return report


def trial_arrays(prompts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Names the coded prompts of candidates 1, 2, ...; candidate 0 is the features' own."""
    return {
        f"{_CANDIDATE}{i}|{name}": array
        for i, arrays in enumerate(prompts, start=1)
        for name, array in arrays.items()
    }


def split_trial(payload: Payload, *, most: int) -> dict[int, Payload]:
    """Returns one payload of features for every candidate of a trial by number, 0 first.

    Numbers may be missing: a device leaves out what it cannot code.

    Args:
        payload: the trial.
        most: candidates that may be on it, number 0 included, >= 1.

    Raises:
        WireError: ``missing``, a candidate has no number; ``too-large``, a number >= ``most``.
    """
    own = {n: a for n, a in payload.arrays.items() if not n.startswith(_CANDIDATE)}
    later: dict[int, dict[str, NDArray[Any]]] = {}
    for name, array in payload.arrays.items():
        lead, _, rest = name.partition("|")
        if not name.startswith(_CANDIDATE):
            continue
        number = count_of(lead.removeprefix(_CANDIDATE))
        if number >= most:
            raise WireError("too-large", f"candidate {number} of a trial, allowed are {most}")
        later.setdefault(number, {})[rest] = array
    shared = {n: a for n, a in own.items() if not n.startswith("prompt.")}
    payloads = {0: own} | {i: {**shared, **later[i]} for i in sorted(later) if i > 0}
    return {
        i: Payload(payload.kind, payload.step, payload.scalars, arrays)
        for i, arrays in payloads.items()
    }


def octets(blob: bytes) -> NDArray[np.uint8]:
    """Returns bytes as an array."""
    return np.frombuffer(blob, np.uint8)


def bytes_of(payload: Payload, name: str, max_bytes: int) -> bytes:
    """Returns an array as bytes.

    Raises:
        WireError: ``missing`` or ``too-large``.
    """
    array = payload.arrays.get(name)
    if array is None or array.dtype != np.uint8 or array.ndim != 1:
        raise WireError("missing", f"'{name}' should be a row of bytes")
    if len(array) > max_bytes:
        raise WireError("too-large", f"'{name}' has {len(array)} bytes, allowed are {max_bytes}")
    return array.tobytes()


def count_of(text: str) -> int:
    """Returns the whole number >= 0 that stands in a name, of at most nine digits.

    Raises:
        WireError: ``missing``.
    """
    # int() takes other scripts' digits too, and fails in its own way on some thousand of them
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise WireError(
            "missing", f"{text[:20]!r} must be a number of at most {_MAX_DIGITS} digits"
        )
    return int(text)


def number_of(payload: Payload, name: str) -> float:
    """Returns a scalar >= 0, possibly infinite.

    Raises:
        WireError: ``missing``.
    """
    value = payload.scalars.get(name)
    if type(value) is not float or not value >= 0:
        raise WireError("missing", f"'{name}'={value!r} must be a float >= 0")
    return value
