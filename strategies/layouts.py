"""Which device tunes which units in a round: the one place that says so."""

from typing import Protocol

from fl_app.layout.prefix import Layout


class Layouts(Protocol):
    """Gives every device a layout in every round.

    The server cuts its factors to the layout, sends them with the order, and pads what comes back.
    Units are kept in nested order, so a rule that prefers some units to others must reorder the
    server's before.
    """

    @property
    def server(self) -> Layout:
        """The server's own layout; empty where the adapter has no LoRA."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether every device holds in every round what the server holds."""
        ...

    def at(self, server_round: int, device: int) -> Layout:
        """Returns a device's layout in a round: the server's blocks, each rank at most its."""
        ...
