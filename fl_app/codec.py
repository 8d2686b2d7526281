"""Features in fewer bytes: half precision, or 8-bit integers by stochastic rounding."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import WireError

CODECS = ("float32", "float16", "int8")
_LEVELS = 127
_F32 = np.finfo(np.float32)


def squeeze(
    array: NDArray[np.float32], how: str, rng: np.random.Generator, *, name: str = "features"
) -> dict[str, NDArray[Any]]:
    """Codes one array for the wire.

    ``int8`` gives every row (last axis) one float32 scale, max |x| / 127, and rounds x / scale up
    with the probability that makes the decoded value right on average (QSGD, Alistarh et al. 2017,
    arXiv:1610.02132); an entry moves by less than one scale. ``float16`` rounds to nearest.

    Args:
        array: [..., width] float32; not changed.
        how: one of ``CODECS``.
        rng: draws the roundings of ``int8``; the others leave it alone.
        name: names the array in errors.

    Returns:
        ``values`` for the float codecs; ``codes`` int8 [..., width] and ``scale`` float32
        [..., 1] for ``int8``.

    Raises:
        WireError: ``wrong-dtype``, ``not-finite`` (``float16`` and ``int8`` only), ``overflow``
            (beyond 65504 in ``float16``), or ``unknown-codec``.
    """
    if array.dtype != np.float32:
        raise WireError("wrong-dtype", f"'{name}' is {array.dtype.name}, must be float32")
    match how:
        case "float32":
            return {"values": array.copy()}
        case "float16":
            return {"values": _half(_finite(array, name), name)}
        case "int8":
            return _integers(_finite(array, name), rng)
        case _:
            raise _unknown(how)


def restore(
    parts: Mapping[str, NDArray[Any]], how: str, *, name: str = "features"
) -> NDArray[np.float32]:
    """Decodes what ``squeeze`` returned for the same ``how``.

    Returns:
        [..., width] float32, a new array.

    Raises:
        WireError: ``missing`` (other names), ``wrong-dtype``, ``wrong-shape`` or
            ``unknown-codec``.
    """
    match how:
        case "float32" | "float16":
            _require(parts, {"values": how}, name)
            return parts["values"].astype(np.float32)
        case "int8":
            _require(parts, {"codes": "int8", "scale": "float32"}, name)
            codes, scale = parts["codes"], parts["scale"]
            if codes.ndim == 0 or scale.shape != (*codes.shape[:-1], 1):
                raise WireError(
                    "wrong-shape", f"'{name}': scale {scale.shape} fits not codes {codes.shape}"
                )
            # 127 times a scale that was rounded up may lie just beyond float32.
            values = np.clip(codes.astype(np.float64) * scale, _F32.min, _F32.max)
            return np.asarray(values, dtype=np.float32)
        case _:
            raise _unknown(how)


def relative_error(array: NDArray[Any], restored: NDArray[Any]) -> float:
    """Returns ||restored - array|| / ||array|| over all entries; 0 if both are 0.

    Raises:
        WireError: ``wrong-shape``, the shapes differ.
    """
    if array.shape != restored.shape:
        raise WireError("wrong-shape", f"restored {restored.shape}, original {array.shape}")
    wide = array.astype(np.float64)
    error = float(np.linalg.norm(restored.astype(np.float64) - wide))
    size = float(np.linalg.norm(wide))
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / size


def _half(array: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise WireError(
            "overflow",
            f"'{name}' holds {float(np.abs(array).max()):.4g}, beyond 65504 of float16; send it as "
            "float32 or int8",
        )
    return half


def _integers(array: NDArray[np.float32], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    if array.ndim == 0:
        raise WireError("wrong-shape", "int8 needs rows: at least one axis; use float32")
    wide = array.astype(np.float64)
    peak = np.abs(wide).max(axis=-1, keepdims=True, initial=0.0)
    scale = (peak / _LEVELS).astype(np.float32)
    # Rounded up where it was rounded down: clipping the largest entry would bias it.
    short = scale.astype(np.float64) * _LEVELS < peak
    scale = np.where(short, np.nextafter(scale, np.float32(np.inf)), scale)
    level = wide / np.where(scale > 0, scale, 1).astype(np.float64)
    floor = np.floor(level)
    codes = floor + (rng.random(array.shape) < level - floor)
    return {"codes": codes.astype(np.int8), "scale": scale}


def _finite(array: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    if not np.isfinite(array).all():
        raise WireError("not-finite", f"'{name}' holds NaN or infinity, which has no code")
    return array


def _require(parts: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str], name: str) -> None:
    if set(parts) != set(dtypes):
        raise WireError("missing", f"'{name}' has parts {sorted(parts)}, needs {sorted(dtypes)}")
    given = {part: array.dtype.name for part, array in parts.items()}
    if given != dtypes:
        raise WireError("wrong-dtype", f"'{name}': got {given}, expected {dict(dtypes)}")


def _unknown(how: str) -> WireError:
    return WireError("unknown-codec", f"codec {how!r} must be one of {', '.join(CODECS)}")
