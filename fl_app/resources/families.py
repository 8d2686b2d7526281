"""The table that turns a model's configuration into shapes, one row a family.

``fl_app.fomo.blocks`` says where a loaded model keeps its blocks; this table says how large
they are without loading anything. Tests hold both against real models.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fl_app.resources import gated_shapes, heads, plain_shapes
from fl_app.resources.architecture import Architecture, FamilyRow
from fl_app.resources.errors import ResourceError

_BERT_FIELDS = {"hidden_act": "gelu", "type_vocab_size": 2, "max_position_embeddings": 512}
_LLAMA_FIELDS = {
    "hidden_act": "silu",
    "head_dim": None,
    "num_key_value_heads": None,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
_LLAMA = FamilyRow(gated_shapes.llama, heads.decoder, _LLAMA_FIELDS)
_NEEDS_LABELS = ("bert", "roberta", "distilbert", "vit")

FAMILIES: Mapping[str, FamilyRow] = {
    "bert": FamilyRow(plain_shapes.bert, heads.pooled, _BERT_FIELDS),
    "roberta": FamilyRow(plain_shapes.bert, heads.two_layers, _BERT_FIELDS),
    "distilbert": FamilyRow(
        plain_shapes.distilbert,
        heads.two_layers,
        {"activation": "gelu", "max_position_embeddings": 512},
    ),
    "gpt2": FamilyRow(
        plain_shapes.gpt2,
        heads.decoder,
        {"activation_function": "gelu_new", "n_inner": None, "tie_word_embeddings": True},
    ),
    "opt": FamilyRow(
        plain_shapes.opt,
        heads.decoder,
        {
            "activation_function": "relu",
            "do_layer_norm_before": True,
            "tie_word_embeddings": True,
        },
    ),
    "llama": _LLAMA,
    "mistral": FamilyRow(
        gated_shapes.llama, heads.decoder, _LLAMA_FIELDS | {"num_key_value_heads": 8}
    ),
    "qwen2": _LLAMA,
    "t5": FamilyRow(
        gated_shapes.t5,
        heads.t5,
        {
            "feed_forward_proj": "relu",
            "num_decoder_layers": None,
            "relative_attention_num_buckets": 32,
            "tie_word_embeddings": True,
        },
    ),
    "vit": FamilyRow(
        plain_shapes.vit,
        heads.one_layer,
        {"hidden_act": "gelu", "num_channels": 3, "qkv_bias": True},
    ),
}


def architecture_of(config: Any, *, num_labels: int = 0) -> Architecture:
    """Returns the shapes of a model with its task head.

    Args:
        config: a ``transformers`` configuration, or what ``read_config`` returns.
        num_labels: classes of a classifier, >= 1; 0 for a language model.

    Raises:
        ResourceError: no row for this family, a size or activation that the row does not cover,
            a missing field, or no labels for a family that has no language model.
    """
    model_type = str(config.model_type)
    if model_type not in FAMILIES:
        raise ResourceError(
            f"model type '{model_type}' is not priced; choose one of {sorted(FAMILIES)} "
            "or add a row to fl_app/resources/families.py"
        )
    if num_labels < (model_type in _NEEDS_LABELS):
        raise ResourceError(
            f"num_labels={num_labels}: a {model_type} model is tuned as a classifier; "
            "give 1 or more"
        )
    row = FAMILIES[model_type]
    try:
        return row.read(config, row.head(config, num_labels))
    except AttributeError as error:
        raise ResourceError(
            f"the {model_type} configuration has no field '{error.name}'; add it as transformers "
            "names it"
        ) from error


def read_config(path: Path) -> Any:
    """Reads a model's ``config.json`` without importing torch or transformers.

    Args:
        path: the file, or a folder that holds ``config.json``.

    Returns:
        An object with the file's fields, and the family's defaults for fields it leaves out.

    Raises:
        ResourceError: no such file, no JSON object, or a family without a row.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        model_type = str(fields["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResourceError(
            f"model configuration '{file}' cannot be read ({error!r}); give a config.json with a "
            "model_type, as transformers saves it"
        ) from error
    row = FAMILIES.get(model_type)
    return SimpleNamespace(**((dict(row.defaults) if row else {}) | fields))
