"""What a device of gradient download does whatever it sends: keeps its part, prepares its rows."""

import threading
import time
from abc import ABC, abstractmethod
from dataclasses import replace
from itertools import islice

import torch
from flwr.app import Message

from clients.cache import BlobCache
from clients.device_data import DeviceData
from clients.device_session import DeviceSession
from clients.loaded import Loaded
from clients.round_state import RoundState
from fl_app import front_wire
from fl_app.errors import ConfigError
from fl_app.features_wire import MAX_BYTES, FeatureWire
from fl_app.finetune import local_batches
from fl_app.payload import Payload, read_payload
from fl_app.schema import Config, GradientDownloadStrategy
from fl_app.seeding import generator


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
        self._loaded = Loaded(cache, lambda blob: DeviceSession(blob, config, strategy))
        self._lock = threading.Lock()
        """Devices that one process plays in several threads share one model."""

    @abstractmethod
    def _open(self, payload: Payload) -> tuple[RoundState | None, Payload]:
        """Answers a round's first payload; the state is None where the round is over."""

    @abstractmethod
    def _continue(self, blob: bytes, payload: Payload) -> tuple[RoundState | None, Payload]:
        """Answers a later one; ``blob`` is the state as the answer before left it."""

    def handle(self, state: bytes | None, blob: bytes) -> tuple[bytes | None, bytes]:
        """Answers one exchange; see ``clients.steps.Handle``.

        Raises:
            ConfigError: the answer would be longer than one exchange can carry.
            DeftError: the message does not follow the last one, or something does not fit.
        """
        torch.set_num_threads(1)  # more would change sums, and fight with the other workers
        with self._lock:
            started = time.monotonic()
            payload = read_payload(blob, max_bytes=MAX_BYTES)
            after, answer = self._open(payload) if state is None else self._continue(state, payload)
            sent = answer.to_blob()
            if len(sent) > MAX_BYTES:
                raise ConfigError(
                    f"an answer of {len(sent)} bytes ({answer.kind}), allowed are {MAX_BYTES}; "
                    "lower finetune.batch_size or, where features of all steps travel together, "
                    "finetune.max_steps; or choose strategy.features=int8"
                )
            if after is None:
                return None, sent
            spent = after.seconds + time.monotonic() - started
            return replace(after, seconds=spent).to_blob(), sent

    def store(self, message: Message) -> Message:
        """Keeps the device's part of the model, which crosses the wire once."""
        front = front_wire.read_front(message)
        self._cache.put(front.device, front.model_hash, front.blob)
        return front_wire.front_reply(message, front)

    def _rows(self, session: DeviceSession, device: int, server_round: int) -> list[list[int]]:
        """Returns the rows of every local step of a round, as emulator download draws them."""
        finetune = self._config.finetune
        batches = local_batches(
            self._data.encoded(device, session),
            batch_size=finetune.batch_size,
            epochs=finetune.epochs,
            rng=generator(self._config.seed, "local", server_round, device),
        )
        return list(islice(batches, finetune.max_steps))
