"""Draw the detections of a results file, one picture an image."""

import os
from typing import Any, List

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from tqdm import tqdm

from ..data.categories import categories_of
from ..data.registered import registered_dataset
from ..errors import InputError
from ..evaluation import read_detections
from ..output_files import check_writable
from .draw import draw_comparison
from .select import select_readable


def draw_results(
    dataset_name: str, results_file: str, output: str, *, limit: int = 50, **selection: Any
) -> List[str]:
    """Save predictions beside ground truth, one picture an image.

    Args:
        dataset_name: registered with Detectron2.
        results_file: ``lvis_instances_results.json``.
        output: folder for the pictures, ``<image id>.jpg``.
        limit: images drawn at most, in the data set's order.
        selection: options of :func:`select_readable`.

    Returns:
        the pictures' paths.

    Raises:
        InputError: the results cannot be read, have no boxes or are another data set's.
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
    paths = []
    for i in tqdm(range(min(limit, len(records))), "drawing", unit="image"):
        record = records[i]
        annotations = [
            {
                **a,
                "bbox": BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS),
                "category_id": categories[a["category_id"]]["id"],
            }
            for a in record["annotations"]
        ]
        found = detections[np.flatnonzero(detections.image_ids == record["image_id"])].to_dicts()
        image = read_image(record["file_name"], "RGB")
        picture = draw_comparison(image, annotations, select_readable(found, **selection), by_id)
        paths.append(os.path.join(output, f"{record['image_id']}.jpg"))
        check_writable(paths[-1])
        cv2.imwrite(paths[-1], picture[..., ::-1])
    return paths
