"""Gradient download in which every device keeps a prompt, and may take over another device's."""

from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from fl_app.schema import TransferPrompt
from strategies.direct_phase import DirectPhase
from strategies.exchange import Exchange
from strategies.gradient_download import GradientDownload
from strategies.part_download import Finished
from strategies.round_log import RoundLog
from strategies.transfer_book import TransferRecord, transfer_result
from strategies.transfer_phase import TransferPhase, TransferTools


class TransferDownload(GradientDownload):
    """Opens some rounds with a transfer phase, and settles it after the local steps.

    Args:
        transfer: the configuration's prompt group.
        tools: what phases work with.
        **collaborators: see ``GradientDownload``.
    """

    def __init__(
        self, *, transfer: TransferPrompt, tools: TransferTools, **collaborators: Any
    ) -> None:
        super().__init__(**collaborators)
        self._transfer, self._tools = transfer, tools
        self._tuned_before: set[int] = set()
        """Devices that have a prompt of their own."""
        self._records: list[TransferRecord] = []

    @property
    @override
    def results(self) -> dict[str, Any]:
        """See ``FederatedDeft``."""
        return {"transfer": transfer_result(self._records, self._ledger)}

    @override
    def converse(
        self, exchange: Exchange, devices: Sequence[int], number: int, book: RoundLog
    ) -> dict[int, Finished]:
        """Lets devices look for a prompt, then makes local steps; see ``PartDownload.converse``."""
        phase = self._phase(exchange, number, book)
        askers = self._askers(devices, number)
        sources = sorted(self._tuned_before)
        records = phase.search(askers, sources, self._adapter) if askers and sources else {}
        self._records += records.values()
        actions = {d: one.report.action for d, one in records.items() if one.report is not None}
        lost = {device for dropped in book.dropped.values() for device in dropped}
        tuning = [d for d in devices if d not in lost and actions.get(d) != "zero-shot"]
        finished = super().converse(exchange, tuning, number, book)
        passed = [d for d, action in actions.items() if action == "passed" and d in finished]
        for device, report in (phase.settle(passed) if passed else {}).items():
            records[device].settled(report)
        if records:
            book.metrics["prompts_adopted"] = float(sum(r.is_adopted for r in records.values()))
        self._tuned_before |= {*finished, *(d for d, one in records.items() if one.is_adopted)}
        return finished

    def _phase(self, exchange: Exchange, number: int, book: RoundLog) -> TransferPhase:
        common: dict[str, Any] = {"number": number, "model_hash": self.model_hash, "log": book}
        if not self._transfer.direct:
            return TransferPhase(self._tools, exchange, **common)
        return DirectPhase(
            self._tools,
            exchange,
            addresses=self._transfer.direct,
            seconds=self._transfer.direct_s,
            **common,
        )

    def _askers(self, devices: Sequence[int], number: int) -> list[int]:
        if self._transfer.rounds is None:
            return [device for device in devices if device not in self._tuned_before]
        return list(devices) if number in self._transfer.rounds else []
