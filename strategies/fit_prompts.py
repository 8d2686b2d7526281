"""Which choices go together with prompts that differ between devices, checked before the work."""

import logging
from typing import Any

from fl_app.errors import ConfigError
from fl_app.fomo.soft_prompt import token_table
from fl_app.prompts.advert import CARD_BYTES, MAX_ADVERT_BYTES
from fl_app.schema import (
    Config,
    EnsembleConfig,
    EnsembleFitted,
    EnsembleMedian,
    EnsembleWeighted,
    GradientDownloadStrategy,
    PromptTuningConfig,
    RadioChannel,
    SimulationFederation,
    TransferPrompt,
)
from fl_app.settings import num_members_of

log = logging.getLogger("deft")
_UNGUARDED = ("mean", "logit_mean")
"""Combiners that less than half of the members can move as they like."""


def require_prompts(config: Config) -> None:
    """Checks prompt ensembles and prompt transfer against everything else.

    Raises:
        ConfigError: a choice does not go with them; the text says which and what to set.
    """
    match config.prompt:
        case EnsembleConfig() as ensemble:
            _require_ensemble(config, ensemble)
        case TransferPrompt() as transfer:
            _require_transfer(config, transfer)


def _require_ensemble(config: Config, ensemble: EnsembleConfig) -> None:
    """Checks that members can be tuned apart, put together and weighed."""
    chosen = f"prompt.num_members={ensemble.num_members}"
    match config.peft:
        case PromptTuningConfig():
            pass
        case _:
            raise ConfigError("an ensemble's members are soft prompts; set peft=prompt")
    match ensemble.members_from:
        case "groups":
            _require_groups(config, chosen)
        case "joint":
            _require_joint(config)
        case "snapshots":
            _require_cycles(config, chosen)
    if config.connection.block is not None:
        raise ConfigError(
            "connection.block: members answer in one pass, a neural connection carries one prompt; "
            "set connection.block=null, or prompt=none"
        )
    is_apart = ensemble.members_from == "groups"  # else every device moves every member
    if is_apart and config.data.public_fraction == 0 and ensemble.combiner in _UNGUARDED:
        log.warning(
            "data.public_fraction=0: nobody screens the members of prompt=ensemble_%s, and one "
            "hostile group may decide its answers; set data.public_fraction above 0, or choose "
            "prompt=ensemble_vote or ensemble_median",
            ensemble.combiner,
        )
    match ensemble:
        case EnsembleWeighted() if config.data.public_fraction == 0:
            raise ConfigError(
                "prompt=ensemble_weighted weighs members by their loss on public rows; set "
                "data.public_fraction above 0"
            )
        case EnsembleFitted() if config.model.task == "causal_lm":
            raise ConfigError(
                f"prompt=ensemble_{ensemble.combiner} looks at whole texts, and those of model.task"
                "=causal_lm hold what is to be predicted; choose prompt=ensemble_weighted"
            )
        case EnsembleFitted() if config.data.public_fraction == 0:
            raise ConfigError(
                f"prompt=ensemble_{ensemble.combiner} is fitted on public rows; set "
                "data.public_fraction above 0, or choose prompt=ensemble_vote"
            )
        case EnsembleMedian() if config.model.task == "causal_lm":
            raise ConfigError(
                "prompt=ensemble_median takes medians of classes, and model.task=causal_lm has "
                "none; choose prompt=ensemble_mean or ensemble_vote"
            )


def _require_groups(config: Config, chosen: str) -> None:
    """Checks that every group can be combined by itself."""
    total, members = config.federation.num_devices, num_members_of(config)
    if members > total:
        raise ConfigError(f"{chosen} exceeds federation.num_devices={total}; lower it, or set null")
    match config.channel:
        case RadioChannel() if members > 1:
            raise ConfigError(
                f"{chosen}: every group of devices has a mean of its own, and this channel hands "
                "over one of all devices; set prompt.members_from=joint or snapshots, "
                "channel=ideal, or prompt=none"
            )
    match config.strategy:
        case GradientDownloadStrategy(shared_gradient=True) if members > 1:
            raise ConfigError(
                f"{chosen}: members differ, and strategy.shared_gradient=true sends all devices "
                "one gradient; set it to false, or prompt.members_from=snapshots"
            )


