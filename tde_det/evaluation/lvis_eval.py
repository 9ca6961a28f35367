"""LVIS average precision, equal to lvis-api's whichever backend computes it."""

import dataclasses
import logging
from typing import Any, Callable, Dict, List, Sequence, Tuple, TypeVar, Union

import numpy as np

from ..data.rle import check_polygons, encode_mask
from ..errors import InputError
from ..gc_pause import gc_paused
from .detections import Detections
from .hotcoco_backend import (
    best_in_each_group,
    evaluated_detections,
    hotcoco_curves,
    hotcoco_matches,
    reason_for_lvis_api,
)
from .lvis_api import lvis_api_curves, lvis_api_matches
from .matches import Matches
from .results_file import parse_detections

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR@300")
BACKENDS = ("hotcoco", "lvis")
MAX_DETECTIONS = 300  # per image
MAX_DETECTIONS_FIXED = 10_000  # per category, for AP-fixed


def check_backend(backend: str) -> None:
    """Check the value of ``TEST.LVIS_BACKEND``.

    Raises:
        InputError: it is not in :data:`BACKENDS`.
    """
    if backend not in BACKENDS:
        raise InputError(f"TEST.LVIS_BACKEND is {backend!r}; known are {' and '.join(BACKENDS)}")


@gc_paused()
def evaluate_lvis(
    ground_truth: Dict[str, Any],
    categories: Sequence[Dict[str, Any]],
    detections: Union[Detections, List[Dict[str, Any]]],
    task: str,
    backend: str = "hotcoco",
    fixed: bool = False,
) -> Tuple[Dict[str, float], np.ndarray]:
    """Evaluate detections against LVIS-format annotations.

    Args:
        ground_truth: from :func:`tde_det.data.lvis_json.read_lvis_json`.
        categories: its categories from :func:`complete_categories`, with ``frequency``.
        detections: columns, or a list in the LVIS results format.
        task: ``"bbox"``, ``"segm"`` or ``"boundary"``, mask AP with the lesser of mask IoU and
            boundary IoU. As in Detectron2, mask AP by size goes by the area of the mask.
        backend: of :data:`BACKENDS`; they give the same numbers. Boundary AP is always lvis-api's.
        fixed: AP-fixed (Dave et al., 2021, https://arxiv.org/abs/2102.01066): the best 10,000
            detections of each category in place of the best 300 of each image.

    Returns:
        :data:`METRICS` in percent, NaN where no category has annotations, without AR if ``fixed``;
        and the AP of every category in the same unit, in the order of ``categories``.

    Raises:
        InputError: the backend is unknown; see also :func:`select_for_task`.
    """
    by_id = sorted(categories, key=lambda c: c["id"])
    ground_truth = {**ground_truth, "categories": by_id}
    precision, recall = lvis_curves(ground_truth, detections, task, backend, fixed)
    metrics = _summarize(precision, recall, [c["frequency"] for c in by_id])
    if fixed:
        del metrics["AR@300"]
    per_category = {c["id"]: _mean(precision[:, :, i, 0]) for i, c in enumerate(by_id)}
    return metrics, np.array([per_category[c["id"]] for c in categories])


def lvis_curves(
    ground_truth: Dict[str, Any],
    detections: Union[Detections, List[Dict[str, Any]]],
    task: str,
    backend: str = "hotcoco",
    fixed: bool = False,
) -> Tuple[np.ndarray, np.ndarray]:
    """Precision and recall, which :func:`evaluate_lvis` summarises.

    The arguments are the same, but ``ground_truth`` has its ``categories`` sorted by id.

    Returns:
        precision ``[10 IoU thresholds, 101 recalls, categories, areas]``, areas being all, small,
        medium and large; and recall ``[10, categories, areas]``; -1 without annotations.
    """
    return _run((lvis_api_curves, hotcoco_curves), ground_truth, detections, task, backend, fixed)


@gc_paused()
def lvis_matches(
    ground_truth: Dict[str, Any],
    detections: Union[Detections, List[Dict[str, Any]]],
    task: str,
    backend: str = "hotcoco",
    fixed: bool = False,
) -> Matches:
    """What becomes of every detection; the arguments are those of :func:`lvis_curves`."""
    return _run((lvis_api_matches, hotcoco_matches), ground_truth, detections, task, backend, fixed)


