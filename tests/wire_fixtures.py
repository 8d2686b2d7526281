"""A small adapter, the orders that carry it, and Flower's identity, without which none is made."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_app import wire
from fl_app.client_app import app
from fl_app.local_grid import FIRST_NODE_ID, LocalGrid
from fl_app.records import blob_record, to_blob
from fl_app.updates import Update

NODE = FIRST_NODE_ID
cases = settings(derandomize=True, deadline=None, max_examples=30)

_names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12)
_arrays = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    elements=st.floats(width=32, allow_nan=False),
)
updates = st.dictionaries(_names, _arrays, min_size=1, max_size=4)


@pytest.fixture(autouse=True, scope="module")
def flower_process() -> Iterator[None]:
    """Flower's messages need the identity its own processes have."""
    with LocalGrid(app, num_nodes=1, run_config={}):
        yield


def small_update() -> Update:
    """Returns two float32 arrays of random values, their names not in order."""
    rng = np.random.default_rng(0)
    return {
        "b": rng.normal(size=(2, 3)).astype(np.float32),
        "a": rng.normal(size=(4,)).astype(np.float32),
    }


def small_order(**changes: Any) -> wire.Order:
    """Returns an order of round 3 to device 7, with changes."""
    fields: dict[str, Any] = {
        "round": 3,
        "device": 7,
        "num_devices": 10,
        "model_hash": "0" * 64,
        "adapter": small_update(),
        "emulator": None,
        "proximal_mu": 0.25,
    }
    return wire.Order(**{**fields, **changes})


def message_of(order: wire.Order) -> Message:
    """Returns an order as it is sent."""
    return wire.order_message(order, NODE, blob_record(to_blob(order.adapter)))


def same_bits(left: Update, right: Update) -> bool:
    """Says whether names, types, shapes and bytes are equal."""
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype
        and left[k].shape == right[k].shape
        and left[k].tobytes() == right[k].tobytes()
        for k in left
    )
