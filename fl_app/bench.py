"""What the server holds before the first round, and how it measures an adapter.

Model and data are loaded, and what devices download once is made and packed.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from fl_app.allocation import Allocation, allocate
from fl_app.block_times import BlockTimes, block_times, is_scheduled
from fl_app.connections import connect
from fl_app.cut_model import cut_model
from fl_app.data.source import require_columns
from fl_app.emulator_piece import make_emulator
from fl_app.ensemble import Ensemble, ensemble_of
from fl_app.errors import ConfigError
from fl_app.fomo.adapter import Adapter
from fl_app.fomo.backbone import Backbone, load_backbone
from fl_app.fomo.connection_insert import Insertion, gradients_return
from fl_app.fomo.minilm import minilm_path
from fl_app.fomo.pooler import pooler_of, standardise_pooler
from fl_app.gains import Gains
from fl_app.layout.prefix import Layout
from fl_app.material import Material, dealing_columns, load_material
from fl_app.piece import Piece
from fl_app.profiling import server_gains
from fl_app.schema import (
    Config,
    EmulatorDownloadStrategy,
    GradientDownloadStrategy,
    HeadConfig,
    HubModel,
    LocalModel,
    MinilmModel,
    ModelConfig,
    SimulationFederation,
    SizedConfig,
)
from fl_app.seeding import generator
from fl_app.settings import adapter_for, prompted_body, require_peft_fits, split_of, task_for
from fl_app.tasks import Encoded, Task
from fl_app.updates import Update
from strategies.build import build_rule
from strategies.fit import require_fit
from strategies.fit_layouts import say_unused_combine
from strategies.fit_prompts import require_advert_fits

log = logging.getLogger("deft")
_MEASURED_AT_ONCE = 32
"""Public rows per forward pass where statistics are taken."""


@dataclass
class Bench:
    """What the server holds before the first round.

    Attributes:
        config: the run's configuration.
        backbone: the full model.
        piece: what devices download before the first round.
        full: adapter on the full model.
        task: the task.
        test: prepared test rows.
        round_test: the rows measured after each round.
        facts: figures about model and emulator for the report.
        full_link: the neural connection inside the full model; None without one.
        allocation: which block has what size, on the server and on every device.
        ensemble: of soft prompts; None where all devices tune one adapter.
        times: what groups of blocks take devices; None without a schedule.
        allocate_by: makes layouts from gains.
    """

    config: Config
    backbone: Backbone
    piece: Piece
    full: Adapter
    task: Task
    test: Encoded
    round_test: Encoded
    facts: dict[str, Any]
    full_link: Insertion | None = None
    allocation: Allocation = field(default_factory=lambda: Allocation(server={}))
    ensemble: Ensemble | None = None
    times: BlockTimes | None = None
    allocate_by: Callable[[Gains], tuple[Allocation, BlockTimes | None]] | None = None

    def take(self, gains: Gains) -> None:
        """Makes the layouts that waited for devices' gains, and gives them to the adapters."""
        if self.allocate_by is not None:
            self.resize(dict.fromkeys(self.full.layout, 1))
            self.allocation, self.times = self.allocate_by(gains)
            self.resize(self.allocation.server)

    def resize(self, layout: Layout, units: Mapping[int, Sequence[int]] | None = None) -> None:
        """Gives the adapters of full model and emulator a layout; see ``Adapter.resize``."""
        for adapter in (self.full, self.piece.emulated):
            if adapter is not None and layout:
                adapter.resize(layout, units)


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


