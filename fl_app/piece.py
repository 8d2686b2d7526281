"""What devices download before the first round, and what the server keeps beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fl_app.fomo.adapter import Adapter
from fl_app.fomo.connection_insert import Insertion
from fl_app.fomo.emulator import Split
from strategies.feature_server import FeatureServer
from strategies.scalar_server import ScalarServer


@dataclass
class Piece:
    """A device's piece of the model.

    Attributes:
        blob: as it crosses the wire.
        split: whose outer blocks are tuned; for emulator download also which blocks devices hold.
        later_tuned: blocks that are tuned in the stacks after the first; None: the same ones.
        facts: figures about it for the report.
        emulated: adapter on the emulator exactly as devices unpack it; None without an emulator.
        emulated_link: the neural connection inside the emulator; None without one.
        server: computes on features for gradient download; None otherwise.
    """

    blob: bytes
    split: Split
    facts: dict[str, Any] = field(default_factory=dict)
    emulated: Adapter | None = None
    emulated_link: Insertion | None = None
    server: FeatureServer | ScalarServer | None = None
    later_tuned: Sequence[int] | None = None
