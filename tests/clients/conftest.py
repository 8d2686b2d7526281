"""Fixtures of the device tests."""

from tests.federation_fixtures import player, tiny_federation
from tests.worker_fixtures import bench, context

__all__ = ["bench", "context", "player", "tiny_federation"]
