"""Builds, aligns and packs the emulator."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from fl_app.connections import connect
from fl_app.errors import ConfigError
from fl_app.finetune import local_batches
from fl_app.fomo.backbone import Backbone
from fl_app.fomo.compress import Compression
from fl_app.fomo.distil import Distillation, distil
from fl_app.fomo.emulator import Split, build_emulator
from fl_app.fomo.package import EmulatorPackage, pack, unpack
from fl_app.piece import Piece
from fl_app.schema import Config, EmulatorConfig
from fl_app.seeding import generator
from fl_app.settings import adapter_for, split_of
from fl_app.tasks import Encoded, Task

log = logging.getLogger("deft")


def make_emulator(
    config: Config,
    settings: EmulatorConfig,
    backbone: Backbone,
    task: Task,
    public: Encoded,
    data_digest: str,
) -> Piece:
    """Makes the emulator devices download.

    Args:
        config: the run's configuration.
        settings: split and compression.
        backbone: the full model, not wrapped yet.
        task: its task.
        public: rows to align on.
        data_digest: hash of the training rows.

    Raises:
        DeftError: the split does not fit, or there are no public rows to align on.
    """
    split = split_of(settings, backbone.model.config)
    student = build_emulator(backbone.model, backbone.task, split)
    losses = _distil(config, settings, backbone, student, split, task, public)
    how = Compression(sparsity=settings.sparsity, bits=settings.bits)
    sketch = EmulatorPackage(
        student,
        split,
        backbone.task,
        backbone.labels,
        backbone.files,
        class_shares=task.class_shares(public),
        data_digest=data_digest,
    )
    blob = pack(sketch, how, settings.wire_dtype)
    emulator = unpack(blob).model  # measure what devices get, not what it was made from
    facts = {
        "split": str(split),
        "emulator_blocks": list(split.blocks),
        "emulator_parameters": sum(p.numel() for p in emulator.parameters()),
        "emulator_blob_bytes": len(blob),
        "distillation_loss": losses[-1] if losses else None,
    }
    emulated = adapter_for(config, emulator, blocks=split.blocks, tuned=split.outer)
    return Piece(
        blob=blob,
        split=split,
        facts=facts,
        emulated=emulated,
        emulated_link=connect(config, emulated, split.blocks),
    )


def _distil(
    config: Config,
    settings: EmulatorConfig,
    backbone: Backbone,
    student: Any,
    split: Split,
    task: Task,
    public: Encoded,
) -> list[float]:
    """Aligns the emulator on public data, if asked to."""
    wanted = settings.distil
    if wanted.steps == 0 or split.is_identity:
        return []
    if len(public) == 0:
        raise ConfigError(
            f"strategy.emulator.distil.steps={wanted.steps} needs public data; set "
            "data.public_fraction above 0"
        )
    log.info("distilling the emulator on %d public rows", len(public))
    order = local_batches(
        public,
        batch_size=wanted.batch_size,
        epochs=1 + wanted.steps * wanted.batch_size // len(public),
        rng=generator(config.seed, "distil"),
    )
    loss: Callable[[Any, Any], torch.Tensor] | None = None
    if backbone.task == "causal_lm" and wanted.lm_weight > 0:
        loss = task.loss
    return distil(
        backbone.model,
        student,
        split,
        (task.batch(public, indices) for indices in order),
        loss,
        Distillation(
            lr=wanted.lr,
            lm_weight=wanted.lm_weight,
            kd_weight=wanted.kd_weight,
            steps=wanted.steps,
        ),
    )
