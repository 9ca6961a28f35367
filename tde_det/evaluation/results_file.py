"""Results files in the format of the LVIS challenge, read and written row by row."""

import json
import reprlib
from operator import methodcaller
from pathlib import Path
from typing import Annotated, Any, List, Mapping, Optional, Sequence, Tuple, Union

import msgspec
import numpy as np
import pycocotools.mask as mask_util

from ..data.lvis_json import read_json
from ..data.rle import check_polygons, encode_mask, valid_rle
from ..errors import InputError
from ..gc_pause import gc_paused
from .detections import Detections, as_string

CHUNK_ROWS = 10_000  # detections written at a time

_Natural = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Size = Tuple[int, int]


class _Rle(msgspec.Struct, gc=False):
    size: Tuple[_Natural, _Natural]
    counts: Union[str, List[_Natural]]


class _Row(msgspec.Struct, gc=False):
    image_id: Union[int, float, str]
    category_id: Union[int, float, str]
    score: float
    bbox: Optional[Tuple[float, float, float, float]] = None
    segmentation: Any = None


def parse_detections(
    rows: Sequence[Any], image_sizes: Mapping[Any, _Size], source: str = "results"
) -> Detections:
    """Detections in the format of the LVIS challenge.

    Args:
        rows: dicts, or ``msgspec.Raw``, each with ``image_id``, ``category_id``, ``score`` and
            ``bbox`` or ``segmentation``: RLE, compressed or not, or polygons.
        image_sizes: height and width by image id, which polygons refer to.
        source: what to call the rows in errors.

    Raises:
        InputError: naming the first row that is wrong.
    """
    if not rows:
        return Detections.concatenate([])
    image_ids, category_ids = [], []
    scores, boxes = np.zeros(len(rows)), np.full((len(rows), 4), np.nan)
    masks, sizes = np.full(len(rows), None), np.zeros((len(rows), 2), np.int32)
    has_boxes = False
    for i, row in enumerate(rows):
        if isinstance(row, msgspec.Raw):
            row = msgspec.json.decode(row)
        else:  # its numbers may be NumPy's, and counts bytes, as pycocotools makes them
            row = msgspec.to_builtins(row, builtin_types=(bytes,), enc_hook=methodcaller("tolist"))
        try:
            parsed = msgspec.convert(row, _Row)
            if i == 0:
                has_boxes = parsed.bbox is not None
            if (parsed.bbox is not None) != has_boxes:
                raise ValueError("it has a 'bbox' and the first has none, or the reverse")
            if parsed.bbox is not None:
                boxes[i] = parsed.bbox
            if parsed.segmentation is not None:
                masks[i], sizes[i] = _mask(parsed.segmentation, image_sizes.get(parsed.image_id))
            elif not has_boxes:
                raise ValueError("it has neither 'bbox' nor 'segmentation'")
        except ValueError as error:
            raise InputError(
                f"{source}: number {i} is wrong: {error}: {reprlib.repr(row)}; expected are "
                "image_id, category_id, a number as score, and a bbox of [x, y, width, height] or "
                "a segmentation, RLE with size and counts or polygons"
            ) from error
        image_ids.append(parsed.image_id)
        category_ids.append(parsed.category_id)
        scores[i] = parsed.score
    columns = np.array(image_ids), np.array(category_ids), scores, boxes if has_boxes else None
    return Detections(*columns, *((masks, sizes) if any(masks) else ()))


def _mask(segmentation: Any, image_size: Optional[_Size]) -> Tuple[str, _Size]:
    """Counts of a detection's mask as compressed RLE, and its size. Else a ``ValueError``."""
    if isinstance(segmentation, dict) and "counts" in segmentation:
        segmentation = {**segmentation, "counts": as_string(segmentation["counts"])}
    try:
        mask = msgspec.convert(segmentation, Union[List[List[float]], _Rle])
    except msgspec.ValidationError as error:
        raise ValueError(f"its 'segmentation' is neither RLE nor polygons: {error}") from None
    if isinstance(mask, list):
        check_polygons(mask)
        # An unknown image is found out when the detections are evaluated.
        height, width = image_size or (1, 1)
        empty = np.zeros((height, width), np.uint8, order="F")
        rle = encode_mask(mask, height, width) or mask_util.encode(empty)
        return as_string(rle["counts"]), (height, width)
    counts, (height, width) = mask.counts, mask.size
    if isinstance(counts, list) and sum(counts) == height * width:
        rle = mask_util.frPyObjects({"size": mask.size, "counts": counts}, height, width)
        counts = as_string(rle["counts"])
    if isinstance(counts, list) or not _is_valid(counts, mask.size):
        raise ValueError("its 'segmentation' has counts that are no RLE of its size")
    return counts, mask.size


def _is_valid(counts: str, size: _Size) -> bool:
    """Whether compressed counts are an RLE of this size."""
    try:
        import hotcoco  # 30 times faster than our own check

        hotcoco.mask.area({"size": size, "counts": counts})
        return True
    except ImportError:
        return valid_rle(counts.encode("ascii", "replace"), size[0] * size[1])
    except ValueError:
        return False


def read_detections(path: str, image_sizes: Mapping[Any, _Size]) -> Detections:
    """Read a results file, a json list, as :func:`parse_detections` does, row by row.

    Raises:
        InputError: it is missing, is no json or holds something else; naming the place.
    """
    with gc_paused():
        try:
            rows = msgspec.json.decode(Path(path).read_bytes(), type=List[msgspec.Raw])
        except (OSError, msgspec.DecodeError):  # or it has NaN, which only Python reads
            rows = read_json(path)
        if not isinstance(rows, list):
            raise InputError(f"{path} is no results file: it holds {type(rows).__name__}, no list")
        return parse_detections(rows, image_sizes, path)


def write_detections(detections: Detections, path: str) -> None:
    """Write a results file, a few thousand detections at a time."""
    # msgspec writes null for NaN, json what it reads again.
    columns = [c for c in (detections.scores, detections.boxes) if c is not None]
    finite = all(np.isfinite(column).all() for column in columns)
    with open(path, "wb") as f, gc_paused():
        for start in range(0, len(detections), CHUNK_ROWS):
            rows = detections[start : start + CHUNK_ROWS].to_dicts()
            text = msgspec.json.encode(rows) if finite else json.dumps(rows).encode()
            f.write((b"," if start else b"[") + text[1:-1])
        f.write(b"]" if len(detections) else b"[]")
