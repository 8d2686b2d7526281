"""Prompts tuned one domain at a time, with their curves, each kept in a file of its own.

What is tuned, kept and transferred is a member: a soft prompt with the head tuned along with it, so
that nothing of a target's labels is in what it is given. All domains and kinds of starts of a seed
begin with the same drawn head; random prompts of a seed are the same, too.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from fl_app.errors import WireError
from fl_app.finetune import LocalTuning, local_batches, optimiser_of
from fl_app.fomo.adapter import Adapter
from fl_app.fomo.backbone import Backbone, head_modules
from fl_app.fomo.blocks import num_blocks
from fl_app.fomo.soft_prompt import PROMPT_NAME, PromptSpec, starting_prompt, token_table
from fl_app.payload import Payload, read_payload
from fl_app.prompts.batched import log_probabilities, member_losses, tensors_of
from fl_app.prompts.fit import model_hash
from fl_app.prompts.member import Card, Member, member_of
from fl_app.seeding import generator
from fl_app.tasks import Encoded, Task
from fl_app.updates import Update

_KIND, _MAX_BYTES = "tuned", 2**30


@dataclass(frozen=True)
class Settings:
    """What a tuning depends on beside its rows.

    Attributes:
        steps: of every tuning, >= 1.
        batch_size: texts of a step, >= 1.
        num_tokens: m of the prompts.
        every: steps between two points of a curve; divides ``steps``.
        early: steps after which a requester's own prompt is looked at; a multiple of ``every``.
        lr: of the prompt.
        head_lr: of the head.
    """

    steps: int
    batch_size: int = 16
    num_tokens: int = 20
    every: int = 20
    early: int = 40
    lr: float = 0.02
    head_lr: float = 0.005


@dataclass(frozen=True)
class Domain:
    """One domain's rows, prepared; no two parts share a row."""

    name: str
    train: Encoded
    probe: Encoded
    validation: Encoded
    test: Encoded


@dataclass(frozen=True)
class Tuned:
    """What a tuning left.

    Attributes:
        losses: on the validation rows in nats, before the first step and after every ``every``.
        scores: accuracy there, likewise.
        member: the prompt and head with the lowest of these losses.
        early: those after ``early`` steps.
        tokens: of all texts in all steps, prompt and padding not counted.
    """

    losses: tuple[float, ...]
    scores: tuple[float, ...]
    member: Member
    early: Member
    tokens: int


