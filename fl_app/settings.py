"""Configuration to the flat settings that server and device must agree on."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from fl_app.errors import ConfigError
from fl_app.finetune import LocalTuning
from fl_app.fomo.adapter import Adapter, LoraSpec
from fl_app.fomo.backbone import head_modules
from fl_app.fomo.blocks import num_blocks
from fl_app.fomo.connection_insert import Insertion, insert_connection, insert_down_projections
from fl_app.fomo.connection_link import LinkSpec
from fl_app.fomo.emulator import Split
from fl_app.schema import (
    Config,
    ConnectionConfig,
    DataConfig,
    EmulatorConfig,
    FinetuneConfig,
    HeadConfig,
    LoraConfig,
    PeftConfig,
)
from fl_app.tasks import Columns, Task, build_task
from fl_app.wireless.channel import Fading, Kind


def lora_spec(peft: PeftConfig) -> LoraSpec | None:
    """Returns the LoRA layers; None tunes the head alone."""
    match peft:
        case LoraConfig():
            return LoraSpec(
                rank=peft.rank,
                alpha=peft.alpha,
                targets=tuple(peft.targets),
                train_a=peft.aggregation != "freeze-a",
            )
        case HeadConfig():
            return None
        case _:
            raise ConfigError(f"peft of type {type(peft).__name__} is unknown")


def aggregation_of(peft: PeftConfig) -> str:
    """Returns how LoRA factors are averaged; a head has none, so any way is exact."""
    match peft:
        case LoraConfig():
            return peft.aggregation
        case _:
            return "factors"


def split_of(emulator: EmulatorConfig, model_config: Any) -> Split:
    """Returns the split l-n-r of a model; ``middle=-1`` keeps all middle blocks."""
    total = num_blocks(model_config)
    middle = emulator.middle
    if middle == -1:
        middle = total - emulator.left - emulator.right
    return Split(left=emulator.left, middle=middle, right=emulator.right, total=total)


def columns_of(data: DataConfig) -> Columns:
    """Returns the column names a task reads."""
    return Columns(
        text=data.text_column,
        label=data.label_column,
        prompt=data.prompt_column,
        completion=data.completion_column,
        image=data.image_column,
    )


def adapter_for(
    config: Config,
    model: Any,
    *,
    blocks: Sequence[int],
    split: Split,
    carried: Sequence[str] = (),
) -> Adapter:
    """Wraps the full model or an emulator, the same way on server and device.

    Args:
        config: the run's configuration.
        model: the model; adapter layers are put into it.
        blocks: indices, in the full model, of its blocks in order.
        split: which blocks are tuned.
        carried: frozen modules to save with the adapter.
    """
    spec = lora_spec(config.peft)
    return Adapter(
        model,
        blocks=blocks,
        tuned_blocks=split.outer if spec else (),
        heads=head_modules(model, config.model.task),
        spec=spec,
        seed=config.seed,
        carried=carried,
    )


def task_for(
    config: Config,
    model: Any,
    *,
    files: dict[str, str],
    labels: tuple[str, ...],
    overall_shares: tuple[float, ...] = (),
) -> Task:
    """Builds the task of a model, the same way on server and device; see ``build_task``."""
    return build_task(
        config.model.task,
        files=files,
        labels=labels,
        columns=columns_of(config.data),
        max_length=config.model.max_length,
        model_config=model.config,
        overall_shares=overall_shares,
    )


def local_tuning(finetune: FinetuneConfig, proximal_mu: float = 0.0) -> LocalTuning:
    """Returns the settings of local tuning; the pull mu comes from the server's rule."""
    return LocalTuning(**dataclasses.asdict(finetune), proximal_mu=proximal_mu)


def link_spec(connection: ConnectionConfig) -> LinkSpec:
    """Returns the link of a neural connection."""
    gradient = connection.gradient_tx_snr_db
    return LinkSpec(
        tx_snr_db=connection.tx_snr_db,
        gradient_tx_snr_db=connection.tx_snr_db if gradient is None else gradient,
        num_tx=connection.num_tx,
        num_rx=connection.num_rx,
        fading=Fading(
            kind=cast(Kind, connection.fading),
            rician_k=connection.rician_k,
            correlation=connection.correlation,
        ),
        csi_error=connection.csi_error,
        rotation=connection.rotation,
        power_per_use=connection.power_per_use,
        peak_db=connection.peak_db,
    )


def connect(config: Config, adapter: Adapter, blocks: Sequence[int]) -> Insertion | None:
    """Puts the configured neural connection into an adapter's model; None where none is wanted.

    Args:
        config: the run's configuration.
        adapter: the adapter of the full model or of an emulator.
        blocks: indices, in the full model, of its model's blocks in order.

    Raises:
        ModelError: the block is not in the model, or holds no LoRA for ``carries=lora_a``.
    """
    wanted = config.connection
    if wanted.block is None:
        return None
    place: dict[str, Any] = {"block": wanted.block, "blocks": blocks, "seed": config.seed}
    insert = insert_connection if wanted.carries == "features" else insert_down_projections
    return insert(adapter.bare_model, spec=link_spec(wanted), **place)
