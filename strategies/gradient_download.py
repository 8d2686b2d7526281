"""Federated DEFT by gradient download: the FoMo stays at the server."""

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fl_app import front_wire, wire
from fl_app.errors import WireError
from fl_app.features_wire import Begin
from fl_app.fomo.package import content_hash
from fl_app.payload import Payload
from fl_app.privacy import features_epsilon
from strategies.base import FederatedDeft
from strategies.feature_server import FeatureServer
from strategies.gradient_round import GradientPlan, GradientRound
from strategies.round_log import RoundLog
from strategies.transport import Transport

log = logging.getLogger("deft")


class GradientDownload(FederatedDeft):
    """Devices get embeddings (or the first blocks) and the head once, then gradients.

    Args:
        front: the packed device part, addressed by its content hash.
        server: computes on features.
        plan: how a round goes.
        transport: the way to the devices.
        **collaborators: see ``FederatedDeft``.
    """

    def __init__(
        self,
        *,
        front: bytes,
        server: FeatureServer,
        plan: GradientPlan,
        transport: Transport,
        **collaborators: Any,
    ) -> None:
        super().__init__(**collaborators)
        self._front, self._hash = front, content_hash(front)
        self._server, self._plan, self._transport = server, plan, transport
        self._releases: Counter[int] = Counter()

    @property
    def model_hash(self) -> str:
        """Content hash of the device part."""
        return self._hash

    def download(self, device: int) -> bytes | None:
        """Returns the device part for a device that is not known to hold it."""
        return None if self._roster.holds(device, self._hash) else self._front

    def acknowledge(self, device: int) -> None:
        """A device holds its part once it has said so."""
        self._roster.holders.setdefault(device, set()).add(self._hash)

    def forget(self, device: int) -> None:
        """The device's part is gone or damaged."""
        self._roster.holders.get(device, set()).discard(self._hash)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draws devices, and sends those who lack it their part of the model."""
        self.open_round(server_round, arrays, grid)
        self._sent = {}
        for device, order in self._orders.items():
            if order.emulator is not None:
                self._book("downlink", order, "emulator", len(order.emulator))
                front = front_wire.FrontOrder(device, order.model_hash, order.emulator)
                self._sent[device] = front_wire.front_message(front, self._roster.node_of[device])
        return list(self._sent.values())

    def collect(self, replies: Iterable[Message], book: RoundLog) -> list[wire.Reply]:
        """Runs the round's local steps with every device that holds its part."""
        answered = self._by_device(replies)
        for device in self._sent:
            try:
                front_wire.check_front_reply(answered.get(device, []), device)
                self.acknowledge(device)
            except WireError as error:
                self._drop(device, error, book)
        ready = [d for d in self._orders if self._roster.holds(d, self._hash)]
        self._account(ready, book)
        number = next(iter(self._orders.values())).round
        with self._transport.open(self._grid, number) as exchange:
            steps = GradientRound(
                self._server,
                exchange,
                self._plan,
                number=number,
                log=book,
                book=lambda link, device, what, size: self._book(
                    link, self._orders[device], what, size
                ),
            )
            updates = steps.run({device: self._begin(device) for device in ready})
        for device in book.dropped.get("no-emulator", []):
            self.forget(device)  # it is sent again in the next round
        return [reply for d in sorted(updates) for reply in self._accept(d, updates[d], book)]

    def close(self) -> None:
        """Closes the transport."""
        self._transport.close()

    def _account(self, devices: Iterable[int], book: RoundLog) -> None:
        """Books what features have told so far of the example that was sent most often."""
        if self._plan.noise_multiplier == 0:
            return
        for device in devices:
            self._releases[device] += self._plan.releases
        most = max(self._releases.values(), default=0)
        book.metrics["features_epsilon"] = features_epsilon(self._plan.noise_multiplier, most)

    def _begin(self, device: int) -> Payload:
        order = self._orders[device]
        return Begin(
            round=order.round,
            device=device,
            num_devices=order.num_devices,
            model_hash=order.model_hash,
            proximal_mu=order.proximal_mu,
            adapter=order.adapter,
        ).to_payload()

    def _accept(self, device: int, payload: Payload, book: RoundLog) -> list[wire.Reply]:
        order = self._orders[device]
        if not self._uplink.is_radio:
            self._book("uplink", order, "update", len(payload.to_blob()))
        try:
            reply = wire.check_update(
                dict(payload.arrays),
                payload.scalars,
                order=order,
                layout_hash=self._layout_hash,
                like=self._tuned,
            )
            self._require_finite(reply)
        except WireError as error:
            self._drop(device, error, book)
            return []
        self._ledger.book_seconds(
            round=order.round, device=device, phase="local", seconds=reply.seconds
        )
        return [reply]

    def _drop(self, device: int, error: WireError, book: RoundLog) -> None:
        log.warning("round %d: device %d dropped: %s", self._orders[device].round, device, error)
        book.drop(device, error.reason)
