"""LVIS precision and recall by hotcoco, an evaluation in Rust, equal to lvis-api's.

hotcoco and lvis-api treat some input differently. So hotcoco gets only the annotations and
detections that lvis-api evaluates, as columns, with ids numbered from 0. The rules of lvis-api:

* It drops silently every annotation and detection whose area is not above 0 and finite, such as an
  empty mask or a box without width, and those of categories that it does not know.
* It uses ``ignore`` and not ``iscrowd``.
* It chooses an image's best 300 among all of its detections, also those dropped later.
"""

import dataclasses
import importlib
from itertools import chain
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np

from .detections import Detections
from .matches import Matches

BATCH = 50_000  # detections given to hotcoco at a time, but for a category that has more
_IGNORED_AREA = 2e10  # beyond all of lvis-api's area ranges


def reason_for_lvis_api(ground_truth: Dict[str, Any], detections: Detections) -> Optional[str]:
    """Why lvis-api itself must evaluate this input; None if hotcoco can and gives the same."""
    try:
        importlib.import_module("hotcoco")
    except ImportError as error:
        return f"hotcoco cannot be imported ({error})"
    annotations = ground_truth["annotations"]
    if any(annotation["id"] == 0 for annotation in annotations):
        return (
            "an annotation has id 0, to which lvis-api matches no detection, so that the AP of its "
            "class is too low. Number annotations from 1."
        )
    if np.isnan(detections.scores).any():
        return "a score is not a number"
    if not np.isfinite([annotation["bbox"] for annotation in annotations]).all():
        return "the box of an annotation is not finite"
    if detections.boxes is not None and not np.isfinite(detections.boxes).all():
        return "the box of a detection is not finite"
    return None


