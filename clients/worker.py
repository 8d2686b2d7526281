"""One process that plays devices: it loads data and emulator once and serves all its devices.

Nothing is reloaded per message. A device's state between messages is only what it holds on disk.
"""

import time
from dataclasses import asdict

import torch
from flwr.app import Message

from clients.cache import BlobCache
from clients.device_data import DeviceData
from clients.loaded import Loaded
from fl_app import wire
from fl_app.connections import connect
from fl_app.errors import DataError
from fl_app.finetune import tune
from fl_app.fomo.adapter import Adapter
from fl_app.fomo.lora import lora_start
from fl_app.fomo.package import unpack
from fl_app.gains_wire import gains_reply
from fl_app.layout.prefix import unit_axis
from fl_app.profiling import gains_of
from fl_app.prompts.joint import JointAdapter, JointLoss, JointTask
from fl_app.records import from_blob
from fl_app.schema import Config, EnsembleConfig
from fl_app.seeding import generator
from fl_app.settings import adapter_for, aggregation_of, round_tuning, task_for, unit_scores
from fl_app.tasks import Encoded, Goal, Task
from fl_app.updates import Update, subtract, travels


class EmulatorSession:
    """An emulator in memory with its adapter and the data of the devices that used it."""

    def __init__(self, blob: bytes, config: Config) -> None:
        package = unpack(blob)
        blocks = package.split.blocks
        self.adapter = adapter_for(config, package.model, blocks=blocks, tuned=package.split.outer)
        self.link = connect(config, self.adapter, blocks)
        self.task: Task = task_for(
            config,
            package.model,
            files=package.files,
            labels=package.labels,
            overall_shares=package.class_shares,
        )
        self.tuned, self.goal = tuned_together(config, self.adapter, self.task)
        """What is tuned, and to what end; (adapter, task) but for members tuned together."""
        self.data_digest = package.data_digest
        self.encoded: dict[int, Encoded] = {}
        self.merged: tuple[str, ...] = ()
        """Content hashes of the stacks that are in the frozen weights."""


def tuned_together(
    config: Config, adapter: Adapter, task: Task
) -> tuple[Adapter | JointAdapter, Goal]:
    """Returns what a device tunes, and to what end: one adapter, or all members of an ensemble."""
    match config.prompt:
        case EnsembleConfig(members_from="joint", num_members=int() as num_members, joint=joint):
            loss = JointLoss(joint.ensemble, joint.member, joint.diversity)
            return JointAdapter(adapter, num_members), JointTask(task, loss)
        case _:
            return adapter, task


class EmulatorWorker:
    """Handles the messages of emulator download.

    Args:
        config: the run's configuration.
        cache: where this process's devices keep emulators.
        local_path: file or folder with the device's own data; None for simulated devices, which
            share the run's training data by partition.
    """

    def __init__(self, *, config: Config, cache: BlobCache, local_path: str | None) -> None:
        self._config, self._cache = config, cache
        self._data = DeviceData(config, local_path)
        self._aggregation = aggregation_of(config.peft)
        self._loaded = Loaded(cache, lambda blob: EmulatorSession(blob, config))

    def _session(self, order: wire.Order) -> EmulatorSession | None:
        """Returns the device's emulator, keeping one that came along; None if it has none."""
        self._keep(order)
        session = self._loaded.of(order.device, order.model_hash)
        return None if session is None else self._merged(order, session)

    def _keep(self, order: wire.Order) -> None:
        """Stores what came along.

        Raises:
            DataError: the cache cannot hold all of it at once.
        """
        new = dict(order.new_stacks)
        if order.emulator is not None:
            new[order.model_hash] = order.emulator
        for name in (order.model_hash, *(order.stacks or ())):  # or the new ones push them out
            self._cache.touch(order.device, name)
        for name, blob in new.items():
            self._cache.put(order.device, name, blob)
        if not all(self._cache.has(order.device, name) for name in new):
            raise DataError(
                f"the cache of device {order.device} holds max_bytes={self._cache.max_bytes}, less "
                f"than the {sum(map(len, new.values()))} bytes sent to it at once; give devices of "
                "one host a cache-dir each, take a smaller emulator, or peft.combine=flex"
            )

    def _merged(self, order: wire.Order, session: EmulatorSession) -> EmulatorSession | None:
        """Returns a session with the order's stacks merged; None where the device lacks one.

        They are merged in their order, so the weights are the same bits whether a process has seen
        all rounds or begins with this one.
        """
        wanted = order.stacks or ()
        if any(not self._cache.has(order.device, name) for name in wanted):
            return None
        if session.merged != wanted[: len(session.merged)]:  # of another run, say
            self._loaded.forget()
            fresh = self._loaded.of(order.device, order.model_hash)
            if fresh is None:
                return None
            session = fresh
        for name in wanted[len(session.merged) :]:
            blob = self._cache.get(order.device, name)
            if blob is None:
                return None
            try:
                session.adapter.merge(from_blob(blob))
            except Exception:  # whatever of it is in the weights is noted nowhere
                self._loaded.forget()
                raise
            session.merged += (name,)
        return session

    def _start(self, order: wire.Order, session: EmulatorSession) -> Update:
        """Returns what the device begins with: as sent, with LoRA as drawn where none is sent."""
        if order.stacks is None:
            return order.adapter
        own = session.adapter.parameters
        shapes = {n: tuple(p.shape) for n, p in own.items() if unit_axis(n) is not None}
        return order.adapter | lora_start(shapes, self._config.seed, order.round)

    def gains(self, message: Message) -> Message:
        """Looks at the gradient of this device's data in front of the first round."""
        torch.set_num_threads(1)
        order = wire.read_order(message)
        session = self._session(order)
        if session is None:
            return wire.no_emulator_reply(message, order)
        encoded = self._data.encoded(order.device, session)
        session.adapter.resize(order.layout)
        session.adapter.write(order.adapter)
        gains = gains_of(
            self._config, session.adapter, session.task, encoded, f"device {order.device}"
        )
        return gains_reply(message, order, gains, len(encoded))

    def train(self, message: Message) -> Message:
        """Tunes the received adapter on this device's data and answers with the update."""
        torch.set_num_threads(1)  # more would change sums, and fight with the other workers
        started = time.monotonic()
        order = wire.read_order(message)
        session = self._session(order)
        if session is None:
            return wire.no_emulator_reply(message, order)
        encoded = self._data.encoded(order.device, session)
        if order.layout:
            session.adapter.resize(order.layout, order.units)
        start = self._start(order, session)
        session.tuned.write(start)
        tuned = {
            name: parameter
            for name, parameter in session.tuned.parameters.items()
            if travels(name, self._aggregation, order.round)
        }
        if session.link is not None:
            session.link.close_book()  # whatever a device before this one left
            session.link.redraw(order.round, device=order.device)
        meter = unit_scores(self._config.peft, tuned) if order.scored else None
        loss, steps = tune(
            session.tuned.model,
            tuned,
            session.goal,
            encoded,
            round_tuning(self._config, order.round, order.proximal_mu),
            generator(self._config.seed, "local", order.round, order.device),
            watch=None if meter is None else meter.update,
        )
        return wire.update_reply(
            message,
            order,
            update=subtract(
                {name: array for name, array in session.tuned.read().items() if name in tuned},
                start,
            ),
            layout_hash=session.tuned.layout_hash(),
            num_examples=len(encoded),
            loss=loss,
            steps=steps,
            seconds=time.monotonic() - started,
            crossed={} if session.link is None else asdict(session.link.close_book()),
            scores=None if meter is None else meter.by_block(),
        )
