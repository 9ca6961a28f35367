"""LVIS average precision, as lvis-api computes it, on any NumPy.

Matching and summary are lvis-api's own code; only its ``accumulate`` is written anew, since it uses
``np.float``, which NumPy 1.24 removed.
"""

import itertools
import logging
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from lvis import LVIS, LVISEval, LVISResults

from ..data.lvis_json import encode_mask

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR@300")
MAX_DETECTIONS = 300


class _GroundTruth(LVIS):
    """lvis-api's index over annotations that are in memory already."""

    def _load_json(self, path: Dict[str, Any]) -> Dict[str, Any]:
        return path


class _Results(LVISResults):
    """lvis-api's index over detections, of which there may be none."""

    def __init__(self, ground_truth: LVIS, detections: List[Dict[str, Any]]):
        if detections:
            super().__init__(ground_truth, detections, max_dets=MAX_DETECTIONS)
            return
        self.logger = logging.getLogger(__name__)
        self.dataset = {**ground_truth.dataset, "annotations": []}
        self._create_index()


class _Evaluation(LVISEval):
    """lvis-api's evaluation for NumPy ≥ 1.24."""

    def accumulate(self) -> None:
        """Precision at 101 recalls, and recall, per IoU threshold, category and area range."""
        params = self.params
        num_cats, num_areas = len(params.cat_ids), len(params.area_rng)
        num_images = len(params.img_ids)
        num_ious, num_recalls = len(params.iou_thrs), len(params.rec_thrs)
        precision = np.full((num_ious, num_recalls, num_cats, num_areas), -1.0)  # -1: absent
        recall = np.full((num_ious, num_cats, num_areas), -1.0)
        for cat, area in itertools.product(range(num_cats), range(num_areas)):
            start = (cat * num_areas + area) * num_images
            images = [e for e in self.eval_imgs[start : start + num_images] if e is not None]
            num_gt = sum(np.count_nonzero(np.asarray(e["gt_ignore"]) == 0) for e in images)
            if num_gt == 0:
                continue
            order = np.argsort(-np.concatenate([e["dt_scores"] for e in images]), kind="mergesort")
            matched = np.concatenate([e["dt_matches"] for e in images], axis=1)[:, order] != 0
            ignored = np.concatenate([e["dt_ignore"] for e in images], axis=1)[:, order] != 0
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


def evaluate_lvis(
    ground_truth: Dict[str, Any],
    categories: Sequence[Dict[str, Any]],
    detections: List[Dict[str, Any]],
    iou_type: str,
) -> Tuple[Dict[str, float], np.ndarray]:
    """Evaluate detections against LVIS-format annotations.

    Args:
        ground_truth: from :func:`tde_det.data.lvis_json.read_lvis_json`.
        categories: its categories from :func:`complete_categories`, with ``frequency``.
        detections: in the LVIS results format; 300 per image count, as lvis-api has it.
        iou_type: ``"bbox"`` or ``"segm"``. As in Detectron2, mask AP by size goes by the area of
            the mask, also where a detection has a box.

    Returns:
        :data:`METRICS` in percent, NaN where no category has annotations, and the AP of every
        category in the same unit, in the order of ``categories``.
    """
    annotations = ground_truth["annotations"]
    if any(annotation["id"] == 0 for annotation in annotations):
        logger.warning(
            "An annotation has id 0, with which lvis-api takes no detection for matched: its class "
            "comes out too low. Number annotations from 1."
        )
    if iou_type == "segm":
        sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
        encoded = [
            {**a, "segmentation": encode_mask(a.get("segmentation") or [], *sizes[a["image_id"]])}
            for a in annotations
        ]
        annotations = [a for a in encoded if a["segmentation"] is not None]
        if len(annotations) < len(encoded):
            count = len(encoded) - len(annotations)
            logger.warning("mask AP leaves out %d annotations without a valid mask", count)
        detections = [{k: v for k, v in d.items() if k != "bbox"} for d in detections]
    else:
        # lvis-api writes ids and areas into what it is given, and needs no masks here.
        detections = [{k: v for k, v in d.items() if k != "segmentation"} for d in detections]
        annotations = [{k: v for k, v in a.items() if k != "segmentation"} for a in annotations]
    gt = _GroundTruth({**ground_truth, "categories": list(categories), "annotations": annotations})
    evaluation = _Evaluation(gt, _Results(gt, detections), iou_type)
    evaluation.run()
    results = evaluation.get_results()
    metrics = {m: 100 * float(results[m]) if results[m] >= 0 else float("nan") for m in METRICS}
    precision = evaluation.eval["precision"][:, :, :, 0]  # all areas
    present = (precision > -1).all(axis=(0, 1))
    per_category = np.where(present, 100 * precision.mean(axis=(0, 1)), np.nan)
    return metrics, per_category