def _require_joint(config: Config) -> None:
    """Checks that a device can run all members."""
    match config.strategy:
        case GradientDownloadStrategy():
            raise ConfigError(
                "prompt.members_from=joint tunes all members in one pass on the device, and with "
                "strategy=gradient_download the model is at the server; choose "
                "prompt.members_from=groups or snapshots, or strategy=emulator_download"
            )


def _require_cycles(config: Config, chosen: str) -> None:
    """Checks that every cycle has a round."""
    members, rounds = num_members_of(config), config.strategy.num_rounds
    if members > rounds:
        raise ConfigError(
            f"{chosen} with prompt.members_from=snapshots needs as many rounds, and "
            f"strategy.num_rounds={rounds}; lower it, or run more rounds"
        )


def _require_transfer(config: Config, transfer: TransferPrompt) -> None:
    """Checks that devices have prompts of their own, and may find others'."""
    match config.strategy:
        case GradientDownloadStrategy(variant="prompt") as strategy:
            pass
        case _:
            raise ConfigError(
                "prompt=transfer works with the prompts of gradient download; set "
                "strategy=gradient_download strategy.variant=prompt, or prompt=none"
            )
    if strategy.shared_gradient:
        raise ConfigError(
            "strategy.shared_gradient=true makes the same step on every device, and with "
            "prompt=transfer each has a prompt of its own; set strategy.shared_gradient=false"
        )
    if strategy.privacy.noise_multiplier > 0:
        raise ConfigError(
            f"strategy.privacy.noise_multiplier={strategy.privacy.noise_multiplier} is accounted "
            "for local steps only, and prompt=transfer sends features of probe rows too; set it to "
            "0, or prompt=none"
        )
    if config.connection.block is not None:
        raise ConfigError(
            "connection.block: trials of prompt=transfer travel as bytes and would judge prompts "
            "on a perfect link; set connection.block=null, or prompt=none"
        )
    if strategy.server_rule.name == "fedprox":
        raise ConfigError(
            "strategy.server_rule.name=fedprox pulls every device towards the mean prompt, and "
            "with prompt=transfer each has a prompt of its own; choose another rule, or prompt=none"
        )
    rounds, total = transfer.rounds, config.strategy.num_rounds
    if rounds is not None and not all(2 <= number <= total for number in rounds):
        raise ConfigError(
            f"prompt.rounds={rounds}: before round 2 no device has tuned a prompt, and there are "
            f"strategy.num_rounds={total} rounds; choose rounds between, or null"
        )
    drawn = config.federation.devices_per_round
    if rounds is None and drawn in (None, config.federation.num_devices):
        raise ConfigError(
            "prompt.rounds=null is for devices that join later, and with federation."
            f"devices_per_round={drawn} all take part from the start; set either"
        )
    _require_addresses(config, transfer)


def require_advert_fits(config: Config, model: Any) -> None:
    """Checks that a device's advert is no longer than one may be, now that the width is known.

    Raises:
        ConfigError: with ``prompt.descriptor=flat`` the prompt is too long.
    """
    match config.peft, config.prompt:
        case PromptTuningConfig(num_tokens=num_tokens), TransferPrompt(descriptor="flat"):
            num_bytes = 4 * num_tokens * token_table(model).embedding_dim
            if num_bytes > (most := MAX_ADVERT_BYTES - CARD_BYTES):
                raise ConfigError(
                    f"prompt.descriptor=flat advertises peft.num_tokens={num_tokens} whole, "
                    f"{num_bytes} bytes, and an advert holds {most}; choose "
                    "prompt.descriptor=mean, or fewer tokens"
                )


def _require_addresses(config: Config, transfer: TransferPrompt) -> None:
    given, wanted = len(transfer.direct), config.federation.num_devices
    if given not in (0, wanted):
        raise ConfigError(
            f"prompt.direct has {given} addresses for federation.num_devices={wanted}; give one "
            "for each, in the order of partition ids, or none"
        )
    match config.strategy, config.federation:
        case _, SimulationFederation() if given:
            raise ConfigError(
                "prompt.direct is for devices that run at the same time, and simulated ones take "
                "turns; set federation=edge, or prompt.direct=[]"
            )
        case GradientDownloadStrategy() as strategy, _ if (
            given and transfer.direct_s >= strategy.exchange_timeout_s
        ):
            raise ConfigError(
                f"prompt.direct_s={transfer.direct_s} must be below strategy.exchange_timeout_s="
                f"{strategy.exchange_timeout_s}, or who meets others is given up for lost"
            )
