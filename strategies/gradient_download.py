"""Federated DEFT by gradient download: features up, gradients down."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from typing_extensions import override

from fl_app.features_wire import Begin
from fl_app.payload import Payload
from fl_app.privacy import features_epsilon
from strategies.crossings import Crossings
from strategies.exchange import Exchange
from strategies.feature_crossings import FeatureCrossings
from strategies.feature_server import FeatureServer
from strategies.gradient_round import GradientPlan, GradientRound
from strategies.part_download import Finished, PartDownload
from strategies.round_log import RoundLog


class GradientDownload(PartDownload):
    """Devices get embeddings (or the first blocks) and the head once, then gradients.

    Args:
        server: computes on features.
        plan: how a round goes.
        crossings: what neural connections cost; None where features travel as bytes.
        **collaborators: see ``PartDownload``.
    """

    def __init__(
        self,
        *,
        server: FeatureServer,
        plan: GradientPlan,
        crossings: Crossings | None,
        **collaborators: Any,
    ) -> None:
        super().__init__(**collaborators)
        self._server, self._plan, self._crossings = server, plan, crossings
        self._releases: Counter[int] = Counter()

    @override
    def converse(
        self, exchange: Exchange, devices: Sequence[int], number: int, book: RoundLog
    ) -> dict[int, Finished]:
        """Makes local steps in lockstep; see ``PartDownload.converse``."""
        self._account(devices, book)
        crossed = None if self._crossings is None else FeatureCrossings(self._crossings, number)
        steps = GradientRound(
            self._server,
            exchange,
            self._plan,
            number=number,
            log=book,
            book=self._book_bytes,
            crossings=crossed,
        )
        updates = steps.run({device: self._begin(device) for device in devices})
        book.metrics |= {} if crossed is None else crossed.figures()
        return {
            device: Finished(dict(payload.arrays), payload.scalars)
            for device, payload in updates.items()
        }

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
            device=order.device,
            num_devices=order.num_devices,
            model_hash=order.model_hash,
            proximal_mu=order.proximal_mu,
            adapter=order.adapter,
        ).to_payload()
