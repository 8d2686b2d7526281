"""The one skeleton of a federated round; a variant says how devices are asked.

A Flower ``Strategy``: ``start`` is Flower's own loop. How updates travel (``Uplink``), in which
space LoRA is combined (``LoraSpace``) and which rule moves the adapter (``ServerRule``) are
collaborators, so none of them needs a subclass here.
"""

import logging
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from typing_extensions import override

from fl_app import updates, wire
from fl_app.errors import RunError
from fl_app.layout.prefix import cut, cut_units, pad
from fl_app.ledger import Ledger
from fl_app.records import blob_of, blob_record, from_blob, to_blob
from fl_app.seeding import generator
from fl_app.updates import Update
from strategies.booking import book_airtime, book_bytes, book_plan
from strategies.combine import Apply, Combine, Gathered, held_by
from strategies.group_step import Stepped, step_groups
from strategies.groups import Groups
from strategies.holdings import Holdings
from strategies.judge import Require, by_device, require_bounded
from strategies.lora_space import LoraSpace
from strategies.roster import Roster
from strategies.round_log import RoundLog
from strategies.round_start import RoundStart
from strategies.schedule import RoundPlan, Scheduler
from strategies.scoring import Scoring
from strategies.uplink import Received, Sent, Uplink

log = logging.getLogger("deft")


