"""LVIS precision and recall by hotcoco, an evaluation in Rust, equal to lvis-api's.

hotcoco gets only the annotations and detections that count by lvis-api's rules, as columns with
plain numbers for ids, so that nothing reaches it that the two treat differently:

* lvis-api drops, without a word, every annotation and detection whose area is not above 0 and
  finite (an empty mask, a box without width), and categories that it does not know;
* it honours ``ignore`` and not ``iscrowd``;
* an image's best 300 are chosen among all of its detections, these included.
"""

from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from .detections import Detections

BATCH = 50_000  # detections given to hotcoco at a time, but for a category that has more
_IGNORED_AREA = 2e10  # beyond all of lvis-api's area ranges


def beyond_hotcoco(ground_truth: Dict[str, Any], detections: Detections) -> Optional[str]:
    """What hotcoco cannot evaluate as lvis-api does, if there is something."""
    if any(annotation["id"] == 0 for annotation in ground_truth["annotations"]):
        return (
            "an annotation has id 0, with which lvis-api takes no detection for matched, so its "
            "class comes out too low. Number annotations from 1."
        )
    if np.isnan(detections.scores).any():
        return "a score is not a number"
    boxes = [annotation["bbox"] for annotation in ground_truth["annotations"]]
    if not np.isfinite(boxes).all():
        return "the box of an annotation is not finite"
    if detections.boxes is not None and not np.isfinite(detections.boxes).all():
        return "the box of a detection is not finite"
    return None


def best_of_each(groups: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Indices, in order, of the ``count`` best scores in each group; of equals, the first."""
    _, groups = np.unique(groups, return_inverse=True)
    order = np.lexsort((-scores, groups))
    starts = np.searchsorted(groups[order], np.arange(np.max(groups, initial=-1) + 1))
    rank = np.arange(len(order)) - starts[groups[order]]
    return np.sort(order[rank < count])


class _Numbers:
    """Images and categories by number, in the order of their ids."""

    def __init__(self, ground_truth: Dict[str, Any]):
        images = sorted(ground_truth["images"], key=lambda image: image["id"])
        self.images = {image["id"]: i for i, image in enumerate(images)}
        self.categories = {c["id"]: i for i, c in enumerate(ground_truth["categories"])}
        self.image_dicts: List[Dict[str, Any]] = [
            {
                **{"id": i, "file_name": ""},
                **{key: int(image[key]) for key in ("height", "width")},
                **{
                    key: sorted({self.categories[c] for c in image[key] if c in self.categories})
                    for key in ("neg_category_ids", "not_exhaustive_category_ids")
                },
            }
            for i, image in enumerate(images)
        ]
        self.annotations = [a for a in ground_truth["annotations"] if 0 < a["area"] < np.inf]
        self.gt_images = self.number([a["image_id"] for a in self.annotations], self.images)
        self.gt_categories = self.number(
            [a["category_id"] for a in self.annotations], self.categories
        )

    @staticmethod
    def number(ids: Any, numbers: Dict[Any, int]) -> np.ndarray:
        """-1 for an unknown id."""
        return np.fromiter((numbers.get(i, -1) for i in ids), np.int64, len(ids))


def counting_detections(
    ground_truth: Dict[str, Any], detections: Detections, max_dets: int
) -> np.ndarray:
    """Indices of detections that take part in lvis-api's matching.

    These are the best of each image whose category is annotated in it or listed as absent.
    """
    numbers = _Numbers(ground_truth)
    num_categories = len(numbers.categories)
    rows = np.arange(len(detections))
    if max_dets >= 0:
        rows = best_of_each(detections.image_ids, detections.scores, max_dets)
    images = numbers.number(detections.image_ids[rows], numbers.images)
    categories = numbers.number(detections.category_ids[rows], numbers.categories)
    absent = [
        image * num_categories + category
        for image, image_dict in enumerate(numbers.image_dicts)
        for category in image_dict["neg_category_ids"]
    ]
    present = numbers.gt_images * num_categories + numbers.gt_categories
    pairs = np.concatenate([present, np.array(absent, np.int64)])
    judged = np.isin(images * num_categories + categories, pairs)
    return rows[judged & (categories >= 0)]


def hotcoco_curves(
    ground_truth: Dict[str, Any], detections: Detections, task: str
) -> Tuple[np.ndarray, np.ndarray]:
    """Precision and recall, as :func:`~tde_det.evaluation.lvis_api.lvis_api_curves` has them.

    Args:
        ground_truth: LVIS annotations, whose masks are RLE for ``"segm"``.
        detections: those of :func:`counting_detections`.
        task: ``"bbox"`` or ``"segm"``.
    """
    numbers = _Numbers(ground_truth)
    images = numbers.number(detections.image_ids, numbers.images)
    categories = numbers.number(detections.category_ids, numbers.categories)
    # Categories do not affect each other, and hotcoco's memory grows with what it is given at once.
    counts = np.bincount(categories, minlength=len(numbers.categories))
    edges = np.flatnonzero(np.diff(np.cumsum(counts) // BATCH)) + 1
    curves = []
    for batch in np.split(np.arange(len(counts)), edges):
        gt = np.flatnonzero(np.isin(numbers.gt_categories, batch))
        dt = np.flatnonzero(np.isin(categories, batch))
        curves.append(
            _batch_curves(numbers, gt, detections[dt], images[dt], categories[dt], batch, task)
        )
    precision, recall = zip(*curves)
    return np.concatenate(precision, axis=2), np.concatenate(recall, axis=1)


def _batch_curves(
    numbers: _Numbers,
    gt_rows: np.ndarray,
    detections: Detections,
    images: np.ndarray,
    categories: np.ndarray,
    batch: np.ndarray,
    task: str,
) -> Tuple[np.ndarray, np.ndarray]:
    """Curves of a batch of categories, from its annotations and detections."""
    import hotcoco

    gt_images = numbers.gt_images[gt_rows]
    annotations = [numbers.annotations[i] for i in gt_rows]
    gt = hotcoco.COCO.from_arrays(
        [numbers.image_dicts[i] for i in np.union1d(gt_images, images)],
        [{"id": i, "name": str(i)} for i in batch.tolist()],
        gt_images,
        numbers.gt_categories[gt_rows],
        np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4),
        area=np.array(
            [_IGNORED_AREA if a.get("ignore") else a["area"] for a in annotations], np.float64
        ),
        segmentation=[a["segmentation"] for a in annotations] if task == "segm" else None,
    )
    rles = None if detections.masks is None else detections.rles()
    if rles is None:
        boxes = np.asarray(detections.boxes, np.float64)
        areas = boxes[:, 2] * boxes[:, 3]
    else:
        areas = np.array(hotcoco.mask.area(rles), np.float64)
        boxes = hotcoco.mask.to_bbox(rles) if task == "bbox" else np.zeros((len(rles), 4))
    kept = np.flatnonzero((areas > 0) & (areas < np.inf))
    table = np.column_stack([images, boxes, detections.scores, categories])[kept]
    dt = gt.load_res(
        table, segmentation=[rles[i] for i in kept] if rles and task == "segm" else None
    )
    dt.update_anns(ids=np.arange(1, len(kept) + 1), area=areas[kept])
    evaluation = hotcoco.LVISEval(gt, dt.cap_detections_per_image(None), task)
    evaluation.params.max_dets = [max(1, len(kept))]  # per image and category
    evaluation.evaluate()
    evaluation.accumulate()
    curves: Any = evaluation.eval
    return curves["precision"][..., 0], curves["recall"][..., 0]
