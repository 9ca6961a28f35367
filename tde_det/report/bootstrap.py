"""AP of resampled images: how much a difference between two runs owes to the choice of images.

A resample draws as many images as there are, with replacement. An image drawn w times counts w
times: so do its objects, and its detections in precision and recall. A class's detections are
sorted once, and all resamples are cumulative sums of weights along them. All runs share the
resamples, so that the difference of two runs is taken within each. As in LVIS, a mean over classes
leaves out those without an object, here: in the resample.

Source: Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979; the interval is that of the
percentiles.
"""

from typing import Any, Dict, NamedTuple, Sequence, Tuple

import numpy as np

from ..evaluation.matches import CORRECT, IGNORED, Matches
from ..evaluation.precision_recall import RECALLS

GROUPS: Dict[str, Tuple[int, str]] = {  # by metric: which of a class's APs, and which classes
    **{"AP": (0, "rcf"), "AP50": (1, "rcf"), "AP75": (2, "rcf")},
    **{"APr": (0, "r"), "APc": (0, "c"), "APf": (0, "f")},
}
_INTERVAL = (2.5, 97.5)  # percentiles
MIN_IMAGES = 10  # with objects of a class, for an interval of its AP: few images all look alike


class Samples(NamedTuple):
    """APs in percent: first of all images, then of each resample.

    Attributes:
        classes: ``[1 + R, C]``, NaN without objects.
        metrics: by metric of :data:`GROUPS`, ``[1 + R]``.
    """

    classes: np.ndarray
    metrics: Dict[str, np.ndarray]


def image_weights(num_images: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each image counts, ``[1 + R, I]``: once in the first row, then as drawn."""
    drawn = np.random.default_rng(seed).multinomial(
        num_images, np.full(num_images, 1 / num_images), size=resamples
    )
    return np.vstack([np.ones((1, num_images)), drawn])


def count_objects(ground_truth: Dict[str, Any]) -> np.ndarray:
    """Image, class and number of objects that LVIS evaluates, ``int[P, 3]``, by class.

    Images and classes are numbers in the order of their ids, as in :class:`Matches`.
    """
    images, classes = (
        {i: number for number, i in enumerate(sorted(entry["id"] for entry in ground_truth[key]))}
        for key in ("images", "categories")
    )
    pairs = [
        (classes[a["category_id"]], images[a["image_id"]])
        for a in ground_truth["annotations"]
        if 0 < a["area"] < np.inf and not a.get("ignore")
    ]
    found, counts = np.unique(np.array(pairs, int).reshape(-1, 2), axis=0, return_counts=True)
    return np.column_stack([found[:, ::-1], counts])


def average_precisions(
    outcome: np.ndarray, weights: np.ndarray, num_objects: np.ndarray
) -> np.ndarray:
    """AP of one class at every IoU threshold, ``[R, T]`` in [0, 1].

    Args:
        outcome: ``[T, M]``, of detections by falling score; see :class:`Matches`.
        weights: ``[R, M]``, how often each counts.
        num_objects: ``[R]``, above 0.
    """
    aps = np.zeros((len(weights), len(outcome)))
    counted, ignored = np.zeros((0, 0)), None
    for t, row in enumerate(outcome):
        hits = np.flatnonzero(row == CORRECT)
        if not len(hits):
            continue
        if ignored is None or (ignored != (row == IGNORED)).any():
            ignored = row == IGNORED
            counted = np.cumsum(np.where(ignored, 0, weights), axis=1)
        # The best precision at a recall or beyond is that of a correct detection.
        correct = np.cumsum(weights[:, hits], axis=1)
        precision = correct / (counted[:, hits] + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # How many of the recalls each detection is the first to reach.
        reached = np.searchsorted(RECALLS, correct / num_objects[:, None], side="right")
        aps[:, t] = (envelope * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
    return aps


def sample_aps(
    matches: Matches, objects: np.ndarray, weights: np.ndarray, frequencies: Sequence[str]
) -> Samples:
    """AP in every resample.

    Args:
        matches: from :func:`tde_det.evaluation.lvis_eval.lvis_matches`.
        objects: from :func:`count_objects`.
        weights: from :func:`image_weights`.
        frequencies: ``"r"``, ``"c"`` or ``"f"`` of every class, by rising id.
    """
    numbers = np.arange(len(frequencies) + 1)
    order = np.lexsort((-matches.scores, matches.categories))
    ends = np.searchsorted(matches.categories[order], numbers)
    object_ends = np.searchsorted(objects[:, 1], numbers)
    aps = np.full((3, len(weights), len(frequencies)), np.nan)
    for c in np.unique(objects[:, 1]):
        images, _, counts = objects[object_ends[c] : object_ends[c + 1]].T
        num_objects = weights[:, images] @ counts
        there = np.flatnonzero(num_objects)
        rows = order[ends[c] : ends[c + 1]]
        drawn = weights[np.ix_(there, matches.images[rows])]
        by_iou = 100 * average_precisions(matches.outcome[:, rows], drawn, num_objects[there])
        aps[:, there, c] = by_iou.mean(axis=1), by_iou[:, 0], by_iou[:, 5]
    groups = np.array(frequencies)
    metrics = {
        name: _nanmean(aps[kind][:, np.isin(groups, [*members])])
        for name, (kind, members) in GROUPS.items()
    }
    return Samples(aps[0], metrics)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is a number, NaN where nothing is."""
    is_number = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(is_number, values, 0).sum(axis=-1) / is_number.sum(axis=-1)


def interval(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The 95% interval of a difference, ``[2, …]``, NaN where there is nothing to compare.

    Args:
        before, after: ``[1 + R, …]``, of two runs on the same resamples.
    """
    differences = (after - before)[1:].reshape(len(after) - 1, -1)
    bounds = np.full((2, differences.shape[1]), np.nan)
    some = ~np.isnan(differences).all(axis=0)
    if some.any():
        bounds[:, some] = np.nanpercentile(differences[:, some], _INTERVAL, axis=0)
    return bounds.reshape(2, *after.shape[1:])
