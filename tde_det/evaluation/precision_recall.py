"""Precision at fixed recalls, as pycocotools and lvis-api interpolate it."""

from typing import Tuple

import numpy as np

RECALLS = np.linspace(0, 1, 101)


def precision_at_recalls(
    correct: np.ndarray, counted: np.ndarray, num_objects: float
) -> Tuple[np.ndarray, np.ndarray]:
    """The best precision at each of :data:`RECALLS` or any higher recall, 0 beyond the highest.

    Args:
        correct, counted: ``bool[T, M]``, of M detections by falling score: whether each is matched
            to an object, and whether it counts at all.
        num_objects: above 0.

    Returns:
        precision ``[T, 101]`` and the highest recall ``[T]``.
    """
    tp = np.cumsum(correct & counted, axis=1)
    fp = np.cumsum(~correct & counted, axis=1)
    recalls = tp / num_objects
    precisions = np.pad(tp / (fp + tp + np.spacing(1)), ((0, 0), (0, 1)))
    envelope = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
    found = [row[np.searchsorted(recall, RECALLS)] for row, recall in zip(envelope, recalls)]
    return np.array(found), recalls.max(axis=1, initial=0)