def _run(
    functions: Tuple[Callable[..., Result], Callable[..., Result]],
    ground_truth: Dict[str, Any],
    detections: Union[Detections, List[Dict[str, Any]]],
    task: str,
    backend: str,
    fixed: bool,
) -> Result:
    """Call the first function, lvis-api's, or the second, hotcoco's, with what each takes."""
    by_lvis_api, by_hotcoco = functions
    check_backend(backend)
    if not isinstance(detections, Detections):
        detections = parse_detections(detections, image_sizes(ground_truth))
    detections = select_for_task(detections, ground_truth, task)
    if task != "bbox":
        ground_truth = encode_annotations(ground_truth)
    max_dets = MAX_DETECTIONS
    if fixed:
        best = best_in_each_group(detections.category_ids, detections.scores, MAX_DETECTIONS_FIXED)
        detections, max_dets = detections[best], -1
    reason = reason_for_lvis_api(ground_truth, detections) if backend == "hotcoco" else None
    if reason:
        logger.warning("Evaluating with lvis-api, slowly: %s", reason)
    elif backend == "hotcoco":
        detections, max_dets = evaluated_detections(ground_truth, detections, max_dets), -1
        if task != "boundary":
            return by_hotcoco(ground_truth, detections, task)
    return by_lvis_api(ground_truth, detections.to_dicts(), task, max_dets)


def image_sizes(ground_truth: Dict[str, Any]) -> Dict[Any, Tuple[int, int]]:
    """Height and width by image id."""
    return {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}


def encode_annotations(ground_truth: Dict[str, Any]) -> Dict[str, Any]:
    """The same annotations with their masks as RLE, without those that have no valid mask."""
    sizes = image_sizes(ground_truth)
    annotations = []
    for annotation in ground_truth["annotations"]:
        mask = annotation.get("segmentation") or []
        try:
            check_polygons(mask)
        except InputError as error:
            raise InputError(f"annotation {annotation['id']} {error}") from None
        rle = encode_mask(mask, *sizes[annotation["image_id"]])
        if rle is not None:
            annotations.append({**annotation, "segmentation": rle})
    count = len(ground_truth["annotations"]) - len(annotations)
    if count:
        logger.warning("mask AP leaves out %d annotations without a valid mask", count)
    return {**ground_truth, "annotations": annotations}


def select_for_task(detections: Detections, ground_truth: Dict[str, Any], task: str) -> Detections:
    """The detections with the fields that a task uses: boxes or masks.

    Raises:
        InputError: they are in unknown images or lack what the task needs.
    """
    unknown = set(np.unique(detections.image_ids).tolist()) - set(image_sizes(ground_truth))
    if unknown:
        raise InputError(
            f"The results hold detections in {len(unknown)} images that the annotations do not "
            f"list: {min(unknown, key=str)!r}, for one. Are the two files of the same data set?"
        )
    if task == "bbox" and detections.boxes is not None:
        return dataclasses.replace(detections, masks=None, mask_sizes=None)
    without = detections.without_mask()
    if len(without):
        raise InputError(
            f"{task}: a detection in image {detections.image_ids[without[0]]} has no "
            "'segmentation'. Boxes alone can be evaluated by the task bbox."
        )
    # With a box, lvis-api would take its area for the mask's.
    return dataclasses.replace(detections, boxes=None)


def _mean(curves: np.ndarray) -> float:
    """Mean in percent of what is present, NaN without."""
    present = curves[curves > -1]
    return 100 * float(present.mean()) if present.size else float("nan")


def _summarize(
    precision: np.ndarray, recall: np.ndarray, frequencies: Sequence[str]
) -> Dict[str, float]:
    """:data:`METRICS` of :func:`lvis_curves`."""
    ap = precision[..., 0]
    curves = [ap, ap[0], ap[5], *(precision[..., area] for area in (1, 2, 3))]
    curves += [ap[:, :, np.array(frequencies) == group] for group in "rcf"]
    return dict(zip(METRICS, map(_mean, [*curves, recall[..., 0]])))
