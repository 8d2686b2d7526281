"""What the server holds before the first round, and how it measures an adapter.

Model and data are loaded, the emulator is built, aligned and packed; after that only adapters move.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fl_app.data.source import require_columns
from fl_app.errors import ConfigError
from fl_app.evaluate import evaluate
from fl_app.finetune import local_batches
from fl_app.fomo.adapter import Adapter
from fl_app.fomo.backbone import Backbone, load_backbone, require_length
from fl_app.fomo.compress import Compression
from fl_app.fomo.connection_insert import Insertion, gradients_return
from fl_app.fomo.distil import Distillation, distil
from fl_app.fomo.emulator import Split, build_emulator
from fl_app.fomo.minilm import minilm_path
from fl_app.fomo.package import EmulatorPackage, pack, unpack
from fl_app.fomo.pooler import pooler_of, standardise_pooler
from fl_app.material import Material, dealing_columns, load_material
from fl_app.schema import (
    Config,
    EmulatorConfig,
    EmulatorDownloadStrategy,
    HubModel,
    LocalModel,
    MinilmModel,
    ModelConfig,
    SimulationFederation,
)
from fl_app.seeding import generator
from fl_app.settings import adapter_for, connect, split_of, task_for
from fl_app.tasks import Encoded, Task
from fl_app.updates import Update
from strategies.build import build_rule, require_fit

log = logging.getLogger("deft")
_MEASURED_AT_ONCE = 32
"""Public rows per forward pass where statistics are taken."""


@dataclass
class Bench:
    """What the server holds before the first round.

    Attributes:
        config: the run's configuration.
        backbone: the full model.
        split: which blocks the emulator holds.
        blob: the packed emulator, as it crosses the wire.
        full: adapter on the full model.
        emulated: adapter on the emulator exactly as devices unpack it.
        task: the task.
        test: prepared test rows.
        round_test: the rows measured after each round.
        facts: figures about model and emulator for the report.
        full_link: the neural connection inside the full model; None without one.
        emulated_link: the same inside the emulator.
    """

    config: Config
    backbone: Backbone
    split: Split
    blob: bytes
    full: Adapter
    emulated: Adapter
    task: Task
    test: Encoded
    round_test: Encoded
    facts: dict[str, Any]
    full_link: Insertion | None = None
    emulated_link: Insertion | None = None


def model_source(model: ModelConfig) -> str:
    """Returns what ``from_pretrained`` is given."""
    match model:
        case MinilmModel():
            return str(minilm_path())
        case LocalModel():
            return model.path
        case HubModel():
            return model.name
        case _:
            raise ConfigError(f"model of type {type(model).__name__} has no source")


def prepare(config: Config, material: Material | None = None) -> Bench:
    """Loads model and data, builds and packs the emulator.

    Raises:
        DeftError: anything is missing or does not fit.
    """
    torch.set_num_threads(1)  # the same sums whatever the machine is doing
    settings = emulator_settings(config)
    build_rule(config.strategy.server_rule)  # what is refused is refused before the work
    require_fit(config)
    material = material or load_material(config)
    _require_dealing(config, material)
    log.info("loading the foundation model")
    backbone = load_backbone(
        model_source(config.model),
        task=config.model.task,
        labels=material.labels,
        seed=config.seed,
    )
    require_length(backbone.model.config, config.model.max_length)
    task = task_for(config, backbone.model, files=backbone.files, labels=backbone.labels)
    public = task.encode(material.public)
    carried = _set_pooler(config, backbone, task, public)
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
        data_digest=material.digest,
    )
    blob = pack(sketch, how, settings.wire_dtype)
    emulator = unpack(blob).model  # measure what devices get, not what it was made from
    facts = {
        "name": _name(config.model),
        "num_parameters": _count(backbone.model),
        "num_blocks": split.total,
        "split": str(split),
        "emulator_blocks": list(split.blocks),
        "emulator_parameters": _count(emulator),
        "emulator_blob_bytes": len(blob),
        "distillation_loss": losses[-1] if losses else None,
    }
    blocks = tuple(range(split.total))
    full = adapter_for(config, backbone.model, blocks=blocks, split=split, carried=carried)
    emulated = adapter_for(config, emulator, blocks=split.blocks, split=split)
    _warn_of_one_way(config, full, blocks)
    facts["adapter_parameters"] = sum(p.numel() for p in full.parameters.values())
    return Bench(
        config=config,
        backbone=backbone,
        split=split,
        blob=blob,
        full=full,
        emulated=emulated,
        task=task,
        test=task.encode(material.test),
        round_test=task.encode(_round_rows(config, material)),
        facts=facts,
        full_link=connect(config, full, blocks),
        emulated_link=connect(config, emulated, split.blocks),
    )


def _warn_of_one_way(config: Config, full: Adapter, blocks: tuple[int, ...]) -> None:
    """Says so where no gradient will cross the neural connection."""
    block = config.connection.block
    if block is not None and not gradients_return(full.bare_model, block=block, blocks=blocks):
        log.warning(
            "connection.block=%d: nothing in front of it is tuned, so no gradient returns over the "
            "air; strategy.emulator.left and right say which blocks are tuned",
            block,
        )


def _require_dealing(config: Config, material: Material) -> None:
    """Deals the rows once, for what is refused here would be refused on every device."""
    match config.federation:
        case SimulationFederation():
            require_columns(material.train, dealing_columns(config))
            _ = material.partition


def measure_plug_in(bench: Bench, adapter: Update, rows: Encoded) -> float:
    """Measures an adapter plugged into the full model, through its connection if it has one."""
    bench.full.write(adapter)
    if bench.full_link is not None:
        bench.full_link.measure()
    return evaluate(bench.full.model, bench.task, rows)


def measure_emulator(bench: Bench, adapter: Update, rows: Encoded) -> float:
    """Measures an adapter on the emulator, as a device would see it."""
    bench.emulated.write(adapter)
    if bench.emulated_link is not None:
        bench.emulated_link.measure()
    return evaluate(bench.emulated.model, bench.task, rows)


def emulator_settings(config: Config) -> EmulatorConfig:
    """Returns the emulator's settings."""
    match config.strategy:
        case EmulatorDownloadStrategy(emulator=settings):
            return settings
        case _:
            raise ConfigError(f"strategy {type(config.strategy).__name__} has no emulator")


def _set_pooler(config: Config, backbone: Backbone, task: Task, public: Encoded) -> tuple[str, ...]:
    """Standardises the pooler if asked to; returns the modules that left their checkpoint."""
    if config.model.pooler == "checkpoint":
        return ()
    rows = range(0, len(public), _MEASURED_AT_ONCE)
    standardise_pooler(
        backbone.model,
        (task.batch(public, range(len(public))[i : i + _MEASURED_AT_ONCE]) for i in rows),
    )
    path = pooler_of(backbone.model)
    return (path,) if path else ()


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


def _round_rows(config: Config, material: Material) -> Any:
    limit = config.strategy.round_test_rows
    if limit is None or limit >= len(material.test):
        return material.test
    order = generator(config.seed, "round-test").permutation(len(material.test))
    return material.test.take(np.sort(order[:limit]))


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _name(model: ModelConfig) -> str:
    match model:
        case MinilmModel():
            return "MiniLM-L6"
        case _:
            return model_source(model).rstrip("/").rsplit("/", maxsplit=1)[-1]
