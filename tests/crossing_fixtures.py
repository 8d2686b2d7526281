"""Gradient downloads whose features cross a neural connection."""

from typing import Any

from fl_app.payload import Payload
from tests.gradient_fixtures import words_of

WIDTH, NUM_PROMPT = 16, 3
USES = WIDTH // 4
"""Of one vector: four antennas at a device, eight at the server."""
PLACE = {"prompt": 0, "cut": 2, "lora": 0}
ONCE = ("strategy.num_rounds=1", "finetune.max_steps=1")


def through(variant: str, *more: str, tx_snr_db: float = 10.0) -> tuple[str, ...]:
    """Overrides of a gradient download over a connection."""
    place = f"connection.block={PLACE[variant]}"
    return words_of(variant, place, f"connection.tx_snr_db={tx_snr_db}", *more)


def tensors_of(payload: Payload) -> dict[str, Any]:
    """The arrays that crossed, as they stand in a payload."""
    return {
        name: payload.arrays[name]
        for name in ("hidden0.values", "prompt.values")
        if name in payload.arrays
    }
