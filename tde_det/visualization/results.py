"""Draw the detections of results files, one picture an image."""

import os
from typing import Any, Dict, List, Mapping

import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from torchvision.ops import box_iou
from tqdm import tqdm

from ..data.categories import categories_of
from ..data.registered import registered_dataset
from ..errors import InputError
from ..evaluation import read_detections
from ..output_files import check_writable
from .draw import Categories, Objects, draw_panels
from .select import select_readable


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
        output: folder for the pictures, ``<image id>.<extension>``.
        limit: images drawn at most, in the data set's order.
        extension: ``"jpg"``, ``"png"`` or ``"pdf"``.
        by_gain: take those images first in which the last results find more rare objects, then
            more objects, than the first ones.
        selection: options of :func:`select_readable`.

    Returns:
        the pictures' paths.

    Raises:
        InputError: results cannot be read, have no boxes or are another data set's.
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
        records.sort(key=gain, reverse=True)
    paths = []
    for record in tqdm(records[:limit], "drawing", unit="image"):
        panels: Dict[str, Objects] = {"ground truth": _annotations(record, ids)}
        panels.update({t: file.of(record["image_id"], **selection) for t, file in files.items()})
        figure = draw_panels(read_image(record["file_name"], "RGB"), panels, by_id)
        paths.append(os.path.join(output, f"{record['image_id']}.{extension}"))
        check_writable(paths[-1])
        figure.savefig(paths[-1])
    return paths
