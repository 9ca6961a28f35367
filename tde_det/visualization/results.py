"""Draw the detections of results files, one picture an image."""

import logging
import os
from typing import Any, Dict, List, Mapping
from urllib.parse import quote

import numpy as np
import torch
from detectron2.structures import BoxMode
from torchvision.ops import box_iou
from tqdm import tqdm

from ..data.categories import categories_of
from ..data.read_image import read_image
from ..data.registered import registered_dataset
from ..errors import InputError
from ..evaluation import read_detections
from ..output_files import check_writable
from .draw import Categories, Objects, draw_panels
from .select import select_readable

logger = logging.getLogger(__name__)


def _read(record: Dict[str, Any]) -> np.ndarray:
    """The image of a record, ``uint8[H, W, 3]`` RGB."""
    path, image = record["file_name"], read_image(record["file_name"], "RGB")
    size, expected = image.shape[1::-1], (record["width"], record["height"])
    if size != expected:
        raise InputError(
            "{} is {}×{} pixels, but the json says {}×{}".format(path, *size, *expected)
        )
    return image


class _Results:
    """The detections of a results file, by image.

    Args:
        path: ``lvis_instances_results.json``.
        sizes: height and width of the data set's images by id.
        categories: by id.
        dataset_name: for errors.

    Raises:
        InputError: the results cannot be read, have no boxes or are another data set's.
    """

    def __init__(self, path: str, sizes: Dict[Any, Any], categories: Categories, dataset_name: str):
        self._detections = read_detections(path, sizes)
        if self._detections.boxes is None:
            raise InputError(f"{path} has masks only; drawing needs 'bbox' too")
        for kind, ids, known in (
            ("image", self._detections.image_ids, sizes),
            ("category", self._detections.category_ids, categories),
        ):
            unknown = set(ids.tolist()) - set(known)
            if unknown:
                raise InputError(
                    f"{path} has detections of {kind} {min(unknown, key=str)}, which "
                    f"{dataset_name} does not list: are they another data set's results?"
                )

    def of(self, image_id: Any, **selection: Any) -> List[Dict[str, Any]]:
        rows = np.flatnonzero(self._detections.image_ids == image_id)
        return select_readable(self._detections[rows].to_dicts(), **selection)


def _annotations(record: Dict[str, Any], ids: List[Any]) -> List[Dict[str, Any]]:
    """Annotations of a record of Detectron2 in LVIS's format."""
    return [
        {
            **a,
            "bbox": BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS),
            "category_id": ids[a["category_id"]],
        }
        for a in record["annotations"]
    ]


def count_found(annotations: Objects, detections: Objects, categories: Categories) -> np.ndarray:
    """How many objects, rare ones and all, a detection of their class covers with IoU ≥ 0.5.

    Returns:
        ``int[2]``.

    >>> thing = {"bbox": [0, 0, 10, 10], "category_id": 1}
    >>> count_found([thing], [{**thing, "bbox": [0, 0, 10, 6]}], {1: {"frequency": "r"}}).tolist()
    [1, 1]
    """
    found = np.zeros(2, int)
    if annotations and detections:
        boxes = [torch.tensor([o["bbox"] for o in side]) for side in (annotations, detections)]
        corners = [torch.cat([b[:, :2], b[:, :2] + b[:, 2:]], 1).double() for b in boxes]
        ious = box_iou(*corners)
        for annotation, row in zip(annotations, ious):
            names = [d["category_id"] == annotation["category_id"] for d in detections]
            if bool((row[torch.tensor(names)] >= 0.5).any()):
                rare = categories[annotation["category_id"]].get("frequency") == "r"
                found += [int(rare), 1]
    return found


def draw_results(
    dataset_name: str,
    results: Mapping[str, str],
    output: str,
    *,
    limit: int = 50,
    extension: str = "jpg",
    by_gain: bool = False,
    **selection: Any,
) -> List[str]:
    """Save predictions beside ground truth, one picture an image.

    Args:
        dataset_name: registered with Detectron2.
        results: files such as ``lvis_instances_results.json``, by the title of their panel.
        output: folder for the pictures, ``<image id>.<extension>``; of an id that is text, with
            what no file name may have as ``%2F`` and the like.
        limit: images drawn at most, in the data set's order.
        extension: ``"jpg"``, ``"png"`` or ``"pdf"``.
        by_gain: take those images first in which the last results find more rare objects, then
            more objects, than the first ones.
        selection: options of :func:`select_readable`.

    Returns:
        the pictures' paths.

    Raises:
        InputError: results cannot be read, have no boxes or are another data set's; or, once all
            others are drawn, some images cannot be.
    """
    records = list(registered_dataset(dataset_name))
    categories = categories_of(dataset_name)
    by_id = {category["id"]: category for category in categories}
    ids = [category["id"] for category in categories]
    sizes = {record["image_id"]: (record["height"], record["width"]) for record in records}
    files = {t: _Results(path, sizes, by_id, dataset_name) for t, path in results.items()}

    def gain(record: Dict[str, Any]) -> List[int]:
        annotations, sides = _annotations(record, ids), list(files.values())
        first, last = (
            count_found(annotations, side.of(record["image_id"], **selection), by_id)
            for side in (sides[0], sides[-1])
        )
        return (last - first).tolist()

    if by_gain:
        gains = {record["image_id"]: gain(record) for record in records}
        records.sort(key=lambda record: gains[record["image_id"]], reverse=True)
        if records and gains[records[0]["image_id"]][0] <= 0:
            logger.warning(
                "The last results find no more rare objects than the first in any image. At a "
                "lower score threshold they may."
            )
    paths: List[str] = []
    failed: List[str] = []
    for record in tqdm(records[:limit], "drawing", unit="image"):
        try:
            image = _read(record)
        except InputError as error:
            logger.warning("skipped: %s", error)
            failed.append(record["file_name"])
            continue
        panels: Dict[str, Objects] = {"ground truth": _annotations(record, ids)}
        panels.update({t: file.of(record["image_id"], **selection) for t, file in files.items()})
        name = f"{quote(str(record['image_id']), safe='')}.{extension}"
        paths.append(os.path.join(output, name))
        check_writable(paths[-1])
        draw_panels(image, panels, by_id).savefig(paths[-1])
    if failed:
        total = len(paths) + len(failed)
        raise InputError(f"{len(failed)} of {total} images are skipped: {', '.join(failed)}")
    return paths
