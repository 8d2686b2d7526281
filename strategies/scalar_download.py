"""Federated DEFT by scalars: no gradient is sent, and no adapter.

The adapter of any round is where it started minus lr times a sum over the directions of a finite
pool, so one float32 for each direction says it all: server and devices rebuild the same bits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from fl_app import wire
from fl_app.scalar_wire import Opening
from fl_app.seed_pool import SeedPool
from fl_app.updates import Update, subtract
from fl_app.zeroth_order import Pair, combine, rebuild
from strategies.exchange import Exchange
from strategies.feature_cache import FeatureCache
from strategies.group_step import Stepped
from strategies.part_download import Finished, PartDownload
from strategies.round_log import RoundLog
from strategies.scalar_round import ScalarPlan, ScalarRound
from strategies.scalar_server import ScalarServer
from strategies.uplink import Received


class ScalarDownload(PartDownload):
    """Seeds go up, one number per direction comes down.

    Args:
        server: computes on features.
        plan: how a round goes.
        pool: of directions.
        cache: devices' features, sent once.
        **collaborators: see ``PartDownload``.
    """

    def __init__(
        self,
        *,
        server: ScalarServer,
        plan: ScalarPlan,
        pool: SeedPool,
        cache: FeatureCache,
        **collaborators: Any,
    ) -> None:
        super().__init__(**collaborators)
        self._server, self._plan, self._pool, self._cache = server, plan, pool, cache
        self._start: Update = {}
        self._made: dict[int, Sequence[Pair]] = {}
        self.coefficients = np.zeros(len(pool), np.float32)
        """Of every direction, all rounds so far."""

    @override
    def converse(
        self, exchange: Exchange, devices: Sequence[int], number: int, book: RoundLog
    ) -> dict[int, Finished]:
        """Makes local steps in lockstep; see ``PartDownload.converse``."""
        self._start = self._start or self._adapter
        steps = ScalarRound(
            self._server,
            exchange,
            self._plan,
            pool=self._pool,
            cache=self._cache,
            number=number,
            log=book,
            book=self._book_bytes,
        )
        walked = steps.run({device: self._opening(device) for device in devices}, self._adapter)
        self._made = {device: one.walk.pairs for device, one in walked.items()}
        return {
            device: Finished(subtract(one.walk.theta(), self._adapter), one.last.scalars)
            for device, one in walked.items()
        }

    @override
    def step(
        self, server_round: int, accepted: Sequence[wire.Reply], received: Received
    ) -> Stepped:
        """Returns what everybody rebuilds from the sums: the mean weighted by examples."""
        mean = combine(
            [self._made[reply.device] for reply in accepted],
            [reply.num_examples for reply in accepted],
        )
        before = self._pool.pairs(self.coefficients)
        self.coefficients = self._pool.coefficients([*before, *mean])
        rebuilt = rebuild(self._start, self._pool.pairs(self.coefficients), self._plan.lr)
        return Stepped({0: rebuilt}, figures={}, refused=[])

    def _opening(self, device: int) -> Opening:
        order = self._orders[device]
        return Opening(
            round=order.round,
            device=device,
            model_hash=order.model_hash,
            wants_features=not self._cache.holds(device),
            coefficients=self.coefficients,
        )
