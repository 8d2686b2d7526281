"""Fixtures of the end-to-end tests."""

from tests.federation_fixtures import tiny_federation

__all__ = ["tiny_federation"]
