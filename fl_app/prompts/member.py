"""A member of an ensemble: a soft prompt, the head tuned with it, and where both come from."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.prompts.errors import PromptError
from fl_app.updates import Update


@dataclass(frozen=True)
class Card:
    """Where a prompt comes from, as its origin states it.

    Attributes:
        model_hash: of the frozen model it was tuned on, see ``fit.model_hash``.
        tokenizer_hash: of the tokenizer, see ``fit.tokenizer_hash``.
        device: partition id of the device that tuned it, >= 0.
        task: a name, 1 to 100 characters.
        round: the round after which it was read, >= 0.
        validation_loss: nats, >= 0, measured by the origin; a claim. None if not measured.
    """

    model_hash: str
    tokenizer_hash: str
    device: int
    task: str
    round: int
    validation_loss: float | None = None

    def __post_init__(self) -> None:
        """Raises PromptError ``bad-card`` where a field is out of range."""
        loss = self.validation_loss
        checks = {
            "device": self.device >= 0,
            "task": 1 <= len(self.task) <= 100,
            "round": self.round >= 0,
            "validation_loss": loss is None or 0.0 <= loss < float("inf"),
        }
        for name, is_right in checks.items():
            if not is_right:
                raise PromptError(
                    "bad-card",
                    f"{name}={getattr(self, name)!r}; counts and losses are finite and "
                    ">= 0, a task's name has 1 to 100 characters",
                )

    def age(self, now_round: int) -> int:
        """Returns the rounds since it was read, 0 for one that claims to come from the future."""
        return max(now_round - self.round, 0)


@dataclass(frozen=True, eq=False)
class Member:
    """One soft prompt with its head.

    Attributes:
        prompt: [m, width] float32, m >= 0. Without any token and without head it stands for the
            model as it is.
        card: where it comes from.
        head: the head's parameters by their name in an adapter; empty where there is no head, or
            all members share the model's own.

    The arrays are copied and cannot be written to.

    Raises:
        PromptError: ``wrong-shape`` or ``wrong-dtype``.
    """

    prompt: NDArray[np.float32]
    card: Card
    head: Update = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Copies and checks the arrays."""
        if self.prompt.ndim != 2:
            raise PromptError("wrong-shape", f"a prompt is [m, width], got {self.prompt.shape}")
        object.__setattr__(self, "prompt", _frozen(self.prompt, "prompt"))
        head = {name: _frozen(self.head[name], name) for name in sorted(self.head)}
        object.__setattr__(self, "head", head)

    @property
    def num_tokens(self) -> int:
        """Virtual tokens m."""
        return int(self.prompt.shape[0])

    @property
    def width(self) -> int:
        """Width d of the model it was made for."""
        return int(self.prompt.shape[1])

    @property
    def num_bytes(self) -> int:
        """Bytes of prompt and head in float32, without any framing."""
        return 4 * (self.prompt.size + sum(array.size for array in self.head.values()))

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of prompt and head, names and shapes included; the card does not matter."""
        arrays = self.arrays()
        layout = [(name, list(arrays[name].shape)) for name in sorted(arrays)]
        digest = hashlib.sha256(json.dumps(layout).encode())
        for name in sorted(arrays):
            digest.update(arrays[name].tobytes())
        return digest.hexdigest()

    def arrays(self) -> Update:
        """Returns copies of prompt and head as an adapter names them, for ``Adapter.write``."""
        named = {PROMPT_NAME: self.prompt, **self.head}
        return {name: array.copy() for name, array in named.items()}


def member_of(arrays: Update, card: Card) -> Member:
    """Makes a member of what ``Adapter.read`` gives with ``peft=prompt``.

    Raises:
        PromptError: ``missing``, there is no prompt among the arrays.
    """
    if PROMPT_NAME not in arrays:
        raise PromptError(
            "missing", f"no '{PROMPT_NAME}' among {sorted(arrays)[:4]}; tune with peft=prompt"
        )
    head = {name: array for name, array in arrays.items() if name != PROMPT_NAME}
    return Member(arrays[PROMPT_NAME], card, head)


def _frozen(array: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    if array.dtype != np.float32:
        raise PromptError("wrong-dtype", f"'{name}' is {array.dtype.name}, must be float32")
    copy = np.array(array, order="C")
    copy.flags.writeable = False
    return copy