def prepare(
    config: Config, material: Material | None = None, *, like: Config | None = None
) -> Bench:
    """Loads model and data, and makes what devices download once.

    Args:
        config: the run's configuration.
        material: its data; None loads them.
        like: the run that this one is compared with, whose layouts it has; None for its own.

    Raises:
        DeftError: anything is missing or does not fit.
    """
    torch.set_num_threads(1)  # the same sums whatever the machine is doing
    build_rule(config.strategy.server_rule)  # what is refused is refused before the work
    require_fit(config)
    if like is None:  # what a run is compared with has its devices made equal
        say_unused_combine(config)
    material = material or load_material(config)
    _require_dealing(config, material)
    log.info("loading the foundation model")
    backbone = load_backbone(
        model_source(config.model),
        task=config.model.task,
        labels=material.labels,
        seed=config.seed,
    )
    require_peft_fits(config, backbone.model)
    require_advert_fits(config, backbone.model)
    task = task_for(config, backbone.model, files=backbone.files, labels=backbone.labels)
    public = task.encode(material.public)
    carried = _set_pooler(config, backbone, task, public)
    num_parameters = _count(backbone.model)  # before adapters are put into it
    piece = _piece(config, backbone, task, public, material)
    blocks = tuple(range(piece.split.total))
    full = adapter_for(
        config,
        backbone.model,
        blocks=blocks,
        tuned=piece.split.outer,
        later_tuned=piece.later_tuned,
        carried=carried,
    )
    gains = server_gains(config, full, task, public)
    allocate_by = partial(_allocation, config, like or config, backbone, piece, full)
    allocation, times = allocate_by(gains)
    facts = {
        "name": _name(config.model),
        "num_parameters": num_parameters,
        "num_blocks": piece.split.total,
        **piece.facts,
    }
    _warn_of_one_way(config, full, blocks)
    bench = Bench(
        config=config,
        backbone=backbone,
        piece=piece,
        full=full,
        task=task,
        test=task.encode(material.test),
        round_test=task.encode(_round_rows(config, material)),
        facts=facts,
        full_link=connect(config, full, blocks),
        allocation=allocation,
        ensemble=ensemble_of(config, backbone=backbone, full=full, task=task, public=public),
        times=times,
        allocate_by=allocate_by,
    )
    bench.resize(allocation.server)
    bench.facts["adapter_parameters"] = sum(p.numel() for p in full.parameters.values())
    return bench


def starting_adapter(bench: Bench) -> Update:
    """Returns the adapter of round 0; of all members where there is an ensemble."""
    return bench.full.read() if bench.ensemble is None else bench.ensemble.start()


def _allocation(
    config: Config,
    like: Config,
    backbone: Backbone,
    piece: Piece,
    full: Adapter,
    gains: Gains | None,
) -> tuple[Allocation, BlockTimes | None]:
    """Makes the layouts; a comparison run has those of its run, priced on the run's devices."""
    split = piece.split
    match like.strategy:
        case EmulatorDownloadStrategy(emulator=emulator):
            split = split_of(emulator, backbone.model.config)
    asked = replace(like, peft=config.peft)
    priced: dict[str, Any] = {
        "num_labels": 0 if config.model.task == "causal_lm" else len(backbone.labels),
        "split": split,
    }
    made = allocate(asked, backbone.model.config, adapter=full, gains=gains, **priced)
    shapes = {name: tuple(parameter.shape) for name, parameter in full.parameters.items()}
    times = None
    if is_scheduled(config.strategy) and not made.is_waiting:  # its blocks are not chosen yet
        place: dict[str, Any] = {"shapes": shapes, "server": made.server}
        times = block_times(asked, backbone.model.config, **priced, **place)
    is_uneven = config.federation.classes and times is None  # a schedule cuts by itself
    return made if is_uneven else replace(made, classes={}, class_of={}), times


def _piece(
    config: Config, backbone: Backbone, task: Task, public: Encoded, material: Material
) -> Piece:
    """Makes what devices download before the first round."""
    match config.strategy:
        case EmulatorDownloadStrategy(emulator=settings):
            return make_emulator(config, settings, backbone, task, public, material.digest)
        case GradientDownloadStrategy() as strategy:
            return cut_model(config, strategy, backbone, task, public, material.digest)
        case _:
            raise ConfigError(f"strategy {type(config.strategy).__name__} has no server side")


def _warn_of_one_way(config: Config, full: Adapter, blocks: tuple[int, ...]) -> None:
    """Says so where no gradient will cross the neural connection of an emulator."""
    block = config.connection.block
    match config.strategy, config.peft:
        case EmulatorDownloadStrategy(), HeadConfig() | SizedConfig():
            pass
        case (
            _
        ):  # a soft prompt is in front of every block; gradient download asks for what it wants
            return
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


def _set_pooler(config: Config, backbone: Backbone, task: Task, public: Encoded) -> tuple[str, ...]:
    """Standardises the pooler if asked to; returns the modules that left their checkpoint."""
    if config.model.pooler == "checkpoint":
        return ()
    rows = range(0, len(public), _MEASURED_AT_ONCE)
    standardise_pooler(
        backbone.model,
        (task.batch(public, range(len(public))[i : i + _MEASURED_AT_ONCE]) for i in rows),
        prompted_body(config, backbone.model),
    )
    path = pooler_of(backbone.model)
    return (path,) if path else ()


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
