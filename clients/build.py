"""Configuration and node facts to the handler that serves a device; one per process."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context

from clients.cache import BlobCache, cache_root
from clients.gradient_worker import GradientWorker
from clients.part_worker import PartWorker
from clients.prompt_store import PromptStore
from clients.scalar_worker import ScalarWorker
from clients.transfer_worker import TransferWorker
from clients.worker import EmulatorWorker
from fl_app.config import load_config
from fl_app.errors import ConfigError
from fl_app.schema import Config, EmulatorDownloadStrategy, GradientDownloadStrategy, TransferPrompt
from fl_app.variants import as_reference


def worker_of(context: Context) -> EmulatorWorker:
    """Returns this process's worker for emulator download, built on the first message."""
    return _worker(*_facts(context))


def gradient_worker_of(context: Context) -> PartWorker:
    """Returns this process's worker for gradient download, built on the first message."""
    return _gradient_worker(*_facts(context), context.run_id)


def _facts(context: Context) -> tuple[str, str, str | None, Path]:
    path: Any = context.node_config.get("data-path")
    return (
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
            raise _unasked(config)


@lru_cache(maxsize=1)
def _gradient_worker(
    overrides: str, reference: str, local_path: str | None, root: Path, run_id: int
) -> PartWorker:
    config = as_reference(load_config(overrides), reference)
    common: dict[str, Any] = {"cache": BlobCache(root), "local_path": local_path}
    match config.strategy, config.prompt:
        case GradientDownloadStrategy() as strategy, TransferPrompt() as transfer:
            store = PromptStore(root / "prompts" / str(run_id))
            return TransferWorker(
                config=config, strategy=strategy, transfer=transfer, store=store, **common
            )
        case GradientDownloadStrategy(variant="scalar") as strategy, _:
            return ScalarWorker(config=config, strategy=strategy, **common)
        case GradientDownloadStrategy() as strategy, _:
            return GradientWorker(config=config, strategy=strategy, **common)
        case _:
            raise _unasked(config)


def _unasked(config: Config) -> ConfigError:
    return ConfigError(f"a {type(config.strategy).__name__} sends no such message")
