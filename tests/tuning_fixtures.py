"""Settings of local tuning that take two plain steps; tests change what matters to them."""

from typing import Any

from fl_app.finetune import LocalTuning


def tuning_of(**changes: Any) -> LocalTuning:
    """Returns two steps on batches of four, without decay, adjustment or pull, with changes."""
    plain: dict[str, Any] = {
        "epochs": 1,
        "max_steps": 2,
        "batch_size": 4,
        "lr": 0.01,
        "head_lr": 0.01,
        "lr_final": 1.0,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "logit_adjustment": 0.0,
        "proximal_mu": 0.0,
    }
    return LocalTuning(**(plain | changes))