class FederatedDeft(Strategy):
    """Server side of federated DEFT.

    Args:
        blob: what devices download once, packed, addressed by its content hash.
        roster: the devices.
        uplink: how updates reach the server.
        space: in which space LoRA is combined.
        groups: which devices share an adapter, and how the server moves it.
        ledger: every byte sent is booked here.
        scheduler: which device tunes which units in a round, and on how much of the band.
        scoring: what becomes of units between rounds.
        combine: how updates of unequal ranks are combined.
        start: what devices begin a round with.
        require: what a device tuned must pass, beside being bounded.
        aggregation: which parameters travel in which round, see ``fl_app.updates.travels``.
        devices_per_round: devices drawn per round, at most the roster's.
        timeout_s: seconds to wait when something is fetched again.
        seed: the run's seed.
    """

    def __init__(
        self,
        *,
        blob: bytes,
        roster: Roster,
        uplink: Uplink,
        space: LoraSpace,
        groups: Groups,
        ledger: Ledger,
        scheduler: Scheduler,
        scoring: Scoring,
        combine: Combine,
        start: RoundStart,
        require: Require,
        aggregation: str,
        devices_per_round: int,
        timeout_s: float,
        seed: int,
    ) -> None:
        self._roster, self._uplink, self._space = roster, uplink, space
        self.groups = groups
        self.holdings = Holdings(blob, roster, start)
        self._ledger, self._seed = ledger, seed
        self._aggregation, self._scheduler = aggregation, scheduler
        self._planned = RoundPlan({})
        self._scoring, self._combine, self._round_start = scoring, combine, start
        self._require = require
        self._devices_per_round, self._timeout_s = devices_per_round, timeout_s
        self._adapter: Update = {}
        self._adapters: list[Update] = []
        """One for each group; ``_adapter`` is all of them, joined."""
        self._tuned: Update = {}
        self._orders: dict[int, wire.Order] = {}
        self._sent: dict[int, Message] = {}
        self._grid: Grid
        self._started = 0.0
        self.rounds: dict[int, RoundLog] = {}

    # --- what a variant says ---------------------------------------------------------------

    @abstractmethod
    @override
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Opens the round and writes its first messages, noted in ``_sent`` by device."""

    @abstractmethod
    def collect(self, replies: Iterable[Message], book: RoundLog) -> list[wire.Reply]:
        """Returns the answers that count, by device; books everybody else as dropped."""

    @property
    def model_hash(self) -> str:
        """Content hash of what devices compute on."""
        return self.holdings.model_hash

    # --- Flower's interface ----------------------------------------------------------------

    @override
    def summary(self) -> None:
        """Logs the shape of the federation."""
        log.info(
            "%d devices on %d nodes, %d a round",
            len(self._roster.devices),
            len(set(self._roster.node_of.values())),
            self._devices_per_round,
        )

    def open_round(self, server_round: int, arrays: ArrayRecord, grid: Grid) -> None:
        """Draws the round's devices and notes what each is to do."""
        self._grid, self._started = grid, time.monotonic()
        self._adapter = from_blob(blob_of(arrays))
        parts = self.groups.open(server_round, self.groups.split(self._adapter))
        self._adapters = [self._round_start.begin(server_round, part) for part in parts]
        # names and shapes are those of every group
        self._tuned = updates.travelling(self._adapters[0], self._aggregation, server_round)
        self.rounds[server_round] = RoundLog()
        entered = [self._space.enter(adapter) for adapter in self._adapters]
        proximal_mu = self.groups.announce(server_round, entered)
        devices = self._roster.devices
        drawn = generator(self._seed, "cohort", server_round).permutation(len(devices))
        cohort = sorted(devices[i] for i in drawn[: self._devices_per_round])
        self._planned = self._scheduler.plan(server_round, cohort, self._tuned)
        book_plan(self._ledger, self._planned, server_round, self.rounds[server_round])
        for device in sorted(set(cohort) - set(self._planned.layouts)):
            self.rounds[server_round].drop(device, "too-slow")
        self._orders = {
            device: wire.Order(
                round=server_round,
                device=device,
                num_devices=len(devices),
                model_hash=self.model_hash,
                adapter=cut(self._of(device), layout) if layout else self._of(device),
                emulator=self.holdings.blob_for(device),
                proximal_mu=proximal_mu,
                layout=layout,
                units=cut_units(self._scoring.units, layout),
                scored=self._scoring.is_wanted(server_round),
                stacks=self.holdings.stack_names,
                new_stacks=self.holdings.stacks_for(device),
            )
            for device, layout in self._planned.layouts.items()
        }

    @override
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Checks the answers, books the rest, and moves the adapter.

        Returns:
            (the next adapter, the round's figures); (None, None) where no answer counts, which
            keeps the adapter.

        Raises:
            RunError: a simulation worker died, which poisons every later round.
        """
        book = self.rounds[server_round]
        accepted = self.collect(replies, book)
        if not accepted:
            return self._keep(server_round, "no update counts")
        received = self._transmit(server_round, accepted, book)
        accepted = [
            reply for reply, is_heard in zip(accepted, received.is_heard, strict=True) if is_heard
        ]
        if not accepted:
            book.metrics |= received.report
            return self._keep(server_round, "nobody was heard")
        try:
            stepped = self.step(server_round, accepted, received)
        except RunError as error:  # too few survivors for Krum, say; the next round may have more
            return self._refuse(server_round, accepted, error)
        moved = enumerate(self._adapters)
        adapter = updates.join([stepped.adapters.get(group, kept) for group, kept in moved])
        if not updates.is_finite(adapter):
            raise RunError(
                f"round {server_round}: the server rule made the adapter NaN or infinite"
            )
        try:
            adapter = self._round_start.end(server_round, adapter)
        except RunError as error:
            return self._refuse(server_round, accepted, error)
        self.groups.moved.update(stepped.adapters)
        for device in stepped.refused:
            book.drop(device, "rule")
        book.metrics |= stepped.figures
        accepted = [reply for reply in accepted if reply.device not in stepped.refused]
        adapter = self._scoring.settle(server_round, adapter, accepted)
        shares = np.array([reply.num_examples for reply in accepted], np.float64)
        losses = np.array([reply.loss for reply in accepted])
        book.devices = [reply.device for reply in accepted]
        book.metrics |= {
            "train_loss": float(losses @ shares / shares.sum()),
            **received.report,
        }
        book.seconds = time.monotonic() - self._started
        return blob_record(to_blob(adapter)), MetricRecord(dict(book.metrics))

    @override
    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Asks no device: the server measures on its own test data."""
        return []

    @override
    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing to aggregate."""
        return None

    @property
    def results(self) -> dict[str, Any]:
        """Further entries of ``result.json``, by name; at any time, also after a failure."""
        return {}

    def close(self) -> None:
        """Frees what was held for the run; called once, whatever happened."""

    # --- parts of a round ------------------------------------------------------------------

    def step(
        self, server_round: int, accepted: Sequence[wire.Reply], received: Received
    ) -> Stepped:
        """Returns what the round makes of the adapters.

        Raises:
            RunError: too few for the server's rule in every group.
        """
        return step_groups(self.groups, server_round, accepted, received, self._next)

    def _next(
        self, group: int, own: Sequence[wire.Reply], received: Received, apply: Apply
    ) -> tuple[Update, dict[str, float]]:
        """Returns a group's next adapter, and figures for the round's metrics."""
        gathered = Gathered(
            adapter=self._adapters[group],
            tuned=self._tuned,
            received=received,
            presence=self._held(own),
            weights=np.array([reply.num_examples for reply in own], np.float64),
        )
        return self._combine.next_adapter(gathered, self._space, apply)

    def _of(self, device: int) -> Update:
        """Returns the adapter of a device's group."""
        return self._adapters[self.groups.of[device]]

    def _refuse(
        self, server_round: int, accepted: list[wire.Reply], error: RunError
    ) -> tuple[None, None]:
        """Ends a round of which the server's step can make nothing."""
        for reply in accepted:
            self.rounds[server_round].drop(reply.device, "rule")
        return self._keep(server_round, str(error))

    def _keep(self, server_round: int, why: str) -> tuple[None, None]:
        """Ends a round that leaves the adapter as it was."""
        log.warning("round %d: %s; the adapter is unchanged", server_round, why)
        self.rounds[server_round].seconds = time.monotonic() - self._started
        return None, None

    def _transmit(self, server_round: int, accepted: list[wire.Reply], book: RoundLog) -> Received:
        """Sends the accepted updates over the uplink and books what that cost."""
        received = self._uplink.receive(
            Sent(
                updates=updates.stack([reply.update for reply in accepted]),
                weights=np.array([reply.num_examples for reply in accepted], np.float64),
                round=server_round,
                devices=[reply.device for reply in accepted],
                sizes=[self._tuned[name].size for name in sorted(self._tuned)],
                presence=self._held(accepted),
                bandwidths_hz=self._planned.bandwidths_hz([reply.device for reply in accepted]),
                score_bytes=np.array([reply.score_bytes for reply in accepted], np.int64),
            ),
            generator(self._seed, "uplink", server_round),
        )
        for reply, is_heard in zip(accepted, received.is_heard, strict=True):
            if not is_heard:
                book.drop(reply.device, "unheard")
        if received.airtime is not None:
            book_airtime(self._ledger, received.airtime, accepted, self._orders)
        return received

    def _held(self, replies: Sequence[wire.Reply]) -> NDArray[np.bool_] | None:
        """Returns [num_replies, num_params] who holds what; None where everybody holds all."""
        if self._scheduler.is_shared:
            return None
        return held_by([self._orders[reply.device].layout for reply in replies], self._tuned)

    def _by_device(self, replies: Iterable[Message]) -> dict[int, list[Message]]:
        asked = {m.metadata.message_id: device for device, m in self._sent.items()}
        return by_device(replies, asked)

    def _expected(self, order: wire.Order) -> dict[str, Any]:
        """Returns what a device's answer must fit: its own adapter, as it was sent."""
        like = updates.travelling(order.adapter, self._aggregation, order.round)
        return {"order": order, "layout_hash": updates.layout_hash(order.adapter), "like": like}

    def _accepted(self, reply: wire.Reply) -> wire.Reply:
        """Returns an answer in the server's coordinates.

        Raises:
            WireError: it is finite itself but so large that sums, products or models overflow, or
                does not pass what else is required.
        """
        whole = replace(reply, update=pad(reply.update, self._tuned))
        tuned = updates.add(self._of(reply.device), whole.update)
        require_bounded(tuned)
        self._require(tuned)
        return whole

    def _book(self, link: str, order: wire.Order, what: str, num_bytes: int) -> None:
        book_bytes(self._ledger, link, order, what, num_bytes)
