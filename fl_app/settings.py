"""Configuration to the flat settings that server and device must agree on."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fl_app.errors import ConfigError, ModelError
from fl_app.finetune import LocalTuning
from fl_app.fomo.adapter import Adapter, AdapterSpec, LoraSpec
from fl_app.fomo.backbone import head_modules, require_length
from fl_app.fomo.blocks import num_blocks
from fl_app.fomo.bottleneck import BottleneckSpec
from fl_app.fomo.deep_prompt import DeepPromptSpec
from fl_app.fomo.emulator import Split
from fl_app.fomo.parts import DevicePart
from fl_app.fomo.soft_prompt import PromptedModel, PromptSpec, token_table
from fl_app.schema import (
    BottleneckConfig,
    Config,
    DataConfig,
    DeepPromptConfig,
    EmulatorConfig,
    EnsembleConfig,
    FinetuneConfig,
    GradientDownloadStrategy,
    HeadConfig,
    LoraConfig,
    PeftConfig,
    PromptTuningConfig,
    SizedConfig,
    TransferPrompt,
)
from fl_app.tasks import Columns, Task, build_task
from fl_app.unit_scores import UnitScores


def adapter_spec(peft: PeftConfig) -> AdapterSpec | None:
    """Returns what is added to the model; None tunes the head alone."""
    match peft:
        case LoraConfig():
            return LoraSpec(
                rank=peft.rank,
                alpha=peft.alpha,
                targets=tuple(peft.targets),
                train_a=peft.aggregation != "freeze-a",
            )
        case BottleneckConfig():
            return BottleneckSpec(width=peft.width, activation=peft.activation)
        case DeepPromptConfig():
            return DeepPromptSpec(num_tokens=peft.num_tokens)
        case PromptTuningConfig():
            return PromptSpec(num_tokens=peft.num_tokens, init=peft.init)
        case HeadConfig():
            return None
        case _:
            raise ConfigError(f"peft of type {type(peft).__name__} is unknown")


def unit_scores(peft: PeftConfig, parameters: Mapping[str, nn.Parameter]) -> UnitScores:
    """Returns what scores units while these parameters are tuned.

    Raises:
        ConfigError: there are no units.
    """
    match peft:
        case SizedConfig(layout=layout):
            scores = layout.scores
            return UnitScores(parameters, beta1=scores.beta1, beta2=scores.beta2)
        case _:
            raise ConfigError(f"peft of type {type(peft).__name__} has no units to score")


def num_prompt_of(peft: PeftConfig) -> int:
    """Returns m, the tokens of the soft prompt; 0 without one."""
    match peft:
        case PromptTuningConfig():
            return peft.num_tokens
        case _:
            return 0


def most_rows_of(config: Config) -> int:
    """Returns the most rows whose features a device of gradient download sends at once."""
    match config.prompt:
        case TransferPrompt(probe_rows=probe, validation_rows=validation):
            return max(config.finetune.batch_size, probe + validation)
        case _:
            return config.finetune.batch_size


def num_members_of(config: Config) -> int:
    """Returns how many adapters the server keeps: the members of the run's ensemble, else 1."""
    match config.prompt:
        case EnsembleConfig(num_members=None):
            return config.federation.num_devices
        case EnsembleConfig(num_members=int() as num_members):
            return num_members
        case _:
            return 1


def aggregation_of(peft: PeftConfig) -> str:
    """Returns how LoRA factors are averaged; all else is averaged as it is."""
    match peft:
        case LoraConfig():
            return peft.aggregation
        case _:
            return "factors"


def require_peft_fits(config: Config, model: Any) -> None:
    """Checks the longest input, prompt included, before anything is built on the model.

    Raises:
        ModelError: too few positions, or a prompt for a model that cannot take one.
    """
    match config.peft:
        case PromptTuningConfig(num_tokens=num_tokens):
            token_table(model)
            require_length(model.config, config.model.max_length, num_tokens)
        case _:
            require_length(model.config, config.model.max_length)


def prompted_body(config: Config, model: Any) -> PromptedModel | None:
    """Returns the model without its head behind the starting prompt; None without a prompt."""
    match spec := adapter_spec(config.peft):
        case PromptSpec():
            return PromptedModel(model.base_model, spec, seed=config.seed)
        case _:
            return None


