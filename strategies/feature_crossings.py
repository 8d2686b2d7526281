"""Books one round of features, and of their gradients, that crossed a neural connection."""

import math
from collections.abc import Mapping
from typing import Any

from fl_app import wire
from fl_app.errors import WireError
from fl_app.features_wire import FEATURES, UPDATE
from fl_app.fomo.feature_link import CROSSING, CrossedEnergy
from fl_app.payload import Payload
from fl_app.records import field_of
from strategies.crossings import Crossings

_SAYS = (FEATURES, UPDATE)
"""Kinds of answers that say what crossed since the answer before."""
_MOST = 2**63
"""Counts and energies stay below, so that no device can make a sum overflow."""
_ENERGIES = tuple(vars(CrossedEnergy()))


class FeatureCrossings:
    """One round's account of what crossed.

    Every answer to an exchange says what crossed in it, so what a device sent before it was lost is
    paid for. A gradient that nobody confirms is not booked.

    Args:
        crossings: what channel uses cost, and where that is booked.
        round: server round.
    """

    def __init__(self, crossings: Crossings, round: int) -> None:
        self._crossings, self._round = crossings, round
        self._energies: list[CrossedEnergy] = []

    def digital(self, payload: Payload, what: str, num_bytes: int) -> tuple[str, int]:
        """Returns what a payload is booked as, and with how many bytes.

        Tensors that crossed are booked in channel uses alone. What came along with them (masks, the
        places that are read, parameters and their gradients) is control.

        Args:
            payload: either way.
            what: what it would be booked as without a connection.
            num_bytes: its length.
        """
        crossed = [a.nbytes for name, a in payload.arrays.items() if _crosses(name)]
        return ("control", num_bytes - sum(crossed)) if crossed else (what, num_bytes)

    def arrived(self, device: int, payload: Payload) -> None:
        """Books what an answer says of its crossing.

        Raises:
            WireError: ``missing`` or ``bad-count``; nothing is booked then.
        """
        if payload.kind not in _SAYS:
            return
        counts = {name: _amount(payload.scalars, name, int) for name in wire.CROSSED}
        energy = {name: _amount(payload.scalars, name, float) for name in _ENERGIES}
        self._crossings.book_counts(self._round, device, counts)
        self._energies.append(CrossedEnergy(**energy))

    def figures(self) -> dict[str, float]:
        """Returns the round's NMSE of features, and of gradients where any came back."""
        # summed exactly, so that the order of answers has no say
        total = {
            name: math.fsum(getattr(one, name) for one in self._energies) for name in _ENERGIES
        }
        found = {
            "connection_feature_nmse": (total["forward_error"], total["forward_energy"]),
            "connection_gradient_nmse": (total["backward_error"], total["backward_energy"]),
        }
        ratios = {name: error / energy for name, (error, energy) in found.items() if energy > 0}
        return {name: ratio for name, ratio in ratios.items() if math.isfinite(ratio)}


def _crosses(name: str) -> bool:
    return name.partition(".")[0].rstrip("0123456789") in CROSSING


def _amount(scalars: Mapping[str, Any], name: str, kind: type) -> Any:
    amount = field_of(scalars, name, kind)
    if not 0 <= amount < _MOST:  # false for nan too
        raise WireError("bad-count", f"{name}={amount} must be >= 0 and below 2**63")
    return amount
