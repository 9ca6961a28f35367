"""What becomes of every detection when it is matched to the objects of its class."""

import dataclasses
from typing import Any, Sequence, Tuple

import numpy as np

IGNORED, WRONG, CORRECT = -1, 0, 1


@dataclasses.dataclass
class Matches:
    """M detections of the classes that their image is annotated with or known to lack.

    Attributes:
        images: ``int[M]``, numbers in the order of the ids.
        categories: ``int[M]``, numbers in the order of the ids.
        scores: ``float[M]``
        outcome: ``int8[10, M]``, by IoU threshold 0.5, 0.55, …, 0.95: :data:`CORRECT` if it is
            matched to an object, :data:`WRONG` if not, and :data:`IGNORED` if LVIS does not count
            it: matched to an ignored object, or unmatched and of a class that its image is not
            exhaustively annotated with.
        objects: ``[C]``, objects of every category that are not ignored.
    """

    images: np.ndarray
    categories: np.ndarray
    scores: np.ndarray
    outcome: np.ndarray
    objects: np.ndarray

    @classmethod
    def of_pairs(
        cls,
        pairs: Sequence[Tuple[int, int, int, int]],
        scores: np.ndarray,
        matched: np.ndarray,
        ignored: np.ndarray,
        num_categories: int,
    ) -> "Matches":
        """Put together what a backend finds for pairs of an image and a category.

        Args:
            pairs: numbers of an image and a category, and of their objects and detections.
            scores: ``float[M]``, of the pairs' detections one after the other.
            matched, ignored: ``bool[10, M]``, lvis-api's ``dt_matches != 0`` and ``dt_ignore``.
        """
        images, categories, objects, counts = np.array(pairs, int).reshape(-1, 4).T
        return cls(
            np.repeat(images, counts),
            np.repeat(categories, counts),
            scores,
            np.where(ignored, IGNORED, matched).astype(np.int8),
            np.bincount(categories, objects, num_categories),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Matches"]) -> "Matches":
        """Join the detections of different categories."""
        *columns, objects = zip(*(vars(part).values() for part in parts))
        joined: Any = [*(np.concatenate(c, axis=-1) for c in columns), np.sum(objects, axis=0)]
        return cls(*joined)
