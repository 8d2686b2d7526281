"""The server's ensemble of a federated run: where members start, what they are worth, the pool."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_app import updates
from fl_app.fomo.adapter import Adapter
from fl_app.fomo.backbone import Backbone
from fl_app.fomo.soft_prompt import PROMPT_NAME, PromptSpec, starting_prompt, token_table
from fl_app.prompts.attentive import FITS, FitSettings
from fl_app.prompts.batched import Tensors, tensors_of
from fl_app.prompts.decoded import exact_matches
from fl_app.prompts.errors import PromptError
from fl_app.prompts.fit import fit_of
from fl_app.prompts.measure import Measured, measure
from fl_app.prompts.member import Card, Member, member_of
from fl_app.prompts.pool import Pool
from fl_app.prompts.pool_model import save_pool_model
from fl_app.prompts.public_rows import PublicRows, texts_at_once
from fl_app.schema import (
    Config,
    EnsembleConfig,
    EnsembleFitted,
    EnsembleVote,
    EnsembleWeighted,
)
from fl_app.seeding import generator
from fl_app.settings import adapter_spec, num_members_of
from fl_app.tasks import Encoded, Task
from fl_app.updates import Update

log = logging.getLogger("deft")


class Ensemble:
    """Several members of one model, wherever they come from; see ``EnsembleConfig``.

    An adapter here is that of all members, see ``fl_app.updates.join``.

    Args:
        config: the run's configuration.
        settings: its ensemble.
        backbone: the full model.
        full: the adapter on it.
        task: prepares texts.
        public: rows nobody tunes on; members are screened and weighed on them and never on test
            rows.
    """

    def __init__(
        self,
        config: Config,
        settings: EnsembleConfig,
        *,
        backbone: Backbone,
        full: Adapter,
        task: Task,
        public: Encoded,
    ) -> None:
        self._config, self._settings, self._backbone = config, settings, backbone
        self._full, self._task = full, task
        self._public = PublicRows(
            full.bare_model,
            task,
            public,
            how=self._how,
            eta=_eta(settings),
            fit=_fit(settings),
            seed=config.seed,
        )
        self.num_members = num_members_of(config)
        start = full.read()
        self._fit = fit_of(
            backbone,
            max_length=config.model.max_length,
            max_tokens=max(100, len(start[PROMPT_NAME])),
        )
        self._start = start
        self._rounds: dict[int, tuple[str, int]] = {}
        """Content hash of every member, and the round after which it was first seen."""
        self._devices: Sequence[Sequence[int]] = [[j] for j in range(self.num_members)]
        self.latest: Measured | None = None
        """What ``measure`` found last on the full model."""

    def require(self, tuned: Update) -> None:
        """Checks what one device made of what it was sent: a member, or all if tuned together.

        Without this one huge answer would cost its group the member, or the run all of them.

        Raises:
            PromptError: a member does not fit, see ``Fit.require``.
        """
        together = self._settings.members_from == "joint"
        card = Card(self._fit.model_hash, self._fit.tokenizer_hash, 0, self._config.model.task, 0)
        for part in updates.split(tuned, self.num_members if together else 1):
            self._fit.require(member_of(part, card))

    def start(self) -> Update:
        """Returns what members start from: prompts drawn apart, the same head.

        The first one is that of the run without an ensemble.
        """
        match adapter_spec(self._config.peft):
            case PromptSpec() as spec:
                pass
            case other:
                raise PromptError("missing", f"an ensemble needs a soft prompt, not {other}")
        model = self._full.bare_model
        parts = [self._start]
        for j in range(1, self.num_members):
            own = int(generator(self._config.seed, "member", j).integers(2**31))
            prompt = starting_prompt(
                token_table(model).weight, model.config.pad_token_id, spec, own
            )
            parts.append({**self._start, PROMPT_NAME: prompt.detach().numpy().copy()})
        return updates.join(parts)

    def note(self, server_round: int, adapter: Update, devices: Sequence[Sequence[int]]) -> None:
        """Notes which members a round has changed, for their cards.

        Args:
            server_round: the round.
            adapter: after it.
            devices: of every member, ascending.
        """
        self._devices = devices
        for j, member in enumerate(self._candidates(adapter)):
            if self._rounds.get(j, ("", 0))[0] != member.content_hash:
                self._rounds[j] = member.content_hash, server_round

    def pool(self, adapter: Update) -> tuple[Pool, dict[int, str]]:
        """Returns the members that have a say, and why others have none.

        A member that does not fit (its norm has exploded, say), or equals one before it, is left
        out, so that it counts neither wrongly nor twice; ``untuned`` is one that no round has
        changed, once a round has changed another. Where there are public rows the others are
        screened on them, see ``fl_app.prompts.screen``.
        """
        pool = Pool(
            self._fit, capacity=self.num_members, max_age=max(self._config.strategy.num_rounds, 1)
        )
        left_out: dict[int, str] = {}
        candidates = self._candidates(adapter)
        is_tuned = any(member.card.round > 0 for member in candidates)
        for j, member in enumerate(candidates):
            if is_tuned and member.card.round == 0:
                left_out[j] = "untuned"
                continue
            try:
                pool.admit(member, now_round=member.card.round)
            except PromptError as error:
                log.warning("member %d is left out of the ensemble: %s", j, error)
                left_out[j] = error.reason
        asked = [j for j in range(self.num_members) if j not in left_out]
        members = pool.members
        for place, reason in self._public.screen(members).items():
            pool.forget(members[place].content_hash)
            left_out[asked[place]] = reason
        return pool, dict(sorted(left_out.items()))

    def measure(self, model: Any, adapter: Update, rows: Encoded) -> Measured:
        """Measures members and ensemble in one pass for each batch.

        Args:
            model: the full model or the emulator, not wrapped.
            adapter: of all members.
            rows: labelled examples.

        Raises:
            PromptError: ``no-member``, all are left out; or there are no rows.
        """
        pool, left_out = self.pool(adapter)
        if not pool.members:
            raise PromptError(
                "no-member",
                f"every member is left out, by index: {left_out}; lower finetune.lr"
                " (or strategy.server_rule's step)",
            )
        members = [tensors_of(member) for member in pool.members]
        fitted = self._public.fitted(pool.members)
        found = measure(
            model,
            members,
            self._task,
            rows,
            how=self._how,
            weights=fitted.weights if fitted else self._public.weights(pool.members),
            batch_size=texts_at_once(len(members)),
            answer=fitted.answer if fitted else None,
        )
        if model is self._full.bare_model:
            self.latest = found
        return found

    def entry(self, adapter: Update, rows: Encoded, found: Measured) -> dict[str, Any]:
        """Returns the ``ensemble`` entry of ``result.json``.

        Args:
            adapter: of all members.
            rows: test rows; language models complete some of them and vote.
            found: what ``measure`` made of the same adapter and rows.
        """
        pool, left_out = self.pool(adapter)
        fitted = self._public.fitted(pool.members)
        tuned = [j for j in range(self.num_members) if j not in left_out]
        figures = zip(tuned, pool.entries, found.members, found.losses, strict=True)
        return {
            "combiner": self._settings.combiner,
            **found.as_result(),
            "members": [
                {
                    "index": j,
                    "devices": list(self._devices[j]),
                    "round": entry.member.card.round,
                    "content_hash": entry.member.content_hash,
                    "measure": value,
                    "loss": loss,
                }
                for j, entry, value, loss in figures
            ],
            "screened_on": self._public.num_screened,
            "fit_failed": fitted.failed if fitted else None,
            "left_out": {str(j): reason for j, reason in left_out.items()},
            "decoded": self._decoded([tensors_of(m) for m in pool.members], rows),
        }

    def save(self, folder: Path, adapter: Update) -> None:
        """Saves the pool below ``pool/``, and each member for PEFT below ``adapter/<index>/``."""
        self.pool(adapter)[0].save(folder / "pool")
        save_pool_model(
            folder / "pool",
            self._backbone,
            max_length=self._config.model.max_length,
            has_own_pooler=self._config.model.pooler != "checkpoint",
        )
        for j, part in enumerate(updates.split(adapter, self.num_members)):
            self._full.write(part)
            self._full.save(folder / "adapter" / str(j))

    def _candidates(self, adapter: Update) -> list[Member]:
        """Returns all members with their cards."""
        members = []
        for j, part in enumerate(updates.split(adapter, self.num_members)):
            card = Card(
                model_hash=self._fit.model_hash,
                tokenizer_hash=self._fit.tokenizer_hash,
                device=min(self._devices[j], default=j),
                task=self._config.model.task,
                round=self._rounds.get(j, ("", 0))[1],
            )
            members.append(member_of(part, card))
        return members

    @property
    def _how(self) -> str:
        """The combiner of the measure; of texts, strings are voted on at the end, see ``entry``."""
        how = self._settings.combiner
        if how in FITS:
            return "mean"  # as which their members are screened
        return "mean" if how == "vote" and not self._task.higher_is_better else how

    def _decoded(self, members: Sequence[Tensors], rows: Encoded) -> Mapping[str, Any] | None:
        """Lets a language model's members vote on strings; None for all other runs."""
        match self._settings:
            case EnsembleVote(decoded_rows=limit, max_new_tokens=longest) if (
                limit > 0 and not self._task.higher_is_better
            ):
                order = generator(self._config.seed, "decoded").permutation(len(rows))
                chosen = [int(i) for i in np.sort(order[:limit])]
                with torch.inference_mode():
                    return exact_matches(
                        self._full.bare_model,
                        self._backbone.files,
                        members,
                        rows,
                        chosen,
                        max_new_tokens=longest,
                        batch_size=texts_at_once(len(members)),
                    )
            case _:
                return None


def _eta(settings: EnsembleConfig) -> float | None:
    match settings:
        case EnsembleWeighted(eta=eta):
            return eta
        case _:
            return None


def _fit(settings: EnsembleConfig) -> FitSettings | None:
    match settings:
        case EnsembleFitted(combiner=kind, lr=lr, epochs=epochs, hidden=hidden):
            return FitSettings(kind, lr, epochs, hidden)
        case _:
            return None


def ensemble_of(
    config: Config, *, backbone: Backbone, full: Adapter, task: Task, public: Encoded
) -> Ensemble | None:
    """Returns the ensemble a run is configured for; None without one."""
    match config.prompt:
        case EnsembleConfig() as settings:
            return Ensemble(
                config, settings, backbone=backbone, full=full, task=task, public=public
            )
        case _:
            return None
