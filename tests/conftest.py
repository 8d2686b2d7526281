"""Fixtures for the whole suite."""

import os
from pathlib import Path

import pytest
import torch

from tests.fixtures_models import TinyModels

torch.set_num_threads(1)  # one thread sums in one order; the machine's load must not matter


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Tiny random checkpoints of every family."""
    return TinyModels(tmp_path_factory.mktemp("tiny-models"))


@pytest.fixture
def assets() -> Path:
    """The folder with real models and data sets; tests that need it are skipped without it."""
    folder = os.environ.get("DEFT_ASSETS", "")
    if not folder:
        pytest.skip("set DEFT_ASSETS to a folder with models/ to run the tests on real models")
    if not Path(folder).is_dir():
        pytest.skip(f"DEFT_ASSETS={folder} is no folder")
    return Path(folder)
