"""A device's own examples: its file, or its share of the run's training data."""

from typing import Protocol

from fl_app.data.examples import Examples
from fl_app.data.source import load_file, require_columns
from fl_app.errors import DataError
from fl_app.material import Material, load_material, needed_columns
from fl_app.schema import Config
from fl_app.tasks import Encoded, Task


class Prepares(Protocol):
    """What prepares examples, and keeps them: a model in memory with its task."""

    task: Task
    data_digest: str
    encoded: dict[int, Encoded]


class DeviceData:
    """Gives prepared examples by device; loads the run's data once, when first needed.

    Args:
        config: the run's configuration.
        local_path: file or folder with the device's own data; None for simulated devices, which
            share the run's training data by partition.
    """

    def __init__(self, config: Config, local_path: str | None) -> None:
        self._config, self._local_path = config, local_path
        self._material: Material | None = None

    def encoded(self, device: int, session: Prepares) -> Encoded:
        """Returns a device's examples, prepared; the session keeps them from then on.

        Args:
            device: partition index.
            session: prepares them, and knows the hash of the rows the server deals from.

        Raises:
            DataError: the file is missing or unfit, or the rows here are not the server's.
        """
        if device not in session.encoded:
            examples = self._examples(device, session.data_digest)
            session.encoded[device] = session.task.encode(examples)
        return session.encoded[device]

    def _examples(self, device: int, digest: str) -> Examples:
        if self._local_path is not None:
            examples = load_file(self._local_path, key="node-config data-path")
            require_columns(examples, needed_columns(self._config))
            return examples
        if self._material is None:
            self._material = load_material(self._config)
        if self._material.digest != digest:
            raise DataError(
                "the training rows here are not the server's (another file, or, for "
                "data=docstrings, another release of Python), so shares would overlap; give the "
                'node its own file with --node-config "data-path=..."'
            )
        return self._material.of_device(device)
