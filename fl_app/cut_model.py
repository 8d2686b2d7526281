"""Cuts the model into the devices' part and the server's for gradient download."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from fl_app.features_wire import FeatureWire
from fl_app.fomo.adapter import Adapter, is_head
from fl_app.fomo.backbone import Backbone
from fl_app.fomo.device_package import DevicePackage, pack_device_part, unpack_device_part
from fl_app.fomo.emulator import Split
from fl_app.fomo.head import Head
from fl_app.fomo.parts import TrunkPart, adopt, build_device_part, build_trunk_part
from fl_app.fomo.trunk import Trunk
from fl_app.piece import Piece
from fl_app.schema import Config, GradientDownloadStrategy
from fl_app.settings import (
    adapter_spec,
    device_parameters,
    gradient_split,
    most_rows_of,
    num_prompt_of,
    task_for,
)
from fl_app.tasks import Encoded, Task
from strategies.feature_reader import FeatureReader
from strategies.feature_server import FeatureServer
from strategies.label_rule import label_rule
from strategies.scalar_server import ScalarServer


def cut_model(
    config: Config,
    strategy: GradientDownloadStrategy,
    backbone: Backbone,
    task: Task,
    public: Encoded,
    data_digest: str,
) -> Piece:
    """Makes the part of the model devices download, and the server of the rest.

    Args:
        config: the run's configuration.
        strategy: its strategy.
        backbone: the full model, not wrapped yet; takes over the rounding of what devices get.
        task: its task.
        public: rows whose class shares devices are told.
        data_digest: hash of the training rows.

    Raises:
        DeftError: the cut does not fit.
    """
    split = gradient_split(strategy, backbone.model.config)
    cut = strategy.cut if strategy.variant == "cut" else 0
    # it shares its weights with the model, so what is adopted below reaches it
    trunk_part = build_trunk_part(backbone.model, backbone.task, cut)
    trunk = Trunk(trunk_part, _trunk_parameters(config, strategy, trunk_part, split))
    package = DevicePackage(
        build_device_part(backbone.model, backbone.task, cut),
        backbone.labels,
        backbone.files,
        class_shares=task.class_shares(public),
        data_digest=data_digest,
        trunk_shapes=trunk.shapes,
    )
    blob = pack_device_part(package, strategy.wire_dtype)
    part = unpack_device_part(blob).part
    adopt(backbone.model, part)
    own = device_parameters(config, strategy, part)
    wire = FeatureWire(strategy.features)
    local = task_for(  # as devices have it, who are told the overall shares
        config,
        backbone.model,
        files=backbone.files,
        labels=backbone.labels,
        overall_shares=package.class_shares,
    )
    tau = config.finetune.logit_adjustment
    settings: dict[str, Any] = {
        "reader": FeatureReader(
            trunk,
            wire=wire,
            num_stacks=part.num_stacks,
            num_prompt=num_prompt_of(config.peft),
            max_rows=most_rows_of(config),
            max_length=None if part.reads_images else config.model.max_length,
            labels=label_rule(backbone.model, backbone.task, with_counts=local.adjusts(tau)),
        ),
        "head": Head(part),
        "head_parameters": {name: p for name, p in own.items() if is_head(name)},
        "task": local,
        "logit_adjustment": tau,
    }
    server: FeatureServer | ScalarServer
    match strategy.variant:
        case "scalar":
            server = ScalarServer(trunk, **settings)
        case _:
            server = FeatureServer(
                trunk,
                wire=wire,
                want=_wanted(strategy),
                num_stacks=part.num_stacks,
                seed=config.seed,
                **settings,
            )
    facts = {
        "variant": strategy.variant,
        "device_blocks": cut,
        "device_parameters": sum(p.numel() for p in part.model.parameters()),
        "device_blob_bytes": len(blob),
    }
    # A decoder behind an encoder is at the server, all of it.
    later_tuned = () if strategy.variant == "cut" else None
    return Piece(blob=blob, split=split, facts=facts, server=server, later_tuned=later_tuned)


def _wanted(strategy: GradientDownloadStrategy) -> Sequence[str]:
    """Returns what the server differentiates with respect to, see ``Trunk.forward``."""
    match strategy.variant:
        case "prompt":
            return ("prompt",)
        case "cut":
            return ("hidden",)
        case _:
            return ("parameters",)


def _trunk_parameters(
    config: Config, strategy: GradientDownloadStrategy, part: TrunkPart, split: Split
) -> dict[str, nn.Parameter]:
    """Puts LoRA into the trunk where it is tuned there; returns its parameters by name."""
    if strategy.variant in ("prompt", "cut"):
        return {}
    adapter = Adapter(
        part.model,
        blocks=part.blocks[0],
        later_blocks=part.blocks[-1],
        tuned_blocks=split.outer,
        heads=(),
        spec=adapter_spec(config.peft),
        seed=config.seed,
    )
    return adapter.parameters
