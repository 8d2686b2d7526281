"""What prompts a model takes; everything else is refused with a reason and never repaired."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fl_app.fomo.backbone import Backbone, head_modules, num_positions
from fl_app.fomo.soft_prompt import token_table
from fl_app.prompts.errors import PromptError
from fl_app.prompts.member import Member
from fl_app.updates import is_finite

_LEAD = "base_model.model."
_CONFIG = "config.json"
_FRAMING_BYTES = 2**16


@dataclass(frozen=True)
class Fit:
    """What prompts one model takes.

    Attributes:
        model_hash: see ``model_hash``.
        tokenizer_hash: see ``tokenizer_hash``.
        width: d.
        max_tokens: longest prompt, in virtual tokens.
        max_row_norm: largest Euclidean norm of one virtual token.
        head_shapes: shapes of the head's parameters; a member has all of them or none.
        max_head_norm: largest Euclidean norm of one parameter of the head. It keeps logits finite;
            a head that is merely loud passes.
    """

    model_hash: str
    tokenizer_hash: str
    width: int
    max_tokens: int
    max_row_norm: float
    head_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    max_head_norm: float = 1e4

    @property
    def max_bytes(self) -> int:
        """Length of the longest packed prompt that could fit, in float32, framing included."""
        head = sum(int(np.prod(shape)) for shape in self.head_shapes.values())
        return 4 * (self.max_tokens * self.width + head) + _FRAMING_BYTES

    def require(self, member: Member) -> None:
        """Checks a member.

        Raises:
            PromptError: ``wrong-model``, ``wrong-tokenizer``, ``wrong-width``, ``too-long``,
                ``wrong-head``, ``not-finite`` or ``huge-norm``.
        """
        card = member.card
        if card.model_hash != self.model_hash:
            raise PromptError(
                "wrong-model",
                f"the prompt was tuned on model {card.model_hash[:12]}, this is "
                f"{self.model_hash[:12]}; project it, or tune anew",
            )
        if card.tokenizer_hash != self.tokenizer_hash:
            raise PromptError(
                "wrong-tokenizer",
                f"the prompt was tuned with tokenizer {card.tokenizer_hash[:12]}, this is "
                f"{self.tokenizer_hash[:12]}; tune anew",
            )
        if member.width != self.width:
            raise PromptError(
                "wrong-width", f"the prompt is {member.width} wide, the model {self.width}"
            )
        if not 1 <= member.num_tokens <= self.max_tokens:
            raise PromptError(
                "too-long",
                f"the prompt has {member.num_tokens} virtual tokens, allowed are 1 to "
                f"{self.max_tokens}; shorten it",
            )
        shapes = {name: array.shape for name, array in member.head.items()}
        if shapes and shapes != dict(self.head_shapes):
            raise PromptError(
                "wrong-head", f"the head is {shapes}, the model's is {dict(self.head_shapes)}"
            )
        if not is_finite(member.arrays()):
            raise PromptError("not-finite", "the prompt or its head holds NaN or infinity")
        largest = float(np.linalg.norm(member.prompt.astype(np.float64), axis=1).max())
        if largest > self.max_row_norm:
            raise PromptError(
                "huge-norm",
                f"a virtual token has norm {largest:.4g}, allowed is {self.max_row_norm:.4g}",
            )
        for name, array in member.head.items():
            if (norm := float(np.linalg.norm(array.astype(np.float64)))) > self.max_head_norm:
                raise PromptError(
                    "huge-norm",
                    f"the head's {name} has norm {norm:.4g}, allowed is {self.max_head_norm:.4g}",
                )


def fit_of(
    backbone: Backbone, *, max_length: int, max_tokens: int = 100, norm_ratio: float = 100.0
) -> Fit:
    """Reads off a model what prompts it takes.

    Args:
        backbone: the model with its tokenizer's files.
        max_length: tokens of the longest text; where positions are learned, prompt and text have
            to share them.
        max_tokens: longest prompt allowed anyway.
        norm_ratio: largest norm of a virtual token over that of the longest token embedding, and
            of a head's parameter over that of the model's own, or over 1 where that is smaller.

    Raises:
        ModelError: the model takes no soft prompt.
    """
    model = backbone.model
    table = token_table(model).weight.detach()
    heads = head_modules(model, backbone.task)
    positions = num_positions(model.config)
    own = {
        f"{_LEAD}{head}.{name}": parameter.detach()
        for head in heads
        for name, parameter in model.get_submodule(head).named_parameters()
    }
    return Fit(
        model_hash=model_hash(model, heads),
        tokenizer_hash=tokenizer_hash(backbone.files),
        width=int(table.shape[1]),
        max_tokens=max_tokens if positions is None else min(max_tokens, positions - max_length),
        max_row_norm=norm_ratio * float(table.double().norm(dim=1).max()),
        head_shapes={name: tuple(parameter.shape) for name, parameter in own.items()},
        max_head_norm=norm_ratio
        * max([1.0, *(float(one.double().norm()) for one in own.values())]),
    )


def model_hash(model: Any, heads: tuple[str, ...]) -> str:
    """Returns the SHA-256 of all weights but those of the heads: prompts bring their own head."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.split(".")[0] in heads:
            continue
        array = tensor.detach().cpu().numpy()
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def tokenizer_hash(files: Mapping[str, str]) -> str:
    """Returns the SHA-256 of the tokenizer's files by name; the model's configuration is none."""
    content = {name: text for name, text in files.items() if name != _CONFIG}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
