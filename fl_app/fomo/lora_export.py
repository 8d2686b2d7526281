"""A saved LoRA adapter for servers that ignore ``rank_pattern`` (vLLM, for one)."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from fl_app.layout.prefix import unit_axis

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def export_padded(source: Path, folder: Path) -> None:
    """Writes a saved adapter again with one rank for all maps and scale 1.

    Factors are padded with zeros to the greatest rank r, and B takes its map's scale alpha_l / r_l;
    with ``lora_alpha`` = r the scale that is left is 1. The computed function is the same.

    Args:
        source: a folder that ``Adapter.save`` wrote.
        folder: where to; made if needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = json.loads((source / _CONFIG).read_text(encoding="utf-8"))
    arrays = safetensors.numpy.load_file(source / _WEIGHTS)
    sized = {name: axis for name in arrays if (axis := unit_axis(name)) is not None}
    most = max(arrays[name].shape[axis] for name, axis in sized.items())
    for name, axis in sized.items():
        array: NDArray[np.float32] = arrays[name]
        rank = array.shape[axis]
        if axis == 1:
            array = array * np.float32(_alpha(config, name) / rank)
        spare = [(0, 0), (0, 0)]
        spare[axis] = 0, most - rank
        arrays[name] = np.pad(array, spare)
    config |= {"r": most, "lora_alpha": most, "rank_pattern": {}, "alpha_pattern": {}}
    safetensors.numpy.save_file(arrays, folder / _WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / _CONFIG).write_text(text, encoding="utf-8")
    if (source / "README.md").is_file():
        shutil.copyfile(source / "README.md", folder / "README.md")


def _alpha(config: dict[str, Any], name: str) -> float:
    """Returns the numerator of a map's scale."""
    patterns: dict[str, float] = config["alpha_pattern"]
    path = name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
    return float(patterns.get(path, config["lora_alpha"]))
