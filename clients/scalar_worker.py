"""The device side of tuning by scalars: seeds up, one number per direction down.

Every round a device rebuilds the adapter from the sums it is sent and says its digest, so both
sides know that they stand at the same bits. It needs no weight of it: what depends on the adapter
is computed at the server, and labels enter through the loss alone.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from clients.device_session import DeviceSession
from clients.part_worker import PartWorker
from clients.round_state import RoundState
from fl_app import scalar_wire, wire
from fl_app.errors import WireError
from fl_app.features_wire import MAX_BYTES, NO_FRONT, UPDATE, Arrays
from fl_app.fomo.head_output import HeadOutput
from fl_app.payload import Payload, read_payload
from fl_app.scalar_wire import Opening, Start
from fl_app.seed_pool import SeedPool
from fl_app.seeding import generator
from fl_app.tasks import Batch
from fl_app.updates import Update, layout_hash
from fl_app.zeroth_order import rebuild, scalar

_STATE = "scalar-state"
_PLAN_ROUND = 1
"""Features cross once, so every round walks over the batches of the first."""


@dataclass(frozen=True, kw_only=True)
class ScalarState(RoundState):
    """One device between two exchanges by scalars; see ``RoundState``.

    ``step`` and ``loss_sum`` stay 0 where labels are at the server.

    Attributes:
        num_steps: local steps of the round.
    """

    num_steps: int

    @override
    def to_blob(self) -> bytes:
        """Serialises."""
        return Payload(_STATE, 0, asdict(self)).to_blob()


def _read_state(blob: bytes) -> ScalarState:
    scalars: dict[str, Any] = dict(read_payload(blob, max_bytes=MAX_BYTES).scalars)
    return ScalarState(**scalars)


class ScalarWorker(PartWorker):
    """Handles the exchanges of ``strategy.variant=scalar``.

    Args:
        **settings: see ``PartWorker``.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._pool = SeedPool(self._strategy.scalar.num_seeds, self._config.seed)
        self._rebuilt: tuple[bytes, str] | None = None

    def adapter(self, session: DeviceSession, coefficients: NDArray[np.float32]) -> Update:
        """Rebuilds the adapter from the sums of all rounds so far.

        Args:
            session: the device's part of the model, which holds where the adapter started.
            coefficients: see ``Opening``.
        """
        return rebuild(session.start, self._pool.pairs(coefficients), self._strategy.scalar.lr)

    @override
    def _open(self, payload: Payload) -> tuple[ScalarState | None, Payload]:
        opening = scalar_wire.read_opening(payload, len(self._pool))
        session = self._loaded.of(opening.device, opening.model_hash)
        if session is None:
            return None, Payload(NO_FRONT, 0)
        rows = self._rows(session, opening.device, _PLAN_ROUND)
        rng = generator(self._config.seed, "directions", opening.round, opening.device)
        seeds = rng.integers(len(self._pool), size=len(rows), dtype=np.int32)
        start = Start(seeds, self._digest(session, opening))
        if opening.wants_features:
            made = [self._features(session, opening.device, i) for i in range(len(rows))]
            start = replace(
                start,
                batches=[arrays for arrays, _ in made],
                error=float(np.mean([error for _, error in made])),
                counts=session.counts_of(opening.device) if self._labels_travel else None,
            )
        state = ScalarState(
            round=opening.round,
            device=opening.device,
            model_hash=opening.model_hash,
            num_steps=len(rows),
        )
        return state, start.to_payload()

    @override
    def _continue(self, blob: bytes, payload: Payload) -> tuple[ScalarState | None, Payload]:
        state = _read_state(blob)
        session = self._loaded.of(state.device, state.model_hash)
        if session is None:
            return None, Payload(NO_FRONT, payload.step)
        match payload.kind:
            case scalar_wire.SIDES:
                return self._slope(session, state, payload)
            case scalar_wire.CLOSE:
                return None, self._update(session, state, payload)
            case other:
                raise WireError("wrong-kind", f"{other!r} is no answer to a device")

    # --- the three things a device does ------------------------------------------------------

    def _features(self, session: DeviceSession, device: int, step: int) -> tuple[Arrays, float]:
        """Front on one batch, and the relative error of its coding.

        Nothing in it is tuned, so this holds for the whole run.
        """
        batch = self._batch(session, device, step)
        features = session.front.features(batch, session.loss_of(device))
        rng = generator(self._config.seed, "features", _PLAN_ROUND, device, step)
        arrays = self._wire.features(features, rng)
        error = self._wire.error(features, arrays)
        if self._labels_travel:
            arrays["labels"] = batch["labels"].numpy()
        return arrays, error

    def _slope(
        self, session: DeviceSession, state: ScalarState, payload: Payload
    ) -> tuple[ScalarState, Payload]:
        """Loss of both sides: their slope up."""
        if payload.step != state.step:
            raise WireError("wrong-step", f"at local step {state.step}, got {payload.step}")
        plus, minus, readout = scalar_wire.read_sides(payload)
        labels = self._batch(session, state.device, state.step)["labels"]
        reader = HeadOutput(session.head, is_tuned=bool(session.head_names))
        above, below = (
            reader.loss(side, readout, labels, session.loss_of(state.device))
            for side in (plus, minus)
        )
        value = scalar(above, below, self._strategy.scalar.step)
        after = replace(state, step=state.step + 1, loss_sum=state.loss_sum + (above + below) / 2)
        return after, scalar_wire.slope(state.step, value)

    def _update(self, session: DeviceSession, state: ScalarState, payload: Payload) -> Payload:
        """The round's slopes are here, and with the seeds the device's own adapter."""
        _, loss = scalar_wire.read_close(payload, state.num_steps)
        return Payload(
            UPDATE,
            state.num_steps,
            {
                wire.ROUND: state.round,
                wire.DEVICE: state.device,
                wire.MODEL_HASH: state.model_hash,
                wire.LAYOUT_HASH: layout_hash(session.start),
                wire.NUM_EXAMPLES: len(self._data.encoded(state.device, session)),
                wire.LOSS: state.loss_sum / state.num_steps if loss is None else loss,
                wire.SECONDS: state.seconds,
            },
        )

    # --- what they need ----------------------------------------------------------------------

    @property
    def _labels_travel(self) -> bool:
        return self._strategy.labels == "server"

    def _batch(self, session: DeviceSession, device: int, step: int) -> Batch:
        rows = self._rows(session, device, _PLAN_ROUND)[step]
        return session.task.batch(session.encoded[device], rows)

    def _digest(self, session: DeviceSession, opening: Opening) -> str:
        """Digest of the rebuilt adapter; a process that plays many devices rebuilds it once."""
        key = opening.model_hash.encode() + opening.coefficients.tobytes()
        if self._rebuilt is None or self._rebuilt[0] != key:
            adapter = self.adapter(session, opening.coefficients)
            self._rebuilt = key, scalar_wire.digest(adapter)
        return self._rebuilt[1]
