"""What the three tasks do differently: preparing inputs, the loss, and the measure of success."""

from typing import Any

from fl_app.errors import ModelError
from fl_app.tasks.base import Batch, Columns, Encoded, Goal, LossFunction, Task
from fl_app.tasks.classification import (
    Classification,
    ImageClassification,
    SequenceClassification,
)
from fl_app.tasks.language import IGNORED, CausalLm

__all__ = [
    "IGNORED",
    "KINDS",
    "Batch",
    "CausalLm",
    "Columns",
    "Encoded",
    "Goal",
    "LossFunction",
    "Task",
    "build_task",
]

KINDS: dict[str, type[Classification] | type[CausalLm]] = {
    "sequence_classification": SequenceClassification,
    "causal_lm": CausalLm,
    "image_classification": ImageClassification,
}
"""Names of tasks to their classes; what they measure is known before anything is loaded."""


def build_task(
    task: str,
    *,
    files: dict[str, str],
    labels: tuple[str, ...],
    columns: Columns,
    max_length: int,
    model_config: Any,
    overall_shares: tuple[float, ...] = (),
) -> Task:
    """Turns the name of a task into its object.

    Args:
        task: a key of ``KINDS``.
        files: tokenizer or preprocessor files by name.
        labels: class names in the order of the logits.
        columns: where a row keeps what.
        max_length: longest input in tokens.
        model_config: the model's ``transformers`` configuration.
        overall_shares: share of each class over all devices, if known; see
            ``Classification.local_loss``.

    Raises:
        ModelError: unknown task.
    """
    match task:
        case "sequence_classification":
            return SequenceClassification(
                files=files,
                labels=labels,
                columns=columns,
                max_length=max_length,
                overall_shares=overall_shares,
            )
        case "causal_lm":
            return CausalLm(
                files=files,
                columns=columns,
                max_length=max_length,
                is_encoder_decoder=bool(model_config.is_encoder_decoder),
            )
        case "image_classification":
            return ImageClassification(
                files=files,
                labels=labels,
                columns=columns,
                image_size=model_config.image_size,
                overall_shares=overall_shares,
            )
        case _:
            raise ModelError(f"model.task={task!r} is unknown")
