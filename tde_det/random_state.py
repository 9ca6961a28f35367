"""Random numbers that follow from what they are drawn for, not from what was drawn before.

A killed training goes on with the same numbers, and no state of a generator need be stored.
"""

import contextlib
import random
from typing import Iterator

import numpy as np
import torch


def seed_of(*key: int) -> int:
    """A seed in [0, 2³²) for a key, such as (seed of the run, rank, iteration); all ≥ 0."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generators of Python, NumPy and PyTorch meanwhile, and put them back after."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
