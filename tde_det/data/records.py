"""Detectron2's standard dicts from the images and annotations of an LVIS-format json."""

import logging
import math
from collections import Counter
from typing import Any, Dict, Iterable, List, Tuple

from detectron2.structures import BoxMode

from ..errors import InputError
from .masks import check_polygons, valid_polygons

logger = logging.getLogger(__name__)


def custom_record(
    image: Dict[str, Any],
    annotations: Iterable[Dict[str, Any]],
    contiguous: Dict[int, int],
    skipped: "Counter[str]",
) -> Dict[str, Any]:
    """Detectron2's standard dict of one image; ``file_name`` stays relative to the image root.

    Args:
        image, annotations: from :class:`LvisJson` or :func:`read_lvis_json`.
        contiguous: category id → class of the model.
        skipped: counts, by reason, the annotations left out.
    """
    record = {
        "file_name": image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:]),
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
        "neg_category_ids": image["neg_category_ids"],
        "not_exhaustive_category_ids": image["not_exhaustive_category_ids"],
        "annotations": [],
    }
    for annotation in annotations:
        x, y, width, height = annotation["bbox"]
        if not (all(map(math.isfinite, (x, y))) and 0 < width < math.inf and 0 < height < math.inf):
            skipped["a box without area"] += 1
            continue
        converted = {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": contiguous[annotation["category_id"]],
        }
        if annotation.get("iscrowd"):  # COCO's; Detectron2's mapper leaves such objects out
            converted["iscrowd"] = 1
        mask = annotation.get("segmentation")
        if isinstance(mask, dict):
            converted["segmentation"] = mask
        elif mask is not None:
            check_polygons(mask)
            polygons = valid_polygons(mask)
            if not polygons:
                skipped["no polygon with at least 3 points"] += 1
                continue
            converted["segmentation"] = polygons
        record["annotations"].append(converted)
    return record


def built_in_record(
    image: Dict[str, Any], annotations: Iterable[Dict[str, Any]], contiguous: Dict[int, int]
) -> Dict[str, Any]:
    """The same as Detectron2's ``load_lvis_json`` gives: all annotations, and polygons alone.

    Raises:
        InputError: ``load_lvis_json`` would not take the image.
    """
    if "/" not in (image.get("coco_url") or ""):
        raise InputError("it has no coco_url with the image's folder and name")
    record = {
        "file_name": "/".join(image["coco_url"].split("/")[-2:]),
        "height": image["height"],
        "width": image["width"],
        "not_exhaustive_category_ids": image["not_exhaustive_category_ids"],
        "neg_category_ids": image["neg_category_ids"],
        "image_id": image["id"],
        "annotations": [],
    }
    for annotation in annotations:
        polygons = annotation.get("segmentation")
        if not isinstance(polygons, list) or not polygons or valid_polygons(polygons) != polygons:
            raise InputError(
                f"annotation {annotation['id']} has a segmentation other than polygons of at least "
                "3 points, which Detectron2's own data sets need; DATASETS.LVIS_CUSTOM takes it"
            )
        record["annotations"].append(
            {
                "bbox": annotation["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": contiguous[annotation["category_id"]],
                "segmentation": polygons,
            }
        )
    return record


def contiguous_ids(categories: Iterable[Dict[str, Any]]) -> Dict[int, int]:
    """Category id → class of the model, in the order of the ids."""
    return {k: i for i, k in enumerate(sorted(category["id"] for category in categories))}


def log_skipped(skipped: Dict[str, int], num_empty: int, num_images: int, source: str) -> None:
    """Say which annotations were left out, and how many images have none."""
    for reason, count in skipped.items():
        logger.warning("%s: skipped %d annotations with %s", source, count, reason)
    if num_empty:
        logger.info("%s: %d of %d images have no annotations", source, num_empty, num_images)


def to_detectron2(data: Dict[str, Any], source: str) -> Tuple[List[Dict[str, Any]], "Counter[str]"]:
    """Convert to Detectron2's standard dicts; ``file_name`` stays relative to the image root.

    Args:
        data: from :func:`read_lvis_json`.
        source: what to call the data in the log.

    Returns:
        one dict per image, sorted by id, and how many annotations were skipped for what.
    """
    contiguous = contiguous_ids(data["categories"])
    by_image: Dict[Any, List[Dict[str, Any]]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    skipped: Counter[str] = Counter()
    records = [
        custom_record(image, by_image[image["id"]], contiguous, skipped)
        for image in sorted(data["images"], key=lambda image: image["id"])
    ]
    log_skipped(skipped, sum(not r["annotations"] for r in records), len(records), source)
    return records, skipped
