"""Make a balanced set long-tailed: how many training images each class keeps, and which.

Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019 (the
exponential profile that CIFAR-LT is made with).
"""

from typing import List, Optional, Sequence

import numpy as np

from ..errors import InputError


def long_tail_counts(num_classes: int, largest: int, imbalance_factor: float) -> List[int]:
    """Images of class i, n_i = n_max · IF^(−i/(C−1)), rounded down as the field does.

    Args:
        num_classes: C.
        largest: n_max, the images of class 0.
        imbalance_factor: IF = n_max / n_min, at least 1; 1 leaves the set balanced.

    Raises:
        InputError: IF < 1, or a class would be left without an image.

    >>> long_tail_counts(5, 500, 100)
    [500, 158, 50, 15, 5]
    """
    if not 1 <= imbalance_factor < float("inf"):
        raise InputError(f"--imbalance-factor must be at least 1, got {imbalance_factor}")
    last = max(num_classes - 1, 1)
    counts = [int(largest * imbalance_factor ** (-i / last)) for i in range(num_classes)]
    if counts[-1] < 1:
        raise InputError(
            f"--imbalance-factor {imbalance_factor:g} leaves class {num_classes - 1} without an "
            f"image, since the largest is to keep {largest}: lower it, or raise --largest-class"
        )
    return counts


def long_tail_subset(
    labels: np.ndarray,
    class_names: Sequence[str],
    imbalance_factor: float,
    largest: Optional[int],
    seed: int,
) -> np.ndarray:
    """Indices, ascending, of a random long-tailed part of a data set.

    Args:
        labels: ``int[N]``; class 0 becomes the head and class C−1 the tail.
        class_names: C of them, for messages.
        imbalance_factor: IF, see :func:`long_tail_counts`.
        largest: n_max; None: the images of the smallest class, so that every class has enough.
        seed: what the choice depends on.

    Raises:
        InputError: a class has fewer images than it should keep.
    """
    available = np.bincount(labels, minlength=len(class_names))
    counts = long_tail_counts(len(class_names), largest or int(np.min(available)), imbalance_factor)
    rng = np.random.default_rng(seed)
    chosen = []
    for i, count in enumerate(counts):
        if available[i] < count:
            raise InputError(
                f"class {class_names[i]!r} has {available[i]} training images and would need "
                f"{count}: lower --largest-class"
            )
        chosen.append(rng.choice(np.flatnonzero(labels == i), count, replace=False))
    return np.sort(np.concatenate(chosen))