class Workbench:
    """Tunes members on one frozen model.

    Args:
        backbone: the model, whose head is drawn.
        task: prepares texts and gives the loss.
        folder: where what is tuned is kept, and found again.
    """

    def __init__(self, backbone: Backbone, task: Task, folder: Path) -> None:
        self._backbone, self.task, self._folder = backbone, task, folder
        self._heads = head_modules(backbone.model, backbone.task)
        self._hash = model_hash(backbone.model, self._heads)
        self._adapters: dict[int, Adapter] = {}
        self._drawn: Update = {}

    @property
    def model(self) -> torch.nn.Module:
        """The frozen model, not wrapped."""
        model: torch.nn.Module = self._backbone.model
        return model

    def start(self, settings: Settings, seed: int) -> Member:
        """Returns a prompt nobody has tuned, of the vocabulary, with the head as it was drawn."""
        self._adapter(settings)  # notes the head before anybody tunes it
        config = self._backbone.model.config
        table = token_table(self._backbone.model).weight
        spec = PromptSpec(settings.num_tokens)
        prompt = starting_prompt(table, config.pad_token_id, spec, seed).numpy()
        return self._member({**self._drawn, PROMPT_NAME: prompt.copy()}, "start", seed)

    def tuned(
        self, domain: Domain, start: Member, settings: Settings, seed: int, name: str
    ) -> Tuned:
        """Tunes a copy of a member on a domain, or reads what an earlier call made.

        Args:
            domain: the rows.
            start: where tuning begins.
            settings: lengths and rates.
            seed: orders the rows.
            name: of the file.
        """
        path = self._folder / f"seed{seed}" / f"{name}.safetensors"
        facts = {**asdict(settings), "rows": _digest(domain), "start": start.content_hash}
        made = json.dumps({**facts, "model": self._hash}, sort_keys=True)
        if (kept := _read(path, made)) is not None:
            return self._from(kept, domain.name, seed)
        payload = self._tune(domain, start, settings, seed, made)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_bytes(payload.to_blob())
        temporary.replace(path)
        return self._from(payload, domain.name, seed)

    def _tune(
        self, domain: Domain, start: Member, settings: Settings, seed: int, made: str
    ) -> Payload:
        adapter = self._adapter(settings)
        adapter.write(start.arrays())
        optimiser = optimiser_of(adapter.parameters, _local(settings))
        points = [self._measured(adapter, domain.validation)]
        best, early = adapter.read(), adapter.read()
        tokens = 0
        steps = islice(_batches(domain.train, settings, seed), settings.steps)
        for step, rows in enumerate(steps, start=1):
            loss = self.task.loss(adapter.model, self.task.batch(domain.train, rows))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(list(adapter.parameters.values()), 1.0)
            optimiser.step()
            tokens += int(domain.train.lengths[rows].sum())
            if step % settings.every == 0:
                points.append(self._measured(adapter, domain.validation))
                if points[-1][0] <= min(loss for loss, _ in points):
                    best = adapter.read()
            if step == settings.early:
                early = adapter.read()
        arrays = {f"best|{n}": a for n, a in best.items()}
        arrays |= {f"early|{n}": a for n, a in early.items()}
        arrays["curve"] = np.array(points, np.float32)
        return Payload(_KIND, settings.steps, {"made": made, "tokens": tokens}, arrays)

    def losses(
        self, members: list[Member], rows: Encoded, batch_size: int = 32
    ) -> tuple[list[float], list[float]]:
        """Returns every member's (losses in nats, accuracies) on these rows, in batched passes."""
        order = np.argsort(rows.lengths, kind="stable")
        lost, hits = np.zeros(len(members)), np.zeros(len(members))
        tensors = [tensors_of(member) for member in members]
        with torch.inference_mode():
            for at in range(0, len(order), batch_size):
                batch = self.task.batch(rows, [int(i) for i in order[at : at + batch_size]])
                said, labels = log_probabilities(self._backbone.model, tensors, batch)
                lost += member_losses(said, labels).double().numpy() * len(labels)
                hits += (said.argmax(-1) == labels).sum(-1).double().numpy()
        return (lost / len(rows)).tolist(), (hits / len(rows)).tolist()

    def _measured(self, adapter: Adapter, rows: Encoded) -> tuple[float, float]:
        member = self._member(adapter.read(), "now", 0)
        losses, scores = self.losses([member], rows)
        return losses[0], scores[0]

    def _adapter(self, settings: Settings) -> Adapter:
        """Wraps the model once for every length of prompt; the head is the model's own."""
        if settings.num_tokens not in self._adapters:
            model = self._backbone.model
            adapter = Adapter(
                model,
                blocks=range(num_blocks(model.config)),
                tuned_blocks=(),
                heads=self._heads,
                spec=PromptSpec(settings.num_tokens),
                seed=0,
            )
            if not self._adapters:
                self._drawn = {n: a for n, a in adapter.read().items() if n != PROMPT_NAME}
            self._adapters[settings.num_tokens] = adapter
        return self._adapters[settings.num_tokens]

    def _from(self, payload: Payload, name: str, seed: int) -> Tuned:
        losses, scores = payload.arrays["curve"].astype(float).T.tolist()
        members = [
            self._member(
                {
                    key.removeprefix(lead): array
                    for key, array in payload.arrays.items()
                    if key.startswith(lead)
                },
                name,
                seed,
            )
            for lead in ("best|", "early|")
        ]
        return Tuned(
            tuple(losses), tuple(scores), members[0], members[1], int(payload.scalars["tokens"])
        )

    def _member(self, arrays: Update, name: str, seed: int) -> Member:
        return member_of(arrays, Card(self._hash, self._hash, seed, name, 0))


def _batches(rows: Encoded, settings: Settings, seed: int) -> Iterator[list[int]]:
    rng = generator(seed, "transfer-matrix")
    epochs = 1 + settings.steps * settings.batch_size // max(len(rows), 1)
    return local_batches(rows, batch_size=settings.batch_size, epochs=epochs + 1, rng=rng)


def _local(settings: Settings) -> LocalTuning:
    return LocalTuning(
        epochs=1,
        max_steps=settings.steps,
        batch_size=settings.batch_size,
        lr=settings.lr,
        head_lr=settings.head_lr,
        eps=1e-8,
        weight_decay=0.0,
        clip_norm=1.0,
        logit_adjustment=0.0,
        proximal_mu=0.0,
    )


def _digest(domain: Domain) -> str:
    parts: Mapping[str, Encoded] = {"train": domain.train, "validation": domain.validation}
    text = json.dumps(
        {name: [part.rows, part.targets] for name, part in parts.items()}, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path, made: str) -> Payload | None:
    """Returns what is in a file; None where there is none, it is damaged, or made otherwise."""
    try:
        payload = read_payload(path.read_bytes(), max_bytes=_MAX_BYTES)
    except (OSError, WireError):
        return None
    return payload if payload.kind == _KIND and payload.scalars.get("made") == made else None
