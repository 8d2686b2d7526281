"""What devices may not see of the full model: dropped blocks, and compressed ones whole."""

import numpy as np
import pytest

from tests.federation_fixtures import Played, Player


def _downlink(played: Played) -> bytes:
    """All bytes that went to the devices, records and all."""
    return b"".join(
        array.data
        for exchange in played.grid.exchanges
        for record in exchange.sent.content.array_records.values()
        for array in record.values()
    )


def _tensors(played: Played, blocks: set[int]) -> dict[str, np.ndarray]:
    """The full model's own weights in some blocks (LoRA and constant vectors left out)."""
    found = {}
    for name, tensor in played.bench.backbone.model.state_dict().items():
        parts = name.split(".")
        if "layer" not in parts or "lora_" in name:
            continue
        array = tensor.detach().numpy()
        if int(parts[parts.index("layer") + 1]) in blocks and array.std() > 0:
            found[name] = array
    return found


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("strategy.emulator.bits=4",),
        ("strategy.emulator.sparsity=0.5", "strategy.emulator.wire_dtype=float32"),
    ],
)
def test_dropped_blocks_never_reach_a_device(player: Player, words: tuple[str, ...]) -> None:
    played = player.play(*words)
    crossed = _downlink(played)
    split = played.bench.piece.split
    dropped = set(range(split.total)) - set(split.blocks)
    hidden = _tensors(played, dropped)
    assert len(dropped) >= 1
    assert len(hidden) >= 10 * len(dropped)
    for name, array in hidden.items():
        for dtype in (np.float32, np.float16):
            assert array.astype(dtype).tobytes() not in crossed, name
    # the search can find: what a device must hold is there
    outer = _tensors(played, set(split.outer))
    assert all(
        any(array.astype(dtype).tobytes() in crossed for dtype in (np.float32, np.float16))
        for array in outer.values()
    )


@pytest.mark.parametrize("words", [("bits=4",), ("sparsity=0.5",), ("sparsity=0.5", "bits=8")])
def test_compressed_matrices_of_the_middle_never_reach_a_device_whole(
    player: Player, words: tuple[str, ...]
) -> None:
    """Even where no block is dropped."""
    played = player.play(
        "strategy.emulator.middle=-1", *(f"strategy.emulator.{word}" for word in words)
    )
    crossed = _downlink(played)
    split = played.bench.piece.split
    middle = _tensors(played, set(range(split.total)) - set(split.outer))
    matrices = {name: array for name, array in middle.items() if array.ndim == 2}
    assert len(matrices) >= 6
    for name, array in matrices.items():
        for dtype in (np.float32, np.float16):
            assert array.astype(dtype).tobytes() not in crossed, name
