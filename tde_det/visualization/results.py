"""Draw a whole results file."""

import os
from collections import defaultdict
from typing import Any, Dict, List

import cv2
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from tqdm import tqdm

from ..data.categories import categories_of
from ..data.loader import registered_dataset
from ..data.lvis_json import read_json
from ..errors import InputError
from .draw import draw_comparison
from .select import select_readable


def read_results(path: str) -> Dict[Any, List[Dict[str, Any]]]:
    """Detections of a file in the LVIS results format, by image id.

    Raises:
        InputError: the file is missing or in another format.
    """
    results = read_json(path)
    need = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(results, list) or any(not need <= set(r) for r in results):
        raise InputError(f"{path} is not a list of detections with {', '.join(sorted(need))}")
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    return by_image


def draw_results(
    dataset_name: str,
    results_file: str,
    output: str,
    *,
    limit: int = 50,
    score_threshold: float = 0.3,
    max_per_class: int = 5,
    duplicate_iou: float = 0.7,
) -> List[str]:
    """Save predictions beside ground truth, one picture an image.

    Args:
        dataset_name: registered with Detectron2.
        results_file: ``lvis_instances_results.json``.
        output: folder for the pictures, ``<image id>.jpg``.
        limit: images drawn at most, in the data set's order.
        score_threshold, max_per_class, duplicate_iou: see :func:`select_readable`.

    Returns:
        the pictures' paths.

    Raises:
        InputError: the results cannot be read or are another data set's.
    """
    detections = read_results(results_file)
    records = registered_dataset(dataset_name)
    categories = categories_of(dataset_name)
    by_id = {category["id"]: category for category in categories}
    strange_images = set(detections) - {record["image_id"] for record in records}
    labels = {d["category_id"] for found in detections.values() for d in found}
    for kind, strange in (("image", strange_images), ("category", labels - set(by_id))):
        if strange:
            raise InputError(
                f"{results_file} has detections of {kind} {min(strange)}, which {dataset_name} "
                "does not list: are they another data set's results?"
            )
    os.makedirs(output, exist_ok=True)
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
        selected = select_readable(
            detections[record["image_id"]], score_threshold, max_per_class, duplicate_iou
        )
        image = read_image(record["file_name"], "RGB")
        picture = draw_comparison(image, annotations, selected, by_id)
        paths.append(os.path.join(output, f"{record['image_id']}.jpg"))
        cv2.imwrite(paths[-1], picture[..., ::-1])
    return paths