def best_in_each_group(groups: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Indices, in order, of the ``count`` best scores in each group; of equals, the first."""
    _, groups = np.unique(groups, return_inverse=True)
    order = np.lexsort((-scores, groups))
    starts = np.searchsorted(groups[order], np.arange(np.max(groups, initial=-1) + 1))
    rank = np.arange(len(order)) - starts[groups[order]]
    return np.sort(order[rank < count])


def hotcoco_curves(
    ground_truth: Dict[str, Any], detections: Detections, task: str
) -> Tuple[np.ndarray, np.ndarray]:
    """Precision and recall, as :func:`~.lvis_eval.lvis_curves` returns them.

    Args:
        ground_truth: LVIS annotations, whose masks are RLE for ``"segm"``.
        detections: of :func:`evaluated_detections`.
        task: ``"bbox"`` or ``"segm"``.
    """
    curves = []
    for evaluation in _evaluations(ground_truth, detections, task):
        evaluation.evaluate()
        evaluation.accumulate()
        curves.append((evaluation.eval["precision"][..., 0], evaluation.eval["recall"][..., 0]))
    precision, recall = zip(*curves)
    return np.concatenate(precision, axis=2), np.concatenate(recall, axis=1)


def hotcoco_matches(ground_truth: Dict[str, Any], detections: Detections, task: str) -> Matches:
    """What becomes of every detection; the arguments are those of :func:`hotcoco_curves`."""
    parts = []
    for evaluation in _evaluations(ground_truth, detections, task):
        evaluation.params.area_rng = evaluation.params.area_rng[:1]  # all areas
        evaluation.params.area_rng_lbl = evaluation.params.area_rng_lbl[:1]
        evaluation.evaluate()
        pairs = [pair for pair in evaluation.eval_imgs if pair is not None]
        rows = [
            (p["image_id"], p["category_id"], p["gtIgnore"].count(False), len(p["dtScores"]))
            for p in pairs
        ]
        scores = np.array([*chain.from_iterable(p["dtScores"] for p in pairs)], float)
        matched, ignored = (
            np.array(
                [[*chain.from_iterable(p[key][iou] for p in pairs)] for iou in range(10)], bool
            )
            for key in ("dtMatched", "dtIgnore")
        )
        num_categories = len(ground_truth["categories"])
        parts.append(Matches.of_pairs(rows, scores, matched, ignored, num_categories))
    return Matches.concatenate(parts)


def _evaluations(ground_truth: Dict[str, Any], detections: Detections, task: str) -> Iterator[Any]:
    """hotcoco's evaluation of some categories after the other, to be started.

    In it, images and categories are numbered in the order of their ids.
    """
    image_numbers, category_numbers = (
        {i: number for number, i in enumerate(sorted(entry["id"] for entry in ground_truth[key]))}
        for key in ("images", "categories")
    )
    images = {}
    for image in ground_truth["images"]:
        number = image_numbers[image["id"]]
        images[number] = {**image, "id": number, "file_name": ""}
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            known = category_numbers.keys() & image[key]
            images[number][key] = sorted(category_numbers[c] for c in known)
    by_category: List[List[Dict[str, Any]]] = [[] for _ in category_numbers]
    for a in _with_area(ground_truth):
        numbers = image_numbers[a["image_id"]], category_numbers[a["category_id"]]
        by_category[numbers[1]].append({**a, "image_id": numbers[0], "category_id": numbers[1]})
    detections = dataclasses.replace(
        detections,
        image_ids=np.array([image_numbers[i] for i in detections.image_ids], int),
        category_ids=np.array([category_numbers[c] for c in detections.category_ids], int),
    )
    # Categories do not affect each other, and hotcoco's memory grows with what it is given at once.
    counts = np.bincount(detections.category_ids, minlength=len(by_category))
    edges = np.flatnonzero(np.diff(np.cumsum(counts) // BATCH)) + 1
    for batch in np.split(np.arange(len(counts)), edges):
        chosen = detections[np.flatnonzero(np.isin(detections.category_ids, batch))]
        annotations = [a for category in batch for a in by_category[category]]
        yield _evaluation(images, batch.tolist(), annotations, chosen, task)


def evaluated_detections(
    ground_truth: Dict[str, Any], detections: Detections, max_dets: int
) -> Detections:
    """Each image's best detections, of categories annotated in it or listed as absent.

    lvis-api matches no others. ``max_dets`` is the limit for an image, -1 for none.
    """
    if max_dets >= 0:
        best = best_in_each_group(detections.image_ids, detections.scores, max_dets)
        detections = detections[best]
    pairs = {(a["image_id"], a["category_id"]) for a in _with_area(ground_truth)}
    known = {category["id"] for category in ground_truth["categories"]}
    for image in ground_truth["images"]:
        pairs.update((image["id"], c) for c in image["neg_category_ids"] if c in known)
    ids = zip(detections.image_ids, detections.category_ids)
    return detections[np.flatnonzero([pair in pairs for pair in ids])]


def _with_area(ground_truth: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The annotations that lvis-api evaluates."""
    return [a for a in ground_truth["annotations"] if 0 < a["area"] < np.inf]


def _evaluation(
    images: Dict[int, Dict[str, Any]],
    categories: List[int],
    annotations: List[Dict[str, Any]],
    detections: Detections,
    task: str,
) -> Any:
    """hotcoco's evaluation of some categories, whose annotations and detections these are."""
    import hotcoco

    gt_images = np.array([a["image_id"] for a in annotations], int)
    gt = hotcoco.COCO.from_arrays(
        [images[i] for i in np.union1d(gt_images, detections.image_ids)],
        [{"id": i, "name": str(i)} for i in categories],
        gt_images,
        np.array([a["category_id"] for a in annotations], int),
        np.array([a["bbox"] for a in annotations], float).reshape(-1, 4),
        area=np.array([_IGNORED_AREA if a.get("ignore") else a["area"] for a in annotations]),
        segmentation=[a["segmentation"] for a in annotations] if task == "segm" else None,
    )
    if detections.boxes is not None:
        boxes = detections.boxes.astype(float)
        areas = boxes[:, 2] * boxes[:, 3]
    else:
        rles = detections.rles()
        areas = np.array(hotcoco.mask.area(rles), float)
        boxes = hotcoco.mask.to_bbox(rles) if task == "bbox" else np.zeros((len(rles), 4))
    kept = np.flatnonzero((areas > 0) & (areas < np.inf))
    columns = detections.image_ids, boxes, detections.scores, detections.category_ids
    dt = gt.load_res(
        np.column_stack(columns)[kept],
        segmentation=[rles[i] for i in kept] if task == "segm" else None,
    )
    dt.update_anns(ids=np.arange(1, len(kept) + 1), area=areas[kept])
    evaluation = hotcoco.LVISEval(gt, dt.cap_detections_per_image(None), task)
    evaluation.params.max_dets = [max(1, len(kept))]  # per image and category
    return evaluation
