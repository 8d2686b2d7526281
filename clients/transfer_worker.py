"""A device of gradient download that keeps its prompt, and looks for a better one among others'.

The head is everybody's, averaged as ever; the prompt is the device's own. What it uploads after a
round is tuned minus received adapter, so the server knows each device's prompt still, and hands
their mean to those who join.
"""

from itertools import islice
from typing import Any

from clients.device_session import DeviceSession
from clients.gradient_worker import GradientWorker
from clients.local_state import LocalState
from clients.prompt_choice import fit_to, own_only, packed, taken_in, wanted
from clients.prompt_store import BEFORE, CANDIDATE, OWN, TUNED, Kept, PromptStore
from clients.round_state import RoundState
from clients.transfer_state import TransferState, read_transfer_state
from clients.trial import Rows, deal, guessing_loss, trial_losses, trial_payload
from fl_app.errors import WireError
from fl_app.features_wire import MAX_BYTES, NO_FRONT, Begin
from fl_app.finetune import local_batches
from fl_app.fomo.blob import content_hash
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.payload import Payload
from fl_app.prompts.transfer import ENDS, let_in, settle
from fl_app.schema import TransferPrompt
from fl_app.seeding import generator
from fl_app.tasks import Encoded
from fl_app.transfer_wire import (
    ADVERT,
    GIVEN,
    NOBODY,
    WANT,
    Place,
    Report,
    bytes_of,
    octets,
    read_offers,
    read_place,
)
from fl_app.updates import Update

_ADAPTER, _BLOB = "adapter|", "blob|"
Answer = tuple[RoundState | None, Payload]


