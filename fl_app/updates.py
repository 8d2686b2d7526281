"""Named float32 arrays: what devices upload and the server combines. NumPy only."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value")
Update = dict[str, NDArray[np.float32]]
"""Arrays by parameter name. An *update* proper is tuned minus received adapter."""
_PART = "member."


def add(
    left: Mapping[str, NDArray[np.float32]], right: Mapping[str, NDArray[np.float32]]
) -> Update:
    """Returns ``left + right``, name by name; what ``right`` leaves out stays as it is.

    Inputs are not changed.
    """
    return {name: left[name] + right[name] if name in right else left[name].copy() for name in left}


def subtract(
    left: Mapping[str, NDArray[np.float32]], right: Mapping[str, NDArray[np.float32]]
) -> Update:
    """Returns ``left - right``, name by name; inputs are not changed."""
    return {name: left[name] - right[name] for name in left}


def travels(name: str, aggregation: str, server_round: int) -> bool:
    """Tells whether a parameter is tuned and sent in a round.

    With ``peft.aggregation=alternate`` LoRA's B is in odd rounds and A in even ones (at the start B
    is 0, and with it A's gradient); every other parameter always is.
    """
    if aggregation != "alternate":
        return True
    return (".lora_A." if server_round % 2 else ".lora_B.") not in name


def layout_hash(update: Mapping[str, NDArray[np.float32]]) -> str:
    """Returns the SHA-256 of names and shapes: equal where adapters fit together."""
    layout = [(name, list(update[name].shape), "float32") for name in sorted(update)]
    return hashlib.sha256(json.dumps(layout).encode()).hexdigest()


def travelling(
    adapter: Mapping[str, NDArray[np.float32]], aggregation: str, server_round: int
) -> Update:
    """Returns the parameters that are tuned and sent in a round; see ``travels``."""
    return {n: array for n, array in adapter.items() if travels(n, aggregation, server_round)}


def blob_bytes(shapes: Mapping[str, Sequence[int]]) -> int:
    """Returns the bytes of ``fl_app.records.to_blob`` for float32 arrays of these shapes."""
    header, end = {}, 0
    for name in sorted(shapes):
        start, end = end, end + 4 * math.prod(shapes[name])
        place = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [start, end]}
        header[name] = place
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + end


def is_finite(update: Mapping[str, NDArray[np.float32]]) -> bool:
    """Tells whether no entry is NaN or infinite."""
    return all(bool(np.isfinite(array).all()) for array in update.values())


def num_reals(update: Mapping[str, NDArray[np.float32]]) -> int:
    """Returns the number of reals q of an update."""
    return sum(array.size for array in update.values())


def stack(rows: Sequence[Mapping[str, NDArray[np.float32]]]) -> NDArray[np.float32]:
    """Returns updates as rows [num_updates, num_params], arrays in the order of their names."""
    return np.stack([np.concatenate([row[name].ravel() for name in sorted(row)]) for row in rows])


def unstack(row: NDArray[np.float32], like: Mapping[str, NDArray[np.float32]]) -> Update:
    """Inverts one row of ``stack``; ``like`` gives names and shapes."""
    names = sorted(like)
    ends = np.cumsum([like[name].size for name in names])
    parts = np.split(row, ends[:-1])
    return {name: part.reshape(like[name].shape) for name, part in zip(names, parts, strict=True)}


def join(parts: Sequence[Mapping[str, NDArray[np.float32]]]) -> Update:
    """Returns several adapters as one, their names led by ``member.<index>/``.

    A single adapter comes back under its own names.
    """
    if len(parts) == 1:
        return dict(parts[0])
    return {f"{_PART}{i}/{name}": part[name] for i, part in enumerate(parts) for name in part}


def by_part(joined: Mapping[str, Value]) -> list[dict[str, Value]]:
    """Returns what belongs to each of several joined adapters, under the joint names."""
    parts: dict[str, dict[str, Value]] = {}
    for name, value in joined.items():
        parts.setdefault(name.removesuffix(own_name(name)), {})[name] = value
    return list(parts.values())


def own_name(name: str) -> str:
    """Returns a parameter's name without what ``join`` puts before it."""
    return name.rpartition("/")[2] if name.startswith(_PART) else name


def split(joined: Mapping[str, NDArray[np.float32]], num_parts: int) -> list[Update]:
    """Inverts ``join``."""
    if num_parts == 1:
        return [dict(joined)]
    leads = [f"{_PART}{i}/" for i in range(num_parts)]
    return [
        {n.removeprefix(lead): a for n, a in joined.items() if n.startswith(lead)} for lead in leads
    ]
