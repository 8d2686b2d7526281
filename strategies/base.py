"""The one skeleton of a federated round; a variant says only what devices download.

A Flower ``Strategy``: ``start`` is Flower's own loop. How updates travel (``Uplink``), in which
space LoRA is combined (``LoraSpace``) and which rule moves the adapter (``ServerRule``) are
collaborators, so none of them needs a subclass here.
"""

import logging
import time
from abc import abstractmethod
from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_app import updates, wire
from fl_app.errors import RunError, WireError
from fl_app.ledger import Ledger
from fl_app.seeding import generator
from fl_app.updates import Update
from strategies.crossings import Crossings
from strategies.judge import by_device, judge
from strategies.lora_space import LoraSpace
from strategies.roster import Roster
from strategies.round_log import RoundLog
from strategies.rules import ServerRule
from strategies.uplink import Received, Sent, Uplink

log = logging.getLogger("deft")


class FederatedDeft(Strategy):
    """Server side of federated DEFT.

    Args:
        roster: the devices.
        uplink: how updates reach the server.
        space: in which space LoRA is combined.
        rule: how the server moves the adapter.
        ledger: every byte sent is booked here.
        crossings: books what devices' neural connections cost.
        layout_hash: of the server's adapter.
        aggregation: which parameters travel in which round, see ``fl_app.updates.travels``.
        devices_per_round: devices drawn per round, at most the roster's.
        timeout_s: seconds to wait when something is fetched again.
        seed: the run's seed.
    """

    def __init__(
        self,
        *,
        roster: Roster,
        uplink: Uplink,
        space: LoraSpace,
        rule: ServerRule,
        ledger: Ledger,
        crossings: Crossings,
        layout_hash: str,
        aggregation: str,
        devices_per_round: int,
        timeout_s: float,
        seed: int,
    ) -> None:
        self._roster, self._uplink, self._space, self._rule = roster, uplink, space, rule
        self._ledger, self._crossings, self._seed = ledger, crossings, seed
        self._aggregation, self._layout_hash = aggregation, layout_hash
        self._devices_per_round, self._timeout_s = devices_per_round, timeout_s
        self._adapter: Update = {}
        self._tuned: Update = {}
        self._orders: dict[int, wire.Order] = {}
        self._sent: dict[int, Message] = {}
        self._grid: Grid | None = None
        self._started = 0.0
        self.rounds: dict[int, RoundLog] = {}

    # --- what a variant says ---------------------------------------------------------------

    @property
    @abstractmethod
    def model_hash(self) -> str:
        """Content hash of what devices compute on; replies must name the same."""

    @abstractmethod
    def download(self, device: int) -> bytes | None:
        """Returns what ``device`` must download this round besides the adapter, if anything."""

    @abstractmethod
    def acknowledge(self, device: int) -> None:
        """Notes that a device answered, hence holds what it was sent."""

    @abstractmethod
    def forget(self, device: int) -> None:
        """Notes that a device lost what it had been sent."""

    # --- Flower's interface ----------------------------------------------------------------

    def summary(self) -> None:
        """Logs the shape of the federation."""
        log.info(
            "%d devices on %d nodes, %d a round",
            len(self._roster.devices),
            len(set(self._roster.node_of.values())),
            self._devices_per_round,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draws devices and writes one message to each."""
        self._grid, self._started = grid, time.monotonic()
        self._adapter = wire.from_blob(wire.blob_of(arrays))
        self._tuned = {
            name: array
            for name, array in self._adapter.items()
            if updates.travels(name, self._aggregation, server_round)
        }
        self.rounds[server_round] = RoundLog()
        proximal_mu = self._rule.announce(server_round, self._space.enter(self._adapter))
        devices = self._roster.devices
        drawn = generator(self._seed, "cohort", server_round).permutation(len(devices))
        cohort = sorted(devices[i] for i in drawn[: self._devices_per_round])
        self._orders = {
            device: wire.Order(
                round=server_round,
                device=device,
                num_devices=len(devices),
                model_hash=self.model_hash,
                adapter=self._adapter,
                emulator=self.download(device),
                proximal_mu=proximal_mu,
            )
            for device in cohort
        }
        self._sent = {device: self._write(order, arrays) for device, order in self._orders.items()}
        return list(self._sent.values())

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
        answered = self._resend_lost(self._by_device(replies))
        book = self.rounds[server_round]
        accepted = []
        for device in sorted(self._orders):
            messages = answered.get(device, [])
            accepted += self._judge(device, messages, book)
        if not accepted:
            return self._keep(server_round, "no update counts")
        received = self._transmit(server_round, accepted, book)
        accepted = [
            reply for reply, is_heard in zip(accepted, received.is_heard, strict=True) if is_heard
        ]
        if not accepted:
            book.metrics = dict(received.report)
            return self._keep(server_round, "nobody was heard")
        rows = [
            self._space.enter(updates.add(self._adapter, updates.unstack(row, self._tuned)))
            for row in received.rows
        ]
        try:
            combined = self._rule.apply(server_round, rows, received.weights)
        except RunError as error:  # too few survivors for Krum, say; the next round may have more
            for reply in accepted:
                book.drop(reply.device, "rule")
            return self._keep(server_round, str(error))
        adapter = self._space.leave(combined)
        if not updates.is_finite(adapter):
            raise RunError(
                f"round {server_round}: the server rule made the adapter NaN or infinite"
            )
        shares = np.array([reply.num_examples for reply in accepted], np.float64)
        losses = np.array([reply.loss for reply in accepted])
        book.devices = [reply.device for reply in accepted]
        book.metrics = {
            "train_loss": float(losses @ shares / shares.sum()),
            **received.report,
        }
        book.seconds = time.monotonic() - self._started
        return wire.blob_record(wire.to_blob(adapter)), MetricRecord(dict(book.metrics))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Asks no device: the server measures on its own test data."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing to aggregate."""
        return None

    # --- parts of a round ------------------------------------------------------------------

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
            ),
            generator(self._seed, "uplink", server_round),
        )
        for reply, is_heard in zip(accepted, received.is_heard, strict=True):
            if not is_heard:
                book.drop(reply.device, "unheard")
        if (cost := received.airtime) is not None:
            self._ledger.book_airtime(
                round=server_round, channel_uses=cost.channel_uses, seconds=cost.seconds
            )
            for k, reply in enumerate(accepted):
                order, joules = self._orders[reply.device], float(cost.joules[k])
                self._book("uplink", order, "update", int(cost.payload_bytes[k]))
                self._book("uplink", order, "control", int(cost.control_bytes[k]))
                self._book("downlink", order, "control", cost.announced_bytes)
                self._ledger.book_joules(round=server_round, device=reply.device, joules=joules)
        return received

    def _write(self, order: wire.Order, arrays: ArrayRecord) -> Message:
        """Writes one device's message and books its payload."""
        adapter_bytes = len(wire.blob_of(arrays))
        self._book("downlink", order, "adapter", adapter_bytes)
        if order.emulator is not None:
            self._book("downlink", order, "emulator", len(order.emulator))
        return wire.order_message(order, self._roster.node_of[order.device], arrays)

    def _by_device(self, replies: Iterable[Message]) -> dict[int, list[Message]]:
        asked = {m.metadata.message_id: device for device, m in self._sent.items()}
        return by_device(replies, asked)

    def _resend_lost(self, answered: dict[int, list[Message]]) -> dict[int, list[Message]]:
        """Sends the emulator again, within the round, to devices that lost their copy."""
        # Who asks for it and answers all the same has answered twice; that is judged later.
        lost = [d for d, rs in answered.items() if len(rs) == 1 and wire.lacks_emulator(rs[0])]
        if not lost or self._grid is None:
            return answered
        log.warning("devices %s have no undamaged emulator; sending it again", sorted(lost))
        arrays = wire.blob_record(wire.to_blob(self._adapter))
        for device in sorted(lost):
            self.forget(device)
            old = self._orders[device]
            order = wire.Order(**{**vars(old), "emulator": self.download(device)})
            self._orders[device] = order
            self._sent[device] = self._write(order, arrays)
        again = [self._sent[device] for device in sorted(lost)]
        replies = self._grid.send_and_receive(again, timeout=self._timeout_s)
        kept = {device: r for device, r in answered.items() if device not in lost}
        return {**kept, **self._by_device(replies)}

    def _judge(self, device: int, messages: list[Message], book: RoundLog) -> list[wire.Reply]:
        """Accepts a device's one valid answer; books it as dropped otherwise."""
        order = self._orders[device]
        if not self._uplink.is_radio:  # a radio is booked for what it sends, not for this message
            for message in messages:
                self._book("uplink", order, "update", wire.uplink_bytes(message))
        self._crossings.book(order, messages)
        try:
            reply = judge(messages, order=order, layout_hash=self._layout_hash, like=self._tuned)
            self._require_finite(reply)
        except WireError as error:
            log.warning("round %d: device %d dropped: %s", order.round, device, error)
            book.drop(device, error.reason)
            return []
        self.acknowledge(device)
        self._ledger.book_seconds(
            round=order.round, device=device, phase="local", seconds=reply.seconds
        )
        return [reply]

    def _require_finite(self, reply: wire.Reply) -> None:
        """Refuses an update that is finite itself but overflows where updates are combined."""
        with np.errstate(over="ignore", invalid="ignore"):
            entered = self._space.enter(updates.add(self._adapter, reply.update))
        if not updates.is_finite(entered):
            raise WireError("not-finite", "the update overflows where LoRA is combined")

    def _book(self, link: str, order: wire.Order, what: str, num_bytes: int) -> None:
        self._ledger.book(
            round=order.round,
            device=order.device,
            link=link,  # type: ignore[arg-type]
            what=what,  # type: ignore[arg-type]
            num_bytes=num_bytes,
        )
