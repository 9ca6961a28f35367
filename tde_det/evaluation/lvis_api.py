"""lvis-api's own evaluation, faster and on any version of NumPy.

Matching and limits are lvis-api's code. Written anew are ``accumulate``, because lvis-api uses
``np.float``, which NumPy 1.24 removed, and ``evaluate``, because lvis-api loops over every image
with every category, also those without objects.
"""

from collections import defaultdict
from typing import Any, Dict, List, Tuple

import numpy as np
from lvis import LVIS, LVISEval, LVISResults

from .boundary import boundary_iou
from .matches import Matches
from .precision_recall import RECALLS, precision_at_recalls


class _GroundTruth(LVIS):
    """lvis-api's index over annotations that are in memory already."""

    def _load_json(self, path: Dict[str, Any]) -> Dict[str, Any]:
        return path


class _Results(LVISResults, _GroundTruth):
    """lvis-api's index over detections, of which there may be none."""

    def __init__(self, ground_truth: Dict[str, Any], detections: List[Dict[str, Any]], limit: int):
        # lvis-api copies the annotations deeply, only to replace them.
        without = {**ground_truth, "annotations": []}
        if detections:
            super().__init__(_GroundTruth(without), detections, max_dets=limit)
        else:
            LVIS.__init__(self, without)


class _Evaluation(LVISEval):
    """lvis-api's evaluation, of pairs of image and category that have objects."""

    boundary = False

    def evaluate(self) -> None:
        """Match detections to annotations, per image, category, area range and IoU threshold."""
        self._prepare()
        self.matched = defaultdict(list)
        for image_id, category_id in sorted({*self._gts, *self._dts}):
            self.ious[image_id, category_id] = self.compute_iou(image_id, category_id)
            for area, area_range in enumerate(self.params.area_rng):
                e = self.evaluate_img(image_id, category_id, area_range)
                # The ids of matches, and those of all detections four times, take gigabytes.
                num_gt = np.count_nonzero(np.equal(e["gt_ignore"], 0))
                kept = e["dt_scores"], e["dt_matches"] != 0, e["dt_ignore"] != 0
                self.matched[category_id, area].append((image_id, num_gt, *kept))
            del self.ious[image_id, category_id]

    def compute_iou(self, img_id: Any, cat_id: Any) -> Any:
        """IoU of detections, by falling score, and annotations."""
        ious = super().compute_iou(img_id, cat_id)
        gt, dt = self._get_gt_dt(img_id, cat_id)
        if not (self.boundary and gt and dt):
            return ious
        dt = sorted(dt, key=lambda d: -d["score"])
        masks = [d["segmentation"] for d in dt], [g["segmentation"] for g in gt]
        return boundary_iou(*masks, ious, self.params.iou_thrs[0])

    def accumulate(self) -> None:
        """Precision at 101 recalls, and recall, per IoU threshold, category and area range."""
        categories = self.params.cat_ids
        num_ious, num_areas = len(self.params.iou_thrs), len(self.params.area_rng)
        recall = np.full((num_ious, len(categories), num_areas), -1.0)  # -1: absent
        precision = np.repeat(recall[:, None], len(RECALLS), axis=1)
        for (category_id, area), images in self.matched.items():
            cat = categories.index(category_id)
            _, num_gts, scores, matches, ignores = zip(*images)
            num_gt = sum(num_gts)
            if num_gt == 0:
                continue
            order = np.argsort(-np.concatenate(scores), kind="mergesort")
            matched = np.concatenate(matches, axis=1)[:, order]
            ignored = np.concatenate(ignores, axis=1)[:, order]
            at_recalls, recall[:, cat, area] = precision_at_recalls(matched, ~ignored, num_gt)
            precision[:, :, cat, area] = at_recalls
        self.eval = {"precision": precision, "recall": recall}


def lvis_api_curves(
    ground_truth: Dict[str, Any], detections: List[Dict[str, Any]], task: str, max_dets: int
) -> Tuple[np.ndarray, np.ndarray]:
    """Precision and recall, as :func:`~.lvis_eval.lvis_curves` returns them, from lvis-api.

    Args:
        ground_truth: LVIS annotations, whose masks are RLE for other tasks than ``"bbox"``.
        detections: in the format of the LVIS challenge; changed in place.
        task: ``"bbox"``, ``"segm"`` or ``"boundary"``.
        max_dets: detections per image, -1 for all.
    """
    evaluation = _evaluation(ground_truth, detections, task, max_dets)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def lvis_api_matches(
    ground_truth: Dict[str, Any], detections: List[Dict[str, Any]], task: str, max_dets: int
) -> Matches:
    """What becomes of every detection; the arguments are those of :func:`lvis_api_curves`."""
    evaluation = _evaluation(ground_truth, detections, task, max_dets)
    evaluation.params.area_rng = evaluation.params.area_rng[:1]  # all areas
    evaluation.evaluate()
    image_numbers, category_numbers = (
        {i: number for number, i in enumerate(ids)}
        for ids in (evaluation.params.img_ids, evaluation.params.cat_ids)
    )
    pairs: List[Any] = []
    columns = [(np.zeros(0), np.zeros((10, 0), bool), np.zeros((10, 0), bool))]
    for (category_id, _), images in evaluation.matched.items():
        for image_id, num_gt, *found in images:
            numbers = image_numbers[image_id], category_numbers[category_id]
            pairs.append((*numbers, num_gt, len(found[0])))
            columns.append(tuple(found))
    scores, matched, ignored = (np.concatenate(column, axis=-1) for column in zip(*columns))
    return Matches.of_pairs(pairs, scores, matched, ignored, len(category_numbers))


def _evaluation(
    ground_truth: Dict[str, Any], detections: List[Dict[str, Any]], task: str, max_dets: int
) -> _Evaluation:
    """lvis-api's evaluation, to be started."""
    # lvis-api writes into annotations.
    annotations = [dict(annotation) for annotation in ground_truth["annotations"]]
    gt = _GroundTruth({**ground_truth, "annotations": annotations})
    results = _Results(ground_truth, detections, max_dets)
    evaluation = _Evaluation(gt, results, "bbox" if task == "bbox" else "segm")
    evaluation.boundary = task == "boundary"
    return evaluation
