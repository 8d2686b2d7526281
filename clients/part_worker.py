"""What a device of gradient download does whatever it sends: keeps its part, prepares its rows."""

import threading
from abc import ABC, abstractmethod
from itertools import islice

from flwr.app import Message

from clients.cache import BlobCache
from clients.device_data import DeviceData
from clients.device_session import DeviceSession
from fl_app import front_wire
from fl_app.features_wire import FeatureWire
from fl_app.finetune import local_batches
from fl_app.schema import Config, GradientDownloadStrategy
from fl_app.seeding import generator
from fl_app.tasks import Encoded


class PartWorker(ABC):
    """Handles the messages of gradient download.

    Args:
        config: the run's configuration.
        strategy: its strategy.
        cache: where this process's devices keep their part of the model.
        local_path: file or folder with the device's own data; None for simulated devices.
    """

    def __init__(
        self,
        *,
        config: Config,
        strategy: GradientDownloadStrategy,
        cache: BlobCache,
        local_path: str | None,
    ) -> None:
        self._config, self._strategy, self._cache = config, strategy, cache
        self._data = DeviceData(config, local_path)
        self._wire = FeatureWire(strategy.features)
        self._loaded: tuple[str, DeviceSession] | None = None
        self._lock = threading.Lock()
        """Devices that one process plays in several threads share one model."""

    def handle(self, state: bytes | None, blob: bytes) -> tuple[bytes | None, bytes]:
        """Answers one exchange; see ``clients.steps.Handle``.

        Raises:
            DeftError: the message does not follow the last one, or something does not fit.
        """
        with self._lock:
            return self.answer(state, blob)

    @abstractmethod
    def answer(self, state: bytes | None, blob: bytes) -> tuple[bytes | None, bytes]:
        """Answers one exchange while no other thread does; see ``handle``."""

    def store(self, message: Message) -> Message:
        """Keeps the device's part of the model, which crosses the wire once."""
        front = front_wire.read_front(message)
        self._cache.put(front.device, front.model_hash, front.blob)
        return front_wire.front_reply(message, front)

    def _examples(self, session: DeviceSession, device: int) -> Encoded:
        """Returns a device's prepared examples; the session knows them from then on."""
        if device not in session.encoded:
            session.encoded[device] = self._data.encoded(
                device, session.data_digest, session.task.encode
            )
        return session.encoded[device]

    def _rows(self, session: DeviceSession, device: int, server_round: int) -> list[list[int]]:
        """Returns the rows of every local step of a round, as emulator download draws them."""
        finetune = self._config.finetune
        batches = local_batches(
            self._examples(session, device),
            batch_size=finetune.batch_size,
            epochs=finetune.epochs,
            rng=generator(self._config.seed, "local", server_round, device),
        )
        return list(islice(batches, finetune.max_steps))

    def _session(self, device: int, name: str) -> DeviceSession | None:
        """Returns a device's part in memory; None where it holds no undamaged one."""
        session = self._loaded[1] if self._loaded and self._loaded[0] == name else None
        if session and device in session.checked and self._cache.has(device, name):
            return session
        blob = self._cache.get(device, name)
        if blob is None:
            return None
        if session is None:
            self._loaded = None  # free the old one before the new one is built
            session = DeviceSession(blob, self._config, self._strategy)
            self._loaded = name, session
        session.checked.add(device)
        return session
