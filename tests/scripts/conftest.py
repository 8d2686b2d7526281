"""Fixtures of the script tests."""

from tests.air_figures_fixtures import latency, nmse

__all__ = ["latency", "nmse"]
