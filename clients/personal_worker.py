"""A device of gradient download that keeps a prompt of its own between rounds.

The head is everybody's, averaged as ever; the prompt is the device's own. What it uploads after a
round is tuned minus received adapter, so the server knows each device's prompt still, and hands
their mean to those who join.
"""

from itertools import islice
from typing import Any

from typing_extensions import override

from clients.device_session import DeviceSession
from clients.gradient_worker import GradientWorker
from clients.local_state import LocalState
from clients.prompt_choice import own_only, packed
from clients.prompt_store import BEFORE, CANDIDATE, OWN, TUNED, Kept, PromptStore
from clients.round_state import RoundState
from clients.trial import Rows, deal
from fl_app.errors import WireError
from fl_app.features_wire import Begin
from fl_app.finetune import local_batches
from fl_app.fomo.feature_link import FeatureLink
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.payload import Payload
from fl_app.schema import TransferPrompt
from fl_app.seeding import generator
from fl_app.tasks import Encoded
from fl_app.transfer_wire import Place
from fl_app.updates import Update


class PersonalWorker(GradientWorker):
    """Tunes its own prompt with everybody's head, on the rows that no gate reads.

    Args:
        transfer: the configuration's prompt group.
        store: where devices keep their prompts.
        **common: see ``PartWorker``.
    """

    def __init__(self, *, transfer: TransferPrompt, store: PromptStore, **common: Any) -> None:
        super().__init__(**common)
        self._transfer, self._store = transfer, store

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

    @override
    def _starting(self, begin: Begin) -> Update:
        own = self._own(begin)
        return begin.adapter if own is None else begin.adapter | own.arrays

    @override
    def _update(self, session: DeviceSession, state: LocalState, link: FeatureLink) -> Payload:
        self._store.put(state.device, OWN, Kept(state.round, own_only(state.now)))
        if self._store.get(state.device, BEFORE) is not None:
            self._store.put(state.device, TUNED, Kept(state.round, own_only(state.now)))
        return super()._update(session, state, link)

    @override
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

    def _held(self, state: RoundState) -> DeviceSession:
        session = self._loaded.of(state.device, state.model_hash)
        if session is None:
            raise WireError("no-emulator", "its part of the model is gone within the phase")
        return session