def split_of(emulator: EmulatorConfig, model_config: Any) -> Split:
    """Returns the split l-n-r of a model; ``middle=-1`` keeps all middle blocks."""
    total = num_blocks(model_config)
    middle = emulator.middle
    if middle == -1:
        middle = total - emulator.left - emulator.right
    return Split(left=emulator.left, middle=middle, right=emulator.right, total=total)


def gradient_split(strategy: GradientDownloadStrategy, model_config: Any) -> Split:
    """Returns the split whose outer blocks hold the LoRA of gradient download.

    Raises:
        ModelError: no block would be left between them.
    """
    total = num_blocks(model_config)
    left, right = outer_blocks(strategy)
    middle = total - left - right
    if middle < 1:
        what = {"cut": f"strategy.cut={left}", "prompt": "strategy.variant=prompt"}.get(
            strategy.variant, f"strategy.left={left} and strategy.right={right}"
        )
        raise ModelError(
            f"{what}: at least one of the model's {total} blocks must be left over; choose fewer, "
            "or a deeper model"
        )
    return Split(left=left, middle=middle, right=right, total=total)


def outer_blocks(strategy: GradientDownloadStrategy) -> tuple[int, int]:
    """Returns how many blocks, from the input and up to the last, hold tuned parameters."""
    match strategy.variant:
        case "cut":
            return strategy.cut, 0
        case "prompt":  # none does; a split needs one
            return 0, 1
        case _:
            return strategy.left, strategy.right


def device_parameters(
    config: Config, strategy: GradientDownloadStrategy, part: DevicePart
) -> dict[str, nn.Parameter]:
    """Returns the tunable parameters inside a device's part, by canonical name.

    LoRA layers are put into its blocks, and a soft prompt is drawn, if they are tuned there. Empty
    where all that is tuned sits at the server.
    """
    heads = head_modules(part.model, config.model.task)
    match strategy.variant:
        case "prompt" | "cut":
            return adapter_for(
                config, part.model, blocks=part.blocks, tuned=range(part.cut)
            ).parameters
        case _ if heads:
            whole = dataclasses.replace(config, peft=HeadConfig())
            return adapter_for(whole, part.model, blocks=part.blocks, tuned=()).parameters
        case _:
            return {}


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
    tuned: Sequence[int],
    later_tuned: Sequence[int] | None = None,
    carried: Sequence[str] = (),
) -> Adapter:
    """Wraps the full model or an emulator, the same way on server and device.

    Args:
        config: the run's configuration.
        model: the model; adapter layers are put into it.
        blocks: indices, in the full model, of its blocks in order.
        tuned: indices, likewise, of the blocks that get layers.
        later_tuned: the same for the stacks after the first; None for the same ones.
        carried: frozen modules to save with the adapter.
    """
    spec = adapter_spec(config.peft)
    return Adapter(
        model,
        blocks=blocks,
        tuned_blocks=tuned if spec else (),
        later_tuned=later_tuned,
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


def local_tuning(
    finetune: FinetuneConfig, proximal_mu: float = 0.0, progress: tuple[float, float] = (0.0, 0.0)
) -> LocalTuning:
    """Returns the settings of local tuning; the pull mu comes from the server's rule."""
    settings = dataclasses.asdict(finetune)
    return LocalTuning(**settings, proximal_mu=proximal_mu, progress=progress)


def cycle_of(config: Config, round_number: int) -> int:
    """Returns the cycle, from 0, of a round, from 1; as many cycles as members."""
    return (round_number - 1) * num_members_of(config) // config.strategy.num_rounds


def _cycle_shares(config: Config, round_number: int) -> tuple[float, float] | None:
    """Returns the shares of its cycle that are over before and after a round."""
    match config.prompt:
        case EnsembleConfig(members_from="snapshots"):
            rounds = range(1, config.strategy.num_rounds + 1)
            cycle = cycle_of(config, round_number)
            own = [number for number in rounds if cycle_of(config, number) == cycle]
            place = own.index(round_number)
            return place / len(own), (place + 1) / len(own)
        case _:
            return None


def round_tuning(config: Config, round_number: int, proximal_mu: float = 0.0) -> LocalTuning:
    """Returns the settings of local tuning in one of the run's rounds, from 1."""
    num_rounds = config.strategy.num_rounds
    progress = ((round_number - 1) / num_rounds, round_number / num_rounds)
    settings = local_tuning(config.finetune, proximal_mu, progress)
    return dataclasses.replace(settings, cycle=_cycle_shares(config, round_number))
