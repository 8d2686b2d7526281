"""Named random streams, so that a result depends on the seed and on nothing else.

Every draw comes from a stream keyed by (seed, purpose, round, device, ...). Streams do not share
state: dropping a device or changing the order of replies moves no other draw.
"""

import hashlib

import numpy as np


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """Returns the generator of one named stream.

    Args:
        seed: the run's seed, >= 0.
        *path: what the stream is for, for example ``"local", round, device``.

    Returns:
        A Philox generator whose key is the SHA-256 of seed and path (the same on every machine;
        Python's ``hash`` is salted per process and would not be).
    """
    name = "/".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)])
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def torch_seed(seed: int, *path: int | str) -> int:
    """Returns a 63-bit integer of the named stream, for ``torch.Generator.manual_seed``."""
    return int(generator(seed, *path).integers(2**63))
