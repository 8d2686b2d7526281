"""Layouts as tests of stacking need them."""


class FixedLayouts:
    """Layouts of equal devices, the same in every round; rank by block."""

    is_shared = True

    def __init__(self, ranks: dict[int, int]) -> None:
        self.server = ranks

    def at(self, server_round: int, device: int) -> dict[int, int]:
        """Returns the ranks."""
        return self.server
