"""Fixtures of the device tests."""

from tests.federation_fixtures import player, tiny_federation

__all__ = ["player", "tiny_federation"]
