"""Federated DEFT by gradient download: features up, gradients down."""

from collections.abc import Sequence
from typing import Any

from fl_app.features_wire import Begin
from fl_app.payload import Payload
from strategies.exchange import Exchange
from strategies.feature_server import FeatureServer
from strategies.gradient_round import GradientPlan, GradientRound
from strategies.part_download import Finished, PartDownload
from strategies.round_log import RoundLog


class GradientDownload(PartDownload):
    """Devices get embeddings (or the first blocks) and the head once, then gradients.

    Args:
        server: computes on features.
        plan: how a round goes.
        **collaborators: see ``PartDownload``.
    """

    def __init__(self, *, server: FeatureServer, plan: GradientPlan, **collaborators: Any) -> None:
        super().__init__(**collaborators)
        self._server, self._plan = server, plan

    def converse(
        self, exchange: Exchange, devices: Sequence[int], number: int, book: RoundLog
    ) -> dict[int, Finished]:
        """Makes local steps in lockstep; see ``PartDownload.converse``."""
        steps = GradientRound(
            self._server, exchange, self._plan, number=number, log=book, book=self._book_sent
        )
        updates = steps.run({device: self._begin(device) for device in devices})
        return {
            device: Finished(dict(payload.arrays), payload.scalars)
            for device, payload in updates.items()
        }

    def _book_sent(self, link: str, device: int, what: str, num_bytes: int) -> None:
        if what == "update" and self._uplink.is_radio:
            return  # a radio is booked for what it sends, not for this message
        self._book_bytes(link, device, what, num_bytes)

    def _begin(self, device: int) -> Payload:
        order = self._orders[device]
        return Begin(
            round=order.round,
            device=order.device,
            num_devices=order.num_devices,
            model_hash=order.model_hash,
            proximal_mu=order.proximal_mu,
            adapter=order.adapter,
        ).to_payload()
