"""Named random streams."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.seeding import generator, torch_seed


def test_stream_is_philox_keyed_by_the_hash_of_its_name() -> None:
    """The key is written out here, so a changed derivation cannot pass as the same seed."""
    digest = hashlib.sha256(b"7/str:local/int:3/int:12").digest()
    expected = np.random.Generator(
        np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    ).integers(2**63, size=5)
    assert np.array_equal(generator(7, "local", 3, 12).integers(2**63, size=5), expected)


def test_known_draw() -> None:
    """A literal draw: the same on every machine and in every process."""
    assert generator(0, "data").integers(10**9, size=3).tolist() == [982027764, 91243813, 609198430]


@pytest.mark.parametrize(
    "other", [(1, "local", 3), (0, "locals", 3), (0, "local", 4), (0, "local", "3"), (0, "local")]
)
def test_any_difference_in_the_name_gives_another_stream(other: tuple[int, str | int]) -> None:
    """Seed, purpose, numbers and their type all count."""
    one = generator(0, "local", 3).integers(2**63, size=4)
    two = generator(other[0], *other[1:]).integers(2**63, size=4)
    assert not np.intersect1d(one, two).size


def test_streams_share_no_state() -> None:
    """Drawing from one stream, or from NumPy's global one, moves no other."""
    alone = generator(1, "a").normal(size=3)
    stream = generator(1, "a")
    generator(1, "b").normal(size=100)
    assert np.array_equal(stream.normal(size=3), alone)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**70), device=st.integers(-5, 10**6))
def test_torch_seed_is_a_repeatable_63_bit_integer(seed: int, device: int) -> None:
    """``torch.Generator.manual_seed`` takes it."""
    value = torch_seed(seed, "head", device)
    assert 0 <= value < 2**63
    assert value == torch_seed(seed, "head", device)
    assert value != torch_seed(seed + 1, "head", device)


def test_streams_of_neighbouring_devices_are_uncorrelated() -> None:
    """|r| of n independent pairs is below 5 / sqrt(n) but for one case in a million."""
    size = 20_000
    one, two = (generator(0, "local", 0, device).normal(size=size) for device in (0, 1))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(size)
