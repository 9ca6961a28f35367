"""LVIS average precision, equal to lvis-api's whichever backend computes it."""

import dataclasses
import functools
import importlib
import logging
from typing import Any, Dict, List, Mapping, Sequence, Tuple, Union

import numpy as np

from ..data.garbage import garbage_collection_paused
from ..data.masks import check_polygons, encode_mask
from ..errors import InputError
from .detections import Detections
from .hotcoco_backend import best_of_each, beyond_hotcoco, counting_detections, hotcoco_curves
from .lvis_api import lvis_api_curves

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR@300")
BACKENDS = ("hotcoco", "lvis")
MAX_DETECTIONS = 300  # per image
MAX_DETECTIONS_FIXED = 10_000  # per category, for AP-fixed


def check_backend(backend: str) -> None:
    """Find out early whether ``TEST.LVIS_BACKEND`` is known.

    Raises:
        InputError: it is not.
    """
    if backend not in BACKENDS:
        raise InputError(f"TEST.LVIS_BACKEND is {backend!r}; known are {' and '.join(BACKENDS)}")


@functools.lru_cache(maxsize=1)  # one warning
def _has_hotcoco() -> bool:
    try:
        importlib.import_module("hotcoco")
    except ImportError as error:
        logger.warning("Evaluating with lvis-api, slowly: hotcoco cannot be imported (%s)", error)
        return False
    return True


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
        task: ``"bbox"``, ``"segm"`` or ``"boundary"``. As in Detectron2, mask AP by size goes by
            the area of the mask, also where a detection has a box. ``"boundary"`` is mask AP with
            the lesser of mask IoU and boundary IoU (Cheng et al., 2021).
        backend: of :data:`BACKENDS`; they give the same numbers. Boundary AP is always lvis-api's.
        fixed: AP-fixed (Dave et al., 2021, "Evaluating Large-Vocabulary Object Detectors: The Devil
            is in the Details"): the best 10,000 detections of each category in place of the best
            300 of each image, as the authors' ``evaluate_ap_fixed.py`` does it.

    Returns:
        :data:`METRICS` in percent, NaN where no category has annotations, without AR if ``fixed``;
        and the AP of every category in the same unit, in the order of ``categories``.

    Raises:
        InputError: the backend is unknown, or detections are in unknown images or lack what the
            task needs.
    """
    categories_by_id = sorted(categories, key=lambda c: c["id"])
    ground_truth = {**ground_truth, "categories": categories_by_id}
    with garbage_collection_paused():
        precision, recall = lvis_curves(ground_truth, detections, task, backend, fixed)
    metrics = _summarize(precision, recall, [c["frequency"] for c in categories_by_id])
    if fixed:
        del metrics["AR@300"]
    position = {c["id"]: i for i, c in enumerate(categories_by_id)}
    per_category = [_mean(precision[:, :, position[c["id"]], 0]) for c in categories]
    return metrics, np.array(per_category)


def lvis_curves(
    ground_truth: Dict[str, Any],
    detections: Union[Detections, List[Dict[str, Any]]],
    task: str,
    backend: str = "hotcoco",
    fixed: bool = False,
) -> Tuple[np.ndarray, np.ndarray]:
    """What :func:`evaluate_lvis` summarises; its arguments, with ``categories`` sorted by id.

    Returns:
        precision ``[10 IoU thresholds, 101 recalls, categories, areas]``, areas being all, small,
        medium and large; and recall ``[10, categories, areas]``; -1 without annotations.
    """
    check_backend(backend)
    images = {image["id"]: image for image in ground_truth["images"]}
    if not isinstance(detections, Detections):
        sizes = {i: (image["height"], image["width"]) for i, image in images.items()}
        detections = Detections.from_dicts(detections, sizes)
    detections = for_task(detections, images, task)
    if task != "bbox":
        ground_truth = encode_masks(ground_truth)

    max_dets = MAX_DETECTIONS
    if fixed:
        best = best_of_each(detections.category_ids, detections.scores, MAX_DETECTIONS_FIXED)
        detections, max_dets = detections[best], -1
    if backend == "hotcoco":
        reason = beyond_hotcoco(ground_truth, detections)
        if reason:
            logger.warning("Evaluating with lvis-api, slowly: %s", reason)
            backend = "lvis"
        elif not _has_hotcoco():
            backend = "lvis"
        else:
            counting = counting_detections(ground_truth, detections, max_dets)
            detections, max_dets = detections[counting], -1
    if backend == "hotcoco" and task != "boundary":
        return hotcoco_curves(ground_truth, detections, task)
    return lvis_api_curves(ground_truth, detections.to_dicts(), task, max_dets)


def encode_masks(ground_truth: Dict[str, Any]) -> Dict[str, Any]:
    """The same annotations with their masks as RLE, without those that have no valid mask."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    annotations = []
    for annotation in ground_truth["annotations"]:
        size = sizes[annotation["image_id"]]
        mask = annotation.get("segmentation") or []
        try:
            check_polygons(mask)
        except InputError as error:
            raise InputError(f"annotation {annotation['id']} {error}") from None
        rle = encode_mask(mask, *size)
        if rle is not None:
            annotations.append({**annotation, "segmentation": rle})
    count = len(ground_truth["annotations"]) - len(annotations)
    if count:
        logger.warning("mask AP leaves out %d annotations without a valid mask", count)
    return {**ground_truth, "annotations": annotations}


def for_task(detections: Detections, images: Mapping[Any, Any], task: str) -> Detections:
    """The detections with what a task goes by.

    Raises:
        InputError: they are in unknown images or lack what the task needs.
    """
    unknown = sorted(set(detections.image_ids.tolist()) - set(images), key=str)
    if unknown:
        some = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
        raise InputError(
            f"The results hold detections in {len(unknown)} images that the annotations do not "
            f"list: {some}. Are the two files of the same data set?"
        )
    if task == "bbox" and detections.boxes is not None:
        return dataclasses.replace(detections, masks=None, mask_sizes=None)
    masks = detections.masks if detections.masks is not None else [None] * len(detections)
    if None in masks:
        image_id = detections.image_ids[masks.index(None)]
        missing = "'bbox' or 'segmentation'" if task == "bbox" else "'segmentation'"
        hint = "" if task == "bbox" else ". Boxes alone can be evaluated by the task bbox."
        raise InputError(f"{task}: a detection in image {image_id} has no {missing}{hint}")
    # With a box, lvis-api would take its area for the mask's.
    return dataclasses.replace(detections, boxes=None)


def _mean(curves: np.ndarray) -> float:
    """Mean in percent of what is present, NaN without."""
    present = curves[curves > -1]
    return 100 * float(present.mean()) if present.size else float("nan")


def _summarize(
    precision: np.ndarray, recall: np.ndarray, frequencies: Sequence[str]
) -> Dict[str, float]:
    """:data:`METRICS` of :func:`lvis_api_curves`."""
    all_areas = precision[..., 0]
    metrics = {"AP": all_areas, "AP50": all_areas[0], "AP75": all_areas[5]}
    metrics.update({f"AP{'sml'[i]}": precision[..., i + 1] for i in range(3)})
    for group in "rcf":
        metrics[f"AP{group}"] = all_areas[:, :, np.array(frequencies) == group]
    metrics["AR@300"] = recall[..., 0]
    return {name: _mean(metrics[name]) for name in METRICS}
