"""lvis-api's own evaluation, on any NumPy and without its loops over what is not there.

Matching and limits are lvis-api's code. Anew are: ``accumulate``, since lvis-api's uses
``np.float``, which NumPy 1.24 removed; ``evaluate``, which in lvis-api goes through, and stores,
every image with every category; and boundary IoU.
"""

import logging
from collections import defaultdict
from typing import Any, Dict, List, Tuple

import numpy as np
from lvis import LVIS, LVISEval, LVISResults

from .boundary import boundary_iou


class _GroundTruth(LVIS):
    """lvis-api's index over annotations that are in memory already."""

    def _load_json(self, path: Dict[str, Any]) -> Dict[str, Any]:
        return path


class _Results(LVISResults):
    """lvis-api's index over detections, of which there may be none."""

    def __init__(self, ground_truth: LVIS, detections: List[Dict[str, Any]], max_dets: int):
        if detections:
            # What lvis-api copies deeply and then replaces.
            annotations, ground_truth.dataset["annotations"] = (
                ground_truth.dataset["annotations"],
                [],
            )
            super().__init__(ground_truth, detections, max_dets=max_dets)
            ground_truth.dataset["annotations"] = annotations
            return
        self.logger = logging.getLogger(__name__)
        self.dataset = {**ground_truth.dataset, "annotations": []}
        self._create_index()


class _Evaluation(LVISEval):
    """lvis-api's evaluation of the pairs of image and category that there are."""

    boundary = False

    def evaluate(self) -> None:
        """Match detections to annotations, per image, category, area range and IoU threshold."""
        self._prepare()
        order = {image_id: i for i, image_id in enumerate(self.params.img_ids)}
        pairs = sorted({*self._gts, *self._dts}, key=lambda pair: order[pair[0]])
        self.by_category = defaultdict(list)
        for image_id, category_id in pairs:
            self.ious[image_id, category_id] = self.compute_iou(image_id, category_id)
            for area, area_range in enumerate(self.params.area_rng):
                e = self.evaluate_img(image_id, category_id, area_range)
                # The ids of matches, and those of all detections four times, take gigabytes.
                num_gt = np.count_nonzero(np.equal(e["gt_ignore"], 0))
                kept = num_gt, e["dt_scores"], e["dt_matches"] != 0, e["dt_ignore"] != 0
                self.by_category[category_id, area].append(kept)
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
        params = self.params
        num_cats, num_areas = len(params.cat_ids), len(params.area_rng)
        num_ious, num_recalls = len(params.iou_thrs), len(params.rec_thrs)
        precision = np.full((num_ious, num_recalls, num_cats, num_areas), -1.0)  # -1: absent
        recall = np.full((num_ious, num_cats, num_areas), -1.0)
        for (category_id, area), images in self.by_category.items():
            cat = params.cat_ids.index(category_id)
            num_gts, scores, matches, ignores = zip(*images)
            num_gt = sum(num_gts)
            if num_gt == 0:
                continue
            order = np.argsort(-np.concatenate(scores), kind="mergesort")
            matched = np.concatenate(matches, axis=1)[:, order]
            ignored = np.concatenate(ignores, axis=1)[:, order]
            tp = np.cumsum(matched & ~ignored, axis=1).astype(float)
            fp = np.cumsum(~matched & ~ignored, axis=1).astype(float)
            recalls = tp / num_gt
            precisions = tp / (fp + tp + np.spacing(1))
            # The best precision at this or any higher recall.
            envelope = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
            recall[:, cat, area] = recalls[:, -1] if len(order) else 0
            for iou in range(num_ious):
                at = np.searchsorted(recalls[iou], params.rec_thrs, side="left")
                reached = at < len(order)
                precision[iou, :, cat, area] = 0
                precision[iou, reached, cat, area] = envelope[iou, at[reached]]
        self.eval = {"params": params, "precision": precision, "recall": recall}


def lvis_api_curves(
    ground_truth: Dict[str, Any], detections: List[Dict[str, Any]], task: str, max_dets: int
) -> Tuple[np.ndarray, np.ndarray]:
    """Precision and recall as lvis-api computes them.

    Args:
        ground_truth: LVIS annotations, whose masks are RLE for other tasks than ``"bbox"``.
        detections: in the format of the LVIS challenge; changed in place.
        task: ``"bbox"``, ``"segm"`` or ``"boundary"``.
        max_dets: detections per image, -1 for all.

    Returns:
        precision ``[10 IoU thresholds, 101 recalls, categories by id, areas]``, areas being all,
        small, medium and large; and recall ``[10, categories, areas]``; -1 without annotations.
    """
    # lvis-api writes into annotations.
    annotations = [dict(annotation) for annotation in ground_truth["annotations"]]
    gt = _GroundTruth({**ground_truth, "annotations": annotations})
    results = _Results(gt, detections, max_dets)
    evaluation = _Evaluation(gt, results, "bbox" if task == "bbox" else "segm")
    evaluation.boundary = task == "boundary"
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]
