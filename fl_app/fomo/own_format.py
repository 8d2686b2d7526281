"""Adapters that PEFT has no kind for, as files: a JSON description and safetensors.

``adapter_config.json`` names the kind and its settings, the blocks, and which modules are saved in
full. ``adapter_model.safetensors`` has everything by the names of the full model, led by
``base_model.model.`` as in PEFT's files. ``fl_app.fomo.load_adapter`` reads both.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fl_app.errors import ModelError
from fl_app.fomo.bottleneck import BottleneckSpec
from fl_app.fomo.deep_prompt import DeepPromptSpec
from fl_app.layout.prefix import Layout

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FORMAT = "deft-adapter/1"
LEAD = "base_model.model."
OwnSpec = BottleneckSpec | DeepPromptSpec
KINDS: dict[str, type[OwnSpec]] = {"bottleneck": BottleneckSpec, "deep_prompt": DeepPromptSpec}
"""Name in a file to what it describes."""


def save_own(
    folder: Path,
    spec: OwnSpec,
    *,
    layout: Layout,
    tuned: Mapping[str, torch.Tensor],
    model: Any,
    heads: Sequence[str],
    carried: Sequence[str],
) -> None:
    """Writes an adapter; equal adapters are equal files.

    Args:
        folder: where to; made if needed.
        spec: what it is.
        layout: size of every block that can have one.
        tuned: the tuned parameters by canonical name.
        model: the bare ``transformers`` model, for what is carried.
        heads: names of the modules tuned in full.
        carried: names of frozen modules that are not as in the checkpoint.
    """
    names = {kind: name for name, kind in KINDS.items()}
    config = {
        "format": FORMAT,
        "kind": names[type(spec)],
        "settings": asdict(spec),
        "blocks": list(layout),
        "heads": list(heads),
        "carried": list(carried),
        "base_model_name_or_path": model.name_or_path,
    }
    state = dict(tuned) | {
        f"{LEAD}{module}.{name}": tensor
        for module in carried
        for name, tensor in model.get_submodule(module).state_dict().items()
    }
    tensors = {name: state[name].detach().contiguous() for name in sorted(state)}
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text, encoding="utf-8")


def read_own(folder: Path) -> tuple[dict[str, Any], OwnSpec, dict[str, torch.Tensor]]:
    """Reads what ``save_own`` wrote: the description, what it describes, and the tensors by name.

    Raises:
        ModelError: a file is missing or damaged, or of another format.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"'{folder}' holds no adapter: {error}; give a folder that a run left as adapter/"
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"'{folder}': {CONFIG} is damaged (no object); save it again")
    if "peft_type" in config:
        raise ModelError(
            f"'{folder}' holds an adapter of PEFT (peft_type={config['peft_type']}); load it with "
            "peft.PeftModel.from_pretrained"
        )
    given, kind = config.get("format"), config.get("kind")
    if given != FORMAT or kind not in KINDS:
        raise ModelError(
            f"'{folder}': format={given!r} kind={kind!r} is unknown; this version reads {FORMAT} "
            f"of the kinds {', '.join(KINDS)}"
        )
    try:
        return config, KINDS[kind](**config["settings"]), tensors
    except (KeyError, TypeError) as error:
        raise ModelError(f"'{folder}': {CONFIG} is damaged ({error}); save it again") from error
