"""Draw the detections of a results file, one picture an image."""

import logging
import os
from typing import Any, Dict, List
from urllib.parse import quote

import cv2
import numpy as np
from detectron2.structures import BoxMode
from tqdm import tqdm

from ..data.categories import categories_of
from ..data.read_image import read_image
from ..data.registered import registered_dataset
from ..errors import InputError
from ..evaluation import read_detections
from ..output_files import check_writable
from .draw import draw_comparison
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


def draw_results(
    dataset_name: str, results_file: str, output: str, *, limit: int = 50, **selection: Any
) -> List[str]:
    """Save predictions beside ground truth, one picture an image.

    Args:
        dataset_name: registered with Detectron2.
        results_file: ``lvis_instances_results.json``.
        output: folder for the pictures, ``<image id>.jpg``; of an id that is text, with what no
            file name may have as ``%2F`` and the like.
        limit: images drawn at most, in the data set's order.
        selection: options of :func:`select_readable`.

    Returns:
        the pictures' paths.

    Raises:
        InputError: the results cannot be read, have no boxes or are another data set's; or, once
            all others are drawn, some images cannot be.
    """
    records = registered_dataset(dataset_name)
    categories = categories_of(dataset_name)
    by_id = {category["id"]: category for category in categories}
    sizes = {record["image_id"]: (record["height"], record["width"]) for record in records}
    detections = read_detections(results_file, sizes)
    if detections.boxes is None:
        raise InputError(f"{results_file} has masks only; drawing needs 'bbox' too")
    for kind, ids, known in (
        ("image", detections.image_ids, sizes),
        ("category", detections.category_ids, by_id),
    ):
        unknown = set(ids.tolist()) - set(known)
        if unknown:
            raise InputError(
                f"{results_file} has detections of {kind} {min(unknown, key=str)}, which "
                f"{dataset_name} does not list: are they another data set's results?"
            )
    paths: List[str] = []
    failed: List[str] = []
    for i in tqdm(range(min(limit, len(records))), "drawing", unit="image"):
        record = records[i]
        try:
            image = _read(record)
        except InputError as error:
            logger.warning("skipped: %s", error)
            failed.append(record["file_name"])
            continue
        annotations = [
            {
                **a,
                "bbox": BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS),
                "category_id": categories[a["category_id"]]["id"],
            }
            for a in record["annotations"]
        ]
        found = detections[np.flatnonzero(detections.image_ids == record["image_id"])].to_dicts()
        picture = draw_comparison(image, annotations, select_readable(found, **selection), by_id)
        paths.append(os.path.join(output, f"{quote(str(record['image_id']), safe='')}.jpg"))
        check_writable(paths[-1])
        cv2.imwrite(paths[-1], picture[..., ::-1])
    if failed:
        total = len(paths) + len(failed)
        raise InputError(f"{len(failed)} of {total} images are skipped: {', '.join(failed)}")
    return paths
