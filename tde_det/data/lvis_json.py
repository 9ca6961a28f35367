"""Read any json in LVIS format, checking and completing it.

Compared with Detectron2's ``load_lvis_json`` this also takes: images without ``coco_url``, any
category ids, categories without ``frequency`` or ``image_count``, and RLE masks.

What is wrong is treated in one of two ways. Where the file contradicts itself (an unknown category
or image id, a duplicate id, a missing key, a mask of another size) nothing in it can be trusted:
:class:`InputError`. A single annotation no detector can learn from (a polygon with fewer than 3
points, a box without area) is skipped, counted and logged.
"""

import json
import logging
import math
from collections import Counter
from typing import Any, Dict, List, Optional, Tuple

import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from ..errors import InputError

logger = logging.getLogger(__name__)


def frequency_of(image_count: int) -> str:
    """LVIS's group of a class by its training images: ``"r"`` ≤ 10 < ``"c"`` ≤ 100 < ``"f"``."""
    return "r" if image_count <= 10 else "c" if image_count <= 100 else "f"


def read_json(path: str) -> Any:
    """Parse a json file.

    Raises:
        InputError: it is missing or is no json (cut off, for instance).
    """
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as json: {error}") from None


def read_lvis_json(path: str) -> Dict[str, Any]:
    """Read an LVIS-format json and check that it holds together.

    Returns:
        its content; ``annotations`` is empty for a test set without any, annotations lacking an
        ``id``, ``bbox`` or ``area`` have been given theirs, uncompressed RLE is compressed, and
        images have both lists of the federated annotation.

    Raises:
        InputError: naming the file and the first entry that is wrong.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise InputError(f"{path} is not in LVIS format: expected an object, got a {type(data)}")
    for key in ("images", "categories"):
        if not isinstance(data.get(key), list) or not data[key]:
            raise InputError(
                f"{path} is not in LVIS format: it has no list {key!r}, or an empty one"
            )
    data["annotations"] = data.get("annotations") or []

    for kind in ("categories", "images", "annotations"):
        for i, entry in enumerate(data[kind]):
            if not isinstance(entry, dict):
                raise InputError(f"{path}: number {i} of {kind!r} is {entry!r}, no object")
            if kind == "annotations":
                entry.setdefault("id", i + 1)
            if "id" not in entry:
                raise InputError(f"{path}: number {i} of {kind!r} has no 'id'")
        repeated = [k for k, n in Counter(e["id"] for e in data[kind]).items() if n > 1]
        if repeated:
            raise InputError(f"{path}: id {repeated[0]} occurs more than once in {kind!r}")

    images = {image["id"]: image for image in data["images"]}
    for image in data["images"]:
        missing = {"height", "width"} - image.keys()
        if missing or not ("file_name" in image or "coco_url" in image):
            need = ", ".join(sorted(missing)) or "file_name or coco_url"
            raise InputError(f"{path}: image {image['id']} has no {need}")
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = image.get(key) or []
    for category in data["categories"]:
        if category.get("frequency", "r") not in ("r", "c", "f"):
            raise InputError(
                f"{path}: category {category['id']} has frequency {category['frequency']!r}, "
                "expected r, c or f, or none to have it counted"
            )
        if not isinstance(category.get("image_count", 0), int):
            raise InputError(
                f"{path}: category {category['id']} has image_count {category['image_count']!r}"
            )
    category_ids = {category["id"] for category in data["categories"]}
    for annotation in data["annotations"]:
        where = f"{path}: annotation {annotation['id']}"
        if not isinstance(annotation["id"], int):
            raise InputError(f"{where} has an id that is no whole number")
        if annotation.get("category_id") not in category_ids:
            raise InputError(
                f"{where} has category_id {annotation.get('category_id')}, which 'categories' does "
                "not list"
            )
        if annotation.get("image_id") not in images:
            raise InputError(
                f"{where} has image_id {annotation.get('image_id')}, which 'images' does not list"
            )
        _complete_annotation(annotation, images[annotation["image_id"]], where)
    return data


def _complete_annotation(annotation: Dict, image: Dict, where: str) -> None:
    """Give an annotation what it lacks, in place, and compress its RLE."""
    mask = annotation.get("segmentation")
    height, width = image["height"], image["width"]
    if isinstance(mask, dict):
        if mask.get("size") != [height, width]:
            raise InputError(
                f"{where} has a mask of size {mask.get('size')} in an image of {[height, width]}"
            )
        if isinstance(mask.get("counts"), list):
            if sum(mask["counts"]) != height * width:
                raise InputError(
                    f"{where} has an RLE whose counts do not add up to {height * width}"
                )
            mask = mask_util.frPyObjects(mask, height, width)
            annotation["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode()}
        elif not isinstance(mask.get("counts"), str):
            raise InputError(f"{where} has an RLE without 'counts'")
    elif mask is not None and not (
        isinstance(mask, list)
        and all(isinstance(polygon, list) for polygon in mask)
        and all(isinstance(v, (int, float)) for polygon in mask for v in polygon)
    ):
        raise InputError(
            f"{where} has a segmentation that is neither RLE nor a list of [x, y, x, y, …]"
        )
    for key in ("bbox", "area"):
        if annotation.get(key) is None:
            annotation.pop(key, None)
    if not mask and len(annotation.get("bbox", ())) == 4:
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    if "bbox" not in annotation or "area" not in annotation:
        if not mask:
            raise InputError(f"{where} has neither bbox nor segmentation")
        rle = encode_mask(annotation["segmentation"], height, width)
        if rle is None:
            annotation.setdefault("bbox", [0.0, 0.0, 0.0, 0.0])
            annotation.setdefault("area", 0.0)
        else:
            annotation.setdefault("bbox", mask_util.toBbox(rle).tolist())
            annotation.setdefault("area", float(mask_util.area(rle)))
    box = annotation["bbox"]
    if len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
        raise InputError(f"{where} has bbox {box}, expected [x, y, width, height]")


def valid_polygons(polygons: List[List[float]]) -> List[List[float]]:
    """Those with at least 3 points, given as x, y, x, y, …"""
    return [p for p in polygons if len(p) >= 6 and len(p) % 2 == 0]


def encode_mask(segmentation: Any, height: int, width: int) -> Optional[Dict]:
    """Polygons or compressed RLE as one compressed RLE; None if no polygon is valid."""
    if isinstance(segmentation, dict):
        return segmentation
    polygons = valid_polygons(segmentation)
    return mask_util.merge(mask_util.frPyObjects(polygons, height, width)) if polygons else None


def count_images(data: Dict[str, Any]) -> "Counter[int]":
    """Images each category is annotated in."""
    pairs = {(a["image_id"], a["category_id"]) for a in data["annotations"]}
    return Counter(category for _, category in pairs)


def complete_categories(
    data: Dict[str, Any], train_counts: Optional[Dict[int, int]] = None
) -> List[Dict[str, Any]]:
    """Categories sorted by id, each with ``name``, ``image_count`` and ``frequency``.

    Args:
        data: from :func:`read_lvis_json`.
        train_counts: images per category of the training split, which rare, common and frequent
            refer to; counted in ``data`` itself if None.
    """
    counts = count_images(data) if train_counts is None else train_counts
    categories = []
    for category in sorted(data["categories"], key=lambda c: c["id"]):
        category = dict(category)
        category.setdefault("name", str(category["id"]))
        category.setdefault("image_count", counts.get(category["id"], 0))
        category.setdefault("frequency", frequency_of(category["image_count"]))
        categories.append(category)
    return categories


def to_detectron2(data: Dict[str, Any], source: str) -> Tuple[List[Dict[str, Any]], "Counter[str]"]:
    """Convert to Detectron2's standard dicts; ``file_name`` stays relative to the image root.

    Args:
        data: from :func:`read_lvis_json`.
        source: what to call the data in the log.

    Returns:
        one dict per image, sorted by id, and how many annotations were skipped for what.
    """
    contiguous = {
        c["id"]: i for i, c in enumerate(sorted(data["categories"], key=lambda c: c["id"]))
    }
    records: Dict[int, Dict[str, Any]] = {}
    for image in sorted(data["images"], key=lambda image: image["id"]):
        file_name = image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:])
        records[image["id"]] = {
            "file_name": file_name,
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "neg_category_ids": image["neg_category_ids"],
            "not_exhaustive_category_ids": image["not_exhaustive_category_ids"],
            "annotations": [],
        }
    skipped: Counter[str] = Counter()
    for annotation in data["annotations"]:
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
            polygons = valid_polygons(mask)
            if not polygons:
                skipped["no polygon with at least 3 points"] += 1
                continue
            converted["segmentation"] = polygons
        records[annotation["image_id"]]["annotations"].append(converted)
    for reason, count in skipped.items():
        logger.warning("%s: skipped %d annotations with %s", source, count, reason)
    empty = sum(not record["annotations"] for record in records.values())
    if empty:
        logger.info("%s: %d of %d images have no annotations", source, empty, len(records))
    return list(records.values()), skipped
