"""Pictures, and files with the objects and detections that are drawn over them.

The page loads a file of :data:`SHARD` images when it first shows one of them. Coordinates are
pixels of a canvas with a long side of :data:`LONG_SIDE`, to which the picture is stretched.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
from PIL import Image, ImageOps

from ..errors import InputError
from ..evaluation import Detections
from ..evaluation.tide import CORRECT, IGNORED, Verdicts
from .dataset import DataSet

SHARD = 25
LONG_SIDE, THUMBNAIL = 800, 360  # pixels; smaller images stay as they are
_TOLERANCE = 0.8  # of the canvas, or half a pixel of the image: how far an outline may be off
_QUALITY = 80  # of a JPEG


class Shown(NamedTuple):
    """Which detections of a run are drawn.

    Attributes:
        min_score: the lowest score.
        per_image: the most of an image, the best ones.
    """

    min_score: float = 0.05
    per_image: int = 40


def outline(rle: Dict[str, Any], scale: float) -> str:
    """A mask as the path of an SVG, holes included (fill rule evenodd); "" for an empty one."""
    x, y, w, h = (int(v) for v in mask_util.toBbox(rle))
    mask = mask_util.decode(rle)[y : y + h, x : x + w]
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:  # of the pixels' centres
        points = (contour.reshape(-1, 1, 2) + np.array([x + 0.5, y + 0.5])) * scale
        points = cv2.approxPolyDP(points.astype(np.float32), max(_TOLERANCE, scale / 2), True)
        numbers = points.reshape(-1, 2).round().astype(int).tolist()
        if len(numbers) > 2:
            parts.append("M" + "L".join(f"{px} {py}" for px, py in numbers) + "Z")
    return "".join(parts)


def _scale(image: Dict[str, Any]) -> float:
    return LONG_SIDE / max(image["width"], image["height"])


def _box(box: Sequence[float], scale: float) -> List[int]:
    return [round(v * scale) for v in box]


def shown_rows(verdicts: Verdicts, shown: Shown) -> np.ndarray:
    """Positions in ``verdicts`` of the detections that are drawn; they are sorted by score."""
    starts = np.searchsorted(verdicts.images, verdicts.images)
    rank = np.arange(len(starts)) - starts
    return np.flatnonzero((verdicts.scores >= shown.min_score) & (rank < shown.per_image))


def index_entries(
    data: DataSet, verdicts: Sequence[Verdicts], rows: Sequence[np.ndarray]
) -> List[Any]:
    """By image, what the page filters by: ``[id, width, height, [entry of a class, …]]``.

    An entry is ``[class, objects, then per run: found, false, errors]``: how many of the class's
    objects the shown detections match, how many shown detections are errors, and which kinds of
    errors there are, as bits; missed objects are the sixth.

    Args:
        verdicts: of every run.
        rows: from :func:`shown_rows`, of every run.
    """
    empty = [0, 0, 0] * len(verdicts)
    images: List[Dict[int, List[int]]] = [{} for _ in data.ground_truth["images"]]
    some = verdicts[0]
    for image, class_number in zip(
        some.object_images[some.counts].tolist(), some.object_classes[some.counts].tolist()
    ):
        images[image].setdefault(class_number, [0, *empty])[0] += 1
    for number, (v, chosen) in enumerate(zip(verdicts, rows)):
        columns = (v.images[chosen], v.classes[chosen], v.verdicts[chosen])
        for image, class_number, verdict in zip(*(column.tolist() for column in columns)):
            if verdict == IGNORED:
                continue
            entry = images[image].setdefault(class_number, [0, *empty])
            if verdict == CORRECT:
                entry[1 + 3 * number] += 1
            else:
                entry[2 + 3 * number] += 1
                entry[3 + 3 * number] |= 1 << verdict
        for image, class_number in zip(
            v.object_images[v.missed].tolist(), v.object_classes[v.missed].tolist()
        ):
            images[image][class_number][3 + 3 * number] |= 1 << 5
    return [
        [
            str(image["id"]),
            round(image["width"] * _scale(image)),
            round(image["height"] * _scale(image)),
            [[class_number, *entry] for class_number, entry in sorted(found.items())],
        ]
        for image, found in zip(data.ground_truth["images"], images)
    ]


def write_shards(
    folder: str,
    data: DataSet,
    detections: Sequence[Detections],
    verdicts: Sequence[Verdicts],
    rows: Sequence[np.ndarray],
) -> None:
    """Write ``shard-0.js`` and so on: by image ``[objects, [detections of a run, …]]``.

    An object is ``[class, [x, y, w, h], outline, [called, … by run]]``, a detection
    ``[class, [x, y, w, h], outline, score, verdict]``.
    """
    images = data.ground_truth["images"]
    annotations = data.ground_truth["annotations"]
    masks = {a["id"]: a["segmentation"] for a in (data.encoded or {}).get("annotations", ())}
    some = verdicts[0]
    numbers = np.arange(len(images) + 1)
    object_ends = np.searchsorted(some.object_images, numbers)
    ends = [np.searchsorted(v.images[chosen], numbers) for v, chosen in zip(verdicts, rows)]
    for first in range(0, len(images), SHARD):
        shard = []
        for i in range(first, min(first + SHARD, len(images))):
            scale, objects = _scale(images[i]), []
            for g in range(object_ends[i], object_ends[i + 1]):
                annotation = annotations[some.objects[g]]
                rle = masks.get(annotation["id"])
                path = outline(rle, scale) if rle else ""
                called = [int(v.called[g]) for v in verdicts]
                box = _box(annotation["bbox"], scale)
                objects.append([int(some.object_classes[g]), box, path, called])
            found = [
                [_detection(d, v, k, scale) for k in chosen[e[i] : e[i + 1]]]
                for d, v, chosen, e in zip(detections, verdicts, rows, ends)
            ]
            shard.append([objects, found])
        text = json.dumps(shard, separators=(",", ":"))
        with open(os.path.join(folder, f"shard-{first // SHARD}.js"), "w") as f:
            f.write(f"loadedShard({first // SHARD},{text});\n")


def _detection(detections: Detections, verdicts: Verdicts, k: int, scale: float) -> List[Any]:
    row = verdicts.rows[k]
    path = ""
    if detections.masks is not None and detections.masks[row] is not None:
        assert detections.mask_sizes is not None
        rle = {"size": detections.mask_sizes[row].tolist(), "counts": detections.masks[row]}
        path = outline(rle, scale)
    assert detections.boxes is not None
    box = _box(detections.boxes[row], scale)
    score = round(float(verdicts.scores[k]), 3)
    return [int(verdicts.classes[k]), box, path, score, int(verdicts.verdicts[k])]


def write_pictures(folder: str, data: DataSet) -> None:
    """Write ``images/0.jpg`` and ``thumbnails/0.jpg`` and so on, in the order of the images.

    Raises:
        InputError: an image cannot be read.
    """
    for name in ("images", "thumbnails"):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
    jobs = [(folder, i, path) for i, path in enumerate(data.files)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problem: Optional[str] = next(filter(None, pool.map(_write_picture, jobs)), None)
    if problem:
        raise InputError(problem)


def _write_picture(job: Tuple[str, int, str]) -> Optional[str]:
    """Write both pictures of an image; what is wrong with its file, if something is."""
    folder, number, path = job
    try:
        with Image.open(path) as image:
            image.draft("RGB", (LONG_SIDE, LONG_SIDE))  # decodes a large JPEG at a part of its size
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow's decoders raise many types
        return f"{path} cannot be read: {error}"
    for name, side in (("images", LONG_SIDE), ("thumbnails", THUMBNAIL)):
        picture.thumbnail((side, side))
        file = os.path.join(folder, name, f"{number}.jpg")
        picture.save(file, quality=_QUALITY, optimize=name == "images")
    return None
