"""Configuration and node facts to the handler that serves a device; one per process."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context

from clients.cache import BlobCache, cache_root
from clients.worker import EmulatorWorker
from fl_app.config import load_config
from fl_app.errors import ConfigError
from fl_app.schema import EmulatorDownloadStrategy
from fl_app.variants import as_reference


def worker_of(context: Context) -> EmulatorWorker:
    """Returns this process's worker for a run, built on the first message."""
    path: Any = context.node_config.get("data-path")
    return _worker(
        str(context.run_config.get("overrides", "")),
        str(context.run_config.get("reference", "")),
        None if path is None else str(path),
        cache_root(context),
    )


@lru_cache(maxsize=1)
def _worker(overrides: str, reference: str, local_path: str | None, root: Path) -> EmulatorWorker:
    config = as_reference(load_config(overrides), reference)
    match config.strategy:
        case EmulatorDownloadStrategy():
            return EmulatorWorker(config=config, cache=BlobCache(root), local_path=local_path)
        case _:
            raise ConfigError(f"strategy {type(config.strategy).__name__} has no device side")
