"""Candidates measured on a device's own rows: features up, last states down, losses here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clients.device_session import DeviceSession
from fl_app.errors import WireError
from fl_app.features_wire import ERROR, STATES, FeatureWire
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.payload import Payload
from fl_app.prompts.gate import guessing_loss
from fl_app.seeding import generator
from fl_app.transfer_wire import TRIAL, trial_arrays
from fl_app.updates import Update


@dataclass(frozen=True)
class Rows:
    """A device's rows, dealt once for a run; indices into its prepared examples, ascending.

    Attributes:
        probe: for the gate.
        validation: decide what stays in use.
        tuned: all others.
    """

    probe: tuple[int, ...]
    validation: tuple[int, ...]
    tuned: tuple[int, ...]

    @property
    def tried(self) -> tuple[int, ...]:
        """Those of a trial: the gate's, then the others."""
        return self.probe + self.validation


def deal(num_rows: int, *, probe: int, validation: int, seed: int, device: int) -> Rows:
    """Deals a device's rows; neither probe nor validation gets more than a quarter of them."""
    order = [int(i) for i in generator(seed, "transfer-rows", device).permutation(num_rows)]
    first = min(probe, num_rows // 4)
    second = first + min(validation, num_rows // 4)
    parts = order[:first], order[first:second], order[second:]
    return Rows(*(tuple(sorted(part)) for part in parts))


def trial_payload(
    session: DeviceSession,
    wire: FeatureWire,
    device: int,
    rows: Rows,
    candidates: Sequence[Update],
    rng: np.random.Generator,
) -> Payload:
    """Returns features of all rows of a trial, and each candidate's prompt as it enters block 0.

    A candidate that the coding cannot hold is left out; its loss will be infinite.

    Args:
        session: the device's part of the model.
        wire: how tensors travel.
        device: partition index.
        rows: which rows.
        candidates: adapters, at least one; the rows' features are the same for all of them.
        rng: of the coding.
    """
    batch = session.task.batch(session.encoded[device], rows.tried)
    entered = [
        session.front.features(
            batch, session.task.loss, torch.from_numpy(candidate[PROMPT_NAME].copy())
        )
        for candidate in candidates
    ]
    arrays = wire.features(entered[0], rng)
    error = wire.error(entered[0], arrays)
    later = [_coded(wire, one.prompt, rng) for one in entered[1:]]
    return Payload(TRIAL, 0, {ERROR: error}, arrays | trial_arrays(later))


def _coded(
    wire: FeatureWire, prompt: torch.Tensor | None, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Returns a candidate's prompt as it travels, nothing where half precision cannot hold it."""
    try:
        return {} if prompt is None else dict(wire.code("prompt", prompt, rng))
    except WireError:
        return {}


def trial_losses(
    session: DeviceSession,
    wire: FeatureWire,
    device: int,
    rows: Rows,
    candidates: Sequence[Update],
    payload: Payload,
) -> list[tuple[float, float]]:
    """Returns every candidate's losses in nats on (probe rows, validation rows).

    Args:
        session: the device's part of the model.
        wire: how tensors travel.
        device: partition index.
        rows: which rows.
        candidates: adapters, as in the trial; each brings the head it is used with.
        payload: the last states, coded as ``states`` behind the candidate's number. Candidates
            but the first may have none, and their losses are infinite: their prompt, or what the
            blocks made of it, is no number that travels.

    Raises:
        WireError: ``missing``, ``wrong-shape`` or ``not-finite`` states.
    """
    encoded, found = session.encoded[device], []
    batch = session.task.batch(encoded, rows.tried)
    for k, candidate in enumerate(candidates):
        prompt = torch.from_numpy(candidate[PROMPT_NAME].copy())
        readout = session.front.features(batch, session.task.loss, prompt).readout
        lead = f"{k}|"
        own = {n.removeprefix(lead): a for n, a in payload.arrays.items() if n.startswith(lead)}
        if k and not own:
            found.append((math.inf, math.inf))
            continue
        states = wire.decode(own, STATES, dims=2)
        if len(states) != int(readout.sum()):
            raise WireError("wrong-shape", f"{len(states)} states for {int(readout.sum())} places")
        session.write(candidate)
        split = len(rows.probe)
        ahead = int(readout[:split].sum())
        parts = (states[:ahead], slice(0, split)), (states[ahead:], slice(split, None))
        losses = [
            _loss(session, part, readout[where], batch["labels"][where]) for part, where in parts
        ]
        found.append((losses[0], losses[1]))
    return found


def _loss(
    session: DeviceSession, states: torch.Tensor, readout: torch.Tensor, labels: torch.Tensor
) -> float:
    with torch.no_grad():
        batch = session.head.batch(states, readout, labels, session.num_prompt)
        return float(session.task.loss(session.head, batch))


def ceiling(session: DeviceSession, device: int, rows: Rows) -> float:
    """Returns the loss in nats of guessing the probe rows' labels by the shares of tuned rows.

    Infinite where there are no classes. See ``fl_app.prompts.gate.guessing_loss``.
    """
    if not session.task.higher_is_better:
        return float("inf")
    num_classes = len(session.task.class_counts(session.encoded[device]))
    targets = np.asarray(session.encoded[device].targets, np.int64)
    counts = np.bincount(targets[list(rows.tuned)], minlength=num_classes)
    return guessing_loss(counts, [int(target) for target in targets[list(rows.probe)]])
