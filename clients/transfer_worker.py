"""The device side of a transfer phase: gives its prompt, and looks for a better one."""

from collections.abc import Sequence
from functools import partial

from typing_extensions import override

from clients.device_session import DeviceSession
from clients.meeting import Choice, meet
from clients.personal_worker import PersonalWorker
from clients.prompt_choice import fit_to, mixture, own_only, taken_in, wanted
from clients.prompt_store import BEFORE, CANDIDATE, OWN, TUNED, Kept
from clients.round_state import RoundState
from clients.transfer_state import TransferState, read_transfer_state
from clients.trial import ceiling, trial_losses, trial_payload
from fl_app.features_wire import MAX_BYTES, NO_FRONT
from fl_app.fomo.blob import content_hash
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.meeting_wire import IDENTITY, MEET, MET, read_peers
from fl_app.payload import Payload, Scalar, read_payload
from fl_app.prompts.advert import Advert, read_advert
from fl_app.prompts.transfer import ENDS, let_in, settle
from fl_app.seeding import generator
from fl_app.transfer_wire import (
    ADVERT,
    GIVEN,
    MIXED,
    NOBODY,
    WANT,
    Heard,
    Place,
    Report,
    bytes_of,
    number_of,
    octets,
    read_offers,
    read_place,
)
from fl_app.updates import Update

_ADAPTER, _BLOB = "adapter|", "blob|"
Answer = tuple[RoundState | None, Payload]


class TransferWorker(PersonalWorker):
    """Handles transfer phases beside ordinary rounds; see ``PersonalWorker``."""

    @override
    def handle(self, state: bytes | None, blob: bytes) -> tuple[bytes | None, bytes]:
        """See ``PartWorker.handle``; devices of one process that meet must not wait for a lock."""
        if (payload := read_payload(blob, max_bytes=MAX_BYTES)).kind != MEET:
            return super().handle(state, blob)
        after, answer = self._meet(payload)
        return None if after is None else after.to_blob(), answer.to_blob()

    @override
    def _open(self, payload: Payload) -> Answer:
        match payload.kind:
            case "identify":
                return None, self._identify(read_place(payload))
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

    @override
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

    # --- direct links ------------------------------------------------------------------------

    def _identify(self, place: Place) -> Payload:
        certificate = self._store.identity(place.device).certificate
        return Payload(IDENTITY, 0, {}, {IDENTITY: octets(certificate)})

    def _meet(self, payload: Payload) -> Answer:
        place, own = read_place(payload), self._own(read_place(payload))
        with self._lock:
            session = self._loaded.of(place.device, place.model_hash)
        choose: Choice | None = None
        if payload.scalars.get("is_asker") is True and session is not None:
            choose = partial(self._wanted, place, session)
        shelf: dict[str, tuple[Advert, bytes]] = {}
        if own is not None:
            advert, blob = self._packed(place, own)
            shelf[content_hash(blob)] = read_advert(advert), blob
        met = meet(
            self._store.identity(place.device),
            str(payload.scalars["address"]),
            read_peers(payload),
            shelf,
            choose,
            seconds=number_of(payload, "seconds"),
        )
        sizes: dict[str, Scalar] = {"offers": len(met.heard)}
        sizes |= {f"advert|{one.source}": len(one.advert) for one in met.heard}
        sizes |= {f"blob|{source}": len(blob) for source, blob in met.blobs.items()}
        adverts = {one.source: one.advert for one in met.heard if one.source in met.blobs}
        blobs = {source: blob for source, blob in met.blobs.items() if blob}
        state = TransferState(**vars(place), adverts=adverts, blobs=blobs) if adverts else None
        return state, Payload(MET, 0, sizes)

    # --- what it takes -----------------------------------------------------------------------

    def _choose(self, payload: Payload) -> Answer:
        place, heard = read_place(payload), read_offers(payload)
        session = self._loaded.of(place.device, place.model_hash)
        if session is None:
            return None, Payload(NO_FRONT, 0)
        asked = self._wanted(place, session, heard)
        adverts = {h.source: h.advert for h in heard if h.source in asked}
        state = TransferState(**vars(place), adverts=adverts) if asked else None
        return state, Payload(WANT, 0, {str(source): name for source, name in asked.items()})

    def _wanted(
        self, place: Place, session: DeviceSession, heard: Sequence[Heard]
    ) -> dict[int, str]:
        own = self._own(place)
        return wanted(
            heard,
            None if own is None else own.arrays[PROMPT_NAME],
            fit_to(session.model, place.model_hash),
            self._transfer,
            now_round=place.round,
        )

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
            state.blobs | blobs,
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
        prompts |= mixture(prompts, mine[PROMPT_NAME], self._transfer)
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
        most = ceiling(session, place, self._dealt(place, session))
        passed = let_in([first for first, _ in losses], margin=transfer.margin, ceiling=most)
        best = passed or 1 + min(range(len(losses) - 1), key=lambda k: losses[k + 1][0])
        action = "passed" if passed else "kept"
        if passed and transfer.use == "zero_shot":
            action = ENDS[settle([losses[0][1], losses[best][1]])]
        mine, candidate = state.candidates[0], state.candidates[best]
        if action in ("passed", "zero-shot"):
            self._store.put(place, OWN, Kept(state.round, own_only(candidate)))
        if action == "passed":
            self._store.put(place, BEFORE, Kept(state.round, mine))
            self._store.put(place, CANDIDATE, Kept(state.round, own_only(candidate)))
        return Report(
            action,
            state.sources[passed - 1] if passed else NOBODY,
            sum(source != MIXED for source in state.sources),
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
        kept = [one.arrays for one in found if one and one.round == place.round]
        # all with the round's head: the one tuned along is averaged away, and only prompts stay
        candidates = tuple({**kept[0], PROMPT_NAME: one[PROMPT_NAME]} for one in kept)
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
