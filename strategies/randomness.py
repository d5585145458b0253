"""Keyed random generators: every draw depends on the seed and on what it is for.

Replaying rounds 1..k-1 is never needed to repeat round k, and what one client or
node draws never shifts what another draws.
"""

import hashlib

import numpy as np


def keyed_seed(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> int:
    """Return a 63-bit seed that is a hash of the run's seed and the draw's purpose."""
    key = f"{seed}/{purpose}/{round}/{client}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1


def keyed_generator(
    seed: int, purpose: str, *, round: int = 0, client: int = 0
) -> np.random.Generator:
    """Return NumPy's PCG64 generator, seeded by `keyed_seed`."""
    return np.random.default_rng(keyed_seed(seed, purpose, round=round, client=client))
