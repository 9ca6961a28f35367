"""One image of an LVIS-format json with its annotations: as a row of a table, and as a dict."""

import math
from typing import Any, Dict, List, Optional

import pyarrow as pa
from detectron2.structures import BoxMode

from ..errors import InputError
from .rle import check_polygons, valid_polygons

_ANNOTATION = {
    "bbox": pa.list_(pa.float64(), 4),  # x, y, width, height in pixels
    "category_id": pa.int64(),  # class of the model
    "iscrowd": pa.bool_(),  # COCO's
    "polygons": pa.list_(pa.list_(pa.float64())),  # each x, y, x, y, …
    "rle": pa.string(),  # counts of an RLE of the image's size, where there are no polygons
}
_IMAGE = {
    "file_name": pa.string(),  # relative to the image root
    "height": pa.int64(),
    "width": pa.int64(),
    "not_exhaustive_category_ids": pa.list_(pa.int64()),
    "neg_category_ids": pa.list_(pa.int64()),
    "image_id": pa.int64(),  # or a string
    "annotations": pa.list_(pa.struct(list(_ANNOTATION.items()))),
    "skipped": pa.list_(pa.string()),  # the reason for each annotation that is left out
}


def table_schema(image_id: Any, metadata: Dict[str, str]) -> pa.Schema:
    """Columns of a table whose image ids are of the same type as ``image_id``."""
    columns = {**_IMAGE, "image_id": pa.string()} if isinstance(image_id, str) else _IMAGE
    return pa.schema(list(columns.items()), metadata)


def to_row(
    image: Dict[str, Any], annotations: List[Any], classes: Dict[int, int], built_in: bool
) -> Dict[str, Any]:
    """A row of the table.

    Args:
        image, annotations: from :class:`LvisJson`.
        classes: category id → class of the model.
        built_in: whether to keep what Detectron2's ``load_lvis_json`` keeps (all annotations, no
            crowds, and polygons alone) in place of all that a detector can learn from.
    """
    kept, skipped = [], []
    for annotation in annotations:
        mask = annotation.get("segmentation")
        polygons = valid_polygons(mask) if isinstance(mask, list) else None
        if built_in and (not polygons or polygons != mask):
            raise InputError(
                f"annotation {annotation['id']} has a segmentation other than polygons of at least "
                "3 points, which Detectron2's own data sets need; DATASETS.LVIS_CUSTOM takes it"
            )
        reason = None if built_in else _reason_to_skip(annotation["bbox"], polygons)
        if reason:
            skipped.append(reason)
            continue
        if not built_in:
            check_polygons(mask)
        kept.append(
            {
                "bbox": annotation["bbox"],
                "category_id": classes[annotation["category_id"]],
                "iscrowd": bool(annotation.get("iscrowd")) and not built_in,
                "polygons": polygons,
                "rle": mask["counts"] if isinstance(mask, dict) else None,
            }
        )
    names = {"image_id": image["id"], "file_name": _file_name(image, built_in)}
    return {**image, **names, "annotations": kept, "skipped": skipped}


def _file_name(image: Dict[str, Any], built_in: bool) -> str:
    """Path from the image root; ``load_lvis_json`` takes it from ``coco_url`` alone."""
    url = image.get("coco_url") or ""
    if built_in and "/" not in url:
        raise InputError("it has no coco_url with the image's folder and name")
    if image.get("file_name") and not built_in:
        return image["file_name"]
    return "/".join(url.split("/")[-2:])


def _reason_to_skip(box: List[float], polygons: Optional[List[Any]]) -> Optional[str]:
    """Why no detector can learn from an annotation, if so."""
    x, y, width, height = box
    if not (math.isfinite(x + y) and 0 < width < math.inf and 0 < height < math.inf):
        return "a box without area"
    return "no polygon with at least 3 points" if polygons == [] else None


def to_record(row: Dict[str, Any], path: str) -> Dict[str, Any]:
    """Turn a row into Detectron2's standard dict, in place; ``path`` is the image file's."""
    row["file_name"] = path
    del row["skipped"]
    for annotation in row["annotations"]:
        annotation["bbox_mode"] = BoxMode.XYWH_ABS
        polygons, counts = annotation.pop("polygons"), annotation.pop("rle")
        if polygons is not None:
            annotation["segmentation"] = polygons
        elif counts is not None:
            size = [row["height"], row["width"]]
            annotation["segmentation"] = {"size": size, "counts": counts}
        if annotation.pop("iscrowd"):  # Detectron2's mapper leaves crowds out
            annotation["iscrowd"] = 1
    return row
