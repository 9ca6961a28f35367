"""AP-pool: average precision of the detections of all classes ranked together by their scores.

AP ranks the detections of every class by themselves. So it does not see whether the scores of two
classes can be compared, which an application with one score threshold relies on. AP-pool does.
Detections are matched within their class as in AP, with LVIS's rules of what counts; then one
precision-recall curve is drawn for all classes of a group. Classes count by their objects.

Source: Dave et al., 2021, "Evaluating Large-Vocabulary Object Detectors: The Devil is in the
Details" (https://arxiv.org/abs/2102.01066), and the authors' ``LVISPooledEval``. As there, the
detections are those of AP-fixed: the best 10,000 of each class, with no limit per image.
"""

from typing import Dict, Sequence

import numpy as np

from .matches import CORRECT, IGNORED, Matches
from .precision_recall import precision_at_recalls

POOL_METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf")


def pooled_ap(matches: Matches, frequencies: Sequence[str]) -> Dict[str, float]:
    """:data:`POOL_METRICS` in percent, NaN without objects.

    Args:
        matches: of the detections that AP-fixed evaluates.
        frequencies: ``"r"``, ``"c"`` or ``"f"`` of every category, by rising id.
    """
    # Of equal scores, the first are those of the lowest image id, and then category id.
    order = np.lexsort((matches.categories, matches.images, -matches.scores))
    by_group = [_by_iou(matches, order, np.isin(frequencies, [*g])) for g in ("rcf", *"rcf")]
    aps = [by_group[0].mean(), by_group[0][0], by_group[0][5], *(g.mean() for g in by_group[1:])]
    return dict(zip(POOL_METRICS, (100 * float(ap) for ap in aps)))


def _by_iou(matches: Matches, order: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """AP at each IoU threshold, ``[10]``, of the categories chosen by ``bool[C]``."""
    num_objects = matches.objects[chosen].sum()
    if num_objects == 0:
        return np.full(10, np.nan)
    rows = order[chosen[matches.categories[order]]]
    aps = []
    for outcome in matches.outcome:  # one at a time: millions of detections are large
        outcome = outcome[rows]
        correct, counted = outcome[None] == CORRECT, outcome[None] != IGNORED
        aps.append(precision_at_recalls(correct, counted, num_objects)[0].mean())
    return np.array(aps)
