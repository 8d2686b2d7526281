"""What tests of server rules need: Flower's process, and adapters to combine."""

import numpy as np
import pytest

from fl_app.local_grid import LocalGrid
from fl_app.updates import Update


@pytest.fixture(autouse=True)
def flower_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages need the identity its own processes have."""
    # Bulyan collects garbage once per device, which takes long in a process as large as this
    monkeypatch.setattr("flwr.app.message.arrayrecord.gc.collect", lambda: 0)
    LocalGrid(lambda *_: None, num_nodes=1, run_config={})._folder.cleanup()  # type: ignore[arg-type]


def drawn_adapters(num_rows: int, seed: int = 0) -> tuple[Update, list[Update], np.ndarray]:
    """An adapter, tuned ones (both signs, not square, a lone number) and unequal weights."""
    rng = np.random.default_rng(seed)
    shapes = {"a": (3, 5), "b": (4,), "c": (2, 1), "d": ()}

    def draw() -> Update:
        return {k: np.asarray(rng.normal(size=s), np.float32) for k, s in shapes.items()}

    return draw(), [draw() for _ in range(num_rows)], rng.integers(1, 99, num_rows).astype(float)