class TransferWorker(GradientWorker):
    """Handles transfer phases beside ordinary rounds.

    Args:
        transfer: the configuration's prompt group.
        store: where devices keep their prompts.
        **common: see ``PartWorker``.
    """

    def __init__(self, *, transfer: TransferPrompt, store: PromptStore, **common: Any) -> None:
        super().__init__(**common)
        self._transfer, self._store = transfer, store

    def _open(self, payload: Payload) -> Answer:
        match payload.kind:
            case "advertise":
                return None, self._advertise(read_place(payload))
            case "give":
                return None, self._give(payload)
            case "offers":
                return self._choose(payload)
            case "settle":
                return self._settle(payload)
            case _:
                return super()._open(payload)

    def _continue(self, blob: bytes, payload: Payload) -> Answer:
        match payload.kind:
            case "give":  # a device that looks for a prompt may have one to give
                return read_transfer_state(blob), self._give(payload)
            case "try":
                return self._try(read_transfer_state(blob), payload)
            case "judge":
                state = read_transfer_state(blob)
                return None, (self._end if state.is_last else self._gate)(state, payload)
            case _:
                return super()._continue(blob, payload)

    # --- what it gives -----------------------------------------------------------------------

    def _advertise(self, place: Place) -> Payload:
        own = self._own(place)
        if own is None:
            return Payload(ADVERT, 0)
        advert, _ = self._packed(place, own)
        return Payload(ADVERT, 0, {}, {ADVERT: octets(advert)})

    def _give(self, payload: Payload) -> Payload:
        place = read_place(payload)
        own = self._own(place)
        blob = b"" if own is None else self._packed(place, own)[1]
        is_asked = content_hash(blob) == payload.scalars.get("blob_hash")
        return Payload(GIVEN, 0, {}, {GIVEN: octets(blob)} if is_asked else {})

    def _packed(self, place: Place, own: Kept) -> tuple[bytes, bytes]:
        return packed(
            own.arrays[PROMPT_NAME],
            made=own.round,
            device=place.device,
            model_hash=place.model_hash,
            task=self._config.model.task,
            settings=self._transfer,
        )

    def _own(self, place: Place | Begin) -> Kept | None:
        """Returns the prompt in use; a round that broke off before it was settled is undone."""
        before = self._store.get(place.device, BEFORE)
        if before is not None and before.round < place.round:
            self._store.put(place.device, OWN, Kept(before.round, own_only(before.arrays)))
            self._store.drop(place.device, BEFORE, CANDIDATE, TUNED)
        return self._store.get(place.device, OWN)

    # --- what it takes -----------------------------------------------------------------------

    def _choose(self, payload: Payload) -> Answer:
        place, heard = read_place(payload), read_offers(payload)
        session = self._loaded.of(place.device, place.model_hash)
        if session is None:
            return None, Payload(NO_FRONT, 0)
        own = self._own(place)
        asked = wanted(
            heard,
            None if own is None else own.arrays[PROMPT_NAME],
            fit_to(session.model, place.model_hash),
            self._transfer,
            now_round=place.round,
        )
        adverts = {h.source: h.advert for h in heard if h.source in asked}
        state = TransferState(**vars(place), adverts=adverts) if asked else None
        return state, Payload(WANT, 0, {str(source): name for source, name in asked.items()})

    def _try(self, state: TransferState, payload: Payload) -> Answer:
        session = self._loaded.of(state.device, state.model_hash)
        if session is None:
            return None, Payload(NO_FRONT, 0)
        adapter = {
            name.removeprefix(_ADAPTER): array
            for name, array in payload.arrays.items()
            if name.startswith(_ADAPTER)
        }
        blobs = {
            int(name.removeprefix(_BLOB)): bytes_of(payload, name, MAX_BYTES)
            for name in payload.arrays
            if name.startswith(_BLOB)
        }
        prompts, refused = taken_in(
            blobs,
            state.adverts,
            fit_to(session.model, state.model_hash),
            len(adapter[PROMPT_NAME]),
        )
        reasons = " ".join(refused)
        rows = self._dealt(state.device, session)
        if not prompts or not rows.probe:
            return None, Report("kept", NOBODY, len(prompts), reasons).to_payload()
        own = self._store.get(state.device, OWN)
        mine = adapter if own is None else adapter | own.arrays
        others = [{**adapter, PROMPT_NAME: prompts[source]} for source in prompts]
        return self._on_trial(session, state, (mine, *others), tuple(prompts), reasons)

    def _on_trial(
        self,
        session: DeviceSession,
        state: TransferState,
        candidates: tuple[Update, ...],
        sources: tuple[int, ...],
        refused: str = "",
        *,
        is_last: bool = False,
    ) -> Answer:
        after = TransferState(
            round=state.round,
            device=state.device,
            model_hash=state.model_hash,
            seconds=state.seconds,
            adverts={},
            candidates=candidates,
            sources=sources,
            refused=refused,
            is_last=is_last,
        )
        rows = self._dealt(state.device, session)
        rng = generator(self._config.seed, "trial", state.round, state.device, int(is_last))
        session.write(candidates[0])
        return after, trial_payload(session, self._wire, state.device, rows, candidates, rng)

    def _losses(self, state: TransferState, payload: Payload) -> list[tuple[float, float]]:
        session = self._held(state)
        rows = self._dealt(state.device, session)
        return trial_losses(session, self._wire, state.device, rows, state.candidates, payload)

    def _gate(self, state: TransferState, payload: Payload) -> Payload:
        """Lets the best candidate in, or nobody."""
        losses, transfer = self._losses(state, payload), self._transfer
        session, place = self._held(state), state.device
        probe = self._dealt(place, session).probe
        ceiling = guessing_loss(session, session.encoded[place], probe)
        passed = let_in([first for first, _ in losses], margin=transfer.margin, ceiling=ceiling)
        best = passed or 1 + min(range(len(losses) - 1), key=lambda k: losses[k + 1][0])
        action = "passed" if passed else "kept"
        if passed and transfer.use == "zero_shot":
            action = ENDS[settle([losses[0][1], losses[best][1]])]
        mine, candidate = state.candidates[0], state.candidates[best]
        if action in ("passed", "zero-shot"):
            self._store.put(place, OWN, Kept(state.round, own_only(candidate)))
        if action == "passed":
            self._store.put(place, BEFORE, Kept(state.round, mine))
            self._store.put(place, CANDIDATE, Kept(state.round, candidate))
        return Report(
            action,
            state.sources[passed - 1] if passed else NOBODY,
            len(state.sources),
            state.refused,
            loss_own=losses[0][1],
            loss_candidate=losses[best][1],
            probe_own=losses[0][0],
            probe_candidate=losses[best][0],
        ).to_payload()

    # --- after tuning ------------------------------------------------------------------------

    def _settle(self, payload: Payload) -> Answer:
        place = read_place(payload)
        session = self._loaded.of(place.device, place.model_hash)
        if session is None:
            return None, Payload(NO_FRONT, 0)
        found = [self._store.get(place.device, name) for name in (BEFORE, CANDIDATE, TUNED)]
        candidates = tuple(one.arrays for one in found if one and one.round == place.round)
        if len(candidates) < len(found):
            return None, Report("kept", NOBODY).to_payload()
        self._dealt(place.device, session)
        state = TransferState(**vars(place), adverts={})
        return self._on_trial(session, state, candidates, (), is_last=True)

    def _end(self, state: TransferState, payload: Payload) -> Payload:
        """Keeps the best of what was in use, the candidate, and what tuning made of it."""
        losses = [second for _, second in self._losses(state, payload)]
        last = settle(losses)
        self._store.put(state.device, OWN, Kept(state.round, own_only(state.candidates[last])))
        self._store.drop(state.device, BEFORE, CANDIDATE, TUNED)
        return Report(
            ENDS[last],
            NOBODY,
            loss_own=losses[0],
            loss_candidate=losses[1],
            loss_tuned=losses[2],
        ).to_payload()

    # --- ordinary rounds ---------------------------------------------------------------------

    def _starting(self, begin: Begin) -> Update:
        own = self._own(begin)
        return begin.adapter if own is None else begin.adapter | own.arrays

    def _update(self, session: DeviceSession, state: LocalState) -> Payload:
        self._store.put(state.device, OWN, Kept(state.round, own_only(state.now)))
        if self._store.get(state.device, BEFORE) is not None:
            self._store.put(state.device, TUNED, Kept(state.round, state.now))
        return super()._update(session, state)

    def _rows(self, session: DeviceSession, device: int, server_round: int) -> list[list[int]]:
        """Returns local steps over the rows that no gate reads."""
        tuned, whole = self._dealt(device, session).tuned, session.encoded[device]
        part = Encoded(
            [whole.rows[i] for i in tuned],
            [whole.targets[i] for i in tuned],
            whole.lengths[list(tuned)],
        )
        finetune = self._config.finetune
        batches = local_batches(
            part,
            batch_size=finetune.batch_size,
            epochs=finetune.epochs,
            rng=generator(self._config.seed, "local", server_round, device),
        )
        return [[tuned[i] for i in batch] for batch in islice(batches, finetune.max_steps)]

    def _dealt(self, device: int, session: DeviceSession) -> Rows:
        return deal(
            len(self._data.encoded(device, session)),
            probe=self._transfer.probe_rows,
            validation=self._transfer.validation_rows,
            seed=self._config.seed,
            device=device,
        )

    def _held(self, state: TransferState) -> DeviceSession:
        session = self._loaded.of(state.device, state.model_hash)
        if session is None:
            raise WireError("no-emulator", "its part of the model is gone within the phase")
        return session
