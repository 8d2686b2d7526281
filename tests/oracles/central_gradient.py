"""Gradients of the whole model on one batch, by plain autograd: nothing is cut, nothing is padded.

The prompt's reference is PEFT's own prompt tuning with its own loss; adapters' is the whole model.
"""

import warnings
from typing import Any

import peft
import torch

from fl_app.fomo.adapter import Adapter

Gradients = dict[str, torch.Tensor]
_KINDS = {
    ("sequence_classification", False): "SEQ_CLS",
    ("causal_lm", False): "CAUSAL_LM",
    ("causal_lm", True): "SEQ_2_SEQ_LM",
}


def prompt_gradient(
    model: Any, task: str, prompt: torch.Tensor, batch: dict[str, torch.Tensor]
) -> tuple[float, Gradients]:
    """Returns PEFT's loss, and its gradient by ``prompt`` [m, d] and by every head weight."""
    config = peft.PromptTuningConfig(
        task_type=_KINDS[task, bool(model.config.is_encoder_decoder)],  # type: ignore[arg-type]
        num_virtual_tokens=len(prompt),
        num_transformer_submodules=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(model, config).eval().to(prompt.dtype)
        with torch.no_grad():
            tuned.prompt_encoder.default.embedding.weight.copy_(prompt)
        loss = tuned(**batch).loss
    loss.backward()
    gradients = {
        name.replace(".modules_to_save.default", "").removeprefix("base_model."): weight.grad
        for name, weight in tuned.named_parameters()
        if weight.grad is not None
    }
    gradients["prompt"] = gradients.pop("prompt_encoder.default.embedding.weight")
    return float(loss.detach()), gradients


def adapter_gradient(adapter: Adapter, loss: Any, batch: dict[str, torch.Tensor]) -> Gradients:
    """Returns the gradient by every tuned parameter of a whole model, by canonical name."""
    loss(adapter.model, batch).backward()
    found = {name: p.grad.clone() for name, p in adapter.parameters.items() if p.grad is not None}
    assert len(found) == len(adapter.parameters)
    return found
