"""Make a balanced set long-tailed: how many training images each class keeps, and which.

Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019 (the
exponential profile that CIFAR-LT is made with).
"""

from typing import List, Optional, Sequence

import numpy as np

from ..errors import InputError


def long_tail_counts(num_classes: int, largest_class: int, imbalance_factor: float) -> List[int]:
    """Images of class i, n_i = n_max · IF^(−i/(C−1)), rounded down as the field does.

    n_max is ``largest_class``, the images of class 0; IF = n_max / n_min; 1: a balanced set.

    Raises:
        InputError: IF < 1, or a class would be left without an image.

    >>> long_tail_counts(5, 500, 100)
    [500, 158, 50, 15, 5]
    """
    if not 1 <= imbalance_factor < float("inf"):
        raise InputError(f"imbalance_factor must be at least 1, got {imbalance_factor}")
    last = max(num_classes - 1, 1)
    counts = [int(largest_class * imbalance_factor ** (-i / last)) for i in range(num_classes)]
    if counts[-1] < 1:
        raise InputError(
            f"imbalance_factor {imbalance_factor:g} leaves class {num_classes - 1} without an "
            f"image, since class 0 has {largest_class}: lower it, or raise largest_class"
        )
    return counts


def long_tail_subset(
    labels: np.ndarray, names: Sequence[str], factor: float, largest: Optional[int], seed: int
) -> np.ndarray:
    """Indices, ascending, of a random long-tailed part of ``int[N]`` labels.

    Args:
        names: of the classes, from the head to the tail.
        factor: IF.
        largest: n_max; without it, the images of the smallest class: every class has enough.

    Raises:
        InputError: a class has fewer images than it should keep.
    """
    available = np.bincount(labels, minlength=len(names))
    counts = long_tail_counts(len(names), largest or int(np.min(available)), factor)
    rng, chosen = np.random.default_rng(seed), []
    for i, count in enumerate(counts):
        if available[i] < count:
            raise InputError(
                f"class {names[i]!r} has {available[i]} training images and would need {count}: "
                "lower largest_class"
            )
        chosen.append(rng.choice(np.flatnonzero(labels == i), count, replace=False))
    return np.sort(np.concatenate(chosen))
