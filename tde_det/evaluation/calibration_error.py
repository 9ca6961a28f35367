"""Expected calibration error: how far scores are from the share of correct detections.

    ECE = Σ_b n_b/N · |share of correct detections in bin b − mean score in bin b|

The bins are 15 of equal width in the score; bin b is [b/15, (b+1)/15), and 1 is in the last. The N
detections are those that count in LVIS's AP, the best 300 of each image. One is correct if it is
matched at IoU 0.5 to an object of its class; those that LVIS ignores are left out.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
"""

from typing import Dict, List, Sequence

import numpy as np

from ..errors import InputError
from .matches import CORRECT, IGNORED, Matches

BINS = 15
# By metric, the categories' frequencies.
ECE_METRICS = {"ECE": "rcf", "ECEr": "r", "ECEc": "c", "ECEf": "f"}
BIN_COLUMNS = ("lowest_score", "detections", "mean_score", "correct")


def check_probabilities(scores: np.ndarray) -> None:
    """Refuse scores that are no probabilities.

    Raises:
        InputError: one is outside [0, 1].
    """
    wrong = scores[~((scores >= 0) & (scores <= 1 + 1e-6))]  # NaN too; rounding may pass 1
    if len(wrong):
        raise InputError(
            f"calibration error: a score is {wrong[0]:g}; it is defined for scores in [0, 1] only"
        )


def reliability(matches: Matches, frequencies: Sequence[str]) -> Dict[str, np.ndarray]:
    """By metric of :data:`ECE_METRICS`, the bins: ``[15, 4]`` with :data:`BIN_COLUMNS`.

    Args:
        matches: of detections with scores in [0, 1].
        frequencies: ``"r"``, ``"c"`` or ``"f"`` of every category, by rising id.
    """
    outcome = matches.outcome[0]
    groups = np.array(frequencies)[matches.categories.astype(int)]
    bins = np.minimum((matches.scores * BINS).astype(int), BINS - 1)
    tables = {}
    for metric, members in ECE_METRICS.items():
        kept = (outcome != IGNORED) & np.isin(groups, [*members])
        counts, scores, correct = (
            np.bincount(bins[kept], weights, BINS)
            for weights in (None, matches.scores[kept], outcome[kept] == CORRECT)
        )
        with np.errstate(invalid="ignore"):  # an empty bin has no means
            columns: List[np.ndarray] = [np.arange(BINS) / BINS, counts]
            tables[metric] = np.column_stack([*columns, scores / counts, correct / counts])
    return tables


def calibration_error(bins: np.ndarray) -> float:
    """ECE in percent of a table of :func:`reliability`, NaN without detections."""
    _, counts, scores, correct = bins[bins[:, 1] > 0].T
    gaps = np.abs(correct - scores)
    return 100 * float((counts * gaps).sum() / counts.sum()) if len(counts) else float("nan")
