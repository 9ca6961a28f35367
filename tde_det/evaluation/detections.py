"""Detections as columns: a million of them are a few arrays, not a million dicts."""

import dataclasses
import itertools
import json
import math
import re
import reprlib
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import msgspec
import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode, Instances

from ..data.garbage import garbage_collection_paused
from ..data.lvis_json import read_json
from ..data.masks import check_polygons, encode_mask, valid_rles
from ..errors import InputError

CHUNK_BYTES = 1 << 23  # of a results file, parsed at a time
CHUNK_ROWS = 10_000  # detections written at a time
# Up to the last place between two detections. RLE strings hold neither braces nor commas.
_WHOLE_ROWS = re.compile(rb"(.*\})\s*,\s*(?=\{)", re.DOTALL)


@dataclasses.dataclass
class Detections:
    """N detections, in the order of their results file.

    Attributes:
        image_ids: ``[N]``, as in the annotations.
        category_ids: ``[N]``, as in the annotations.
        scores: ``[N]``
        boxes: ``[N, 4]``, x, y, width and height in pixels; None if there are none.
        masks: the counts of N compressed RLEs; None, whole or for a detection, if there are none.
        mask_sizes: ``[N, 2]``, height and width that the masks are of; None without masks.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: Optional[np.ndarray] = None
    masks: Optional[List[Optional[bytes]]] = None
    mask_sizes: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Any) -> "Detections":
        """The detections at a slice or an array of indices."""
        masks = self.masks
        if masks is not None:
            masks = masks[rows] if isinstance(rows, slice) else [masks[i] for i in rows.tolist()]
        return Detections(
            self.image_ids[rows],
            self.category_ids[rows],
            self.scores[rows],
            None if self.boxes is None else self.boxes[rows],
            masks,
            None if self.mask_sizes is None else self.mask_sizes[rows],
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Detections"]) -> "Detections":
        """Join detections; of parts without masks, the masks are None.

        Raises:
            InputError: some have boxes and others none.
        """
        parts = [part for part in parts if len(part)]
        if not parts:
            none = np.zeros(0, np.int64)
            return cls(none, none, np.zeros(0), np.zeros((0, 4)), [], np.zeros((0, 2), np.int32))
        without = next((part for part in parts if part.boxes is None), None)
        if without and any(part.boxes is not None for part in parts):
            raise InputError(
                f"A detection in image {without.image_ids[0]} has no 'bbox', which others have"
            )
        masked = any(part.masks is not None for part in parts)
        return cls(
            np.concatenate([part.image_ids for part in parts]),
            np.concatenate([part.category_ids for part in parts]),
            np.concatenate([part.scores for part in parts]),
            None if without else np.concatenate([part.boxes for part in parts]),
            [m for part in parts for m in part.masks or [None] * len(part)] if masked else None,
            np.concatenate(
                [
                    np.zeros((len(part), 2), np.int32) if part.masks is None else part.mask_sizes
                    for part in parts
                ]
            )
            if masked
            else None,
        )

    @classmethod
    def from_instances(cls, instances: Instances, image_id: Any) -> "Detections":
        """What a model outputs for an image, with classes for category ids.

        Masks come from ``pred_masks`` (``bool[N, H, W]``) or, if there, ``pred_masks_rle`` (N
        dicts ``{"size": [H, W], "counts": str}``). Values are those of Detectron2's
        ``instances_to_coco_json``.
        """
        instances = instances.to("cpu")
        boxes = instances.pred_boxes.tensor.numpy()
        rles: Optional[List[Dict[str, Any]]] = None
        if instances.has("pred_masks_rle"):
            rles = instances.pred_masks_rle
        elif instances.has("pred_masks"):
            rles = [
                mask_util.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
                for mask in instances.pred_masks
            ]
        masks: Optional[List[Optional[bytes]]] = None
        sizes = None
        if rles is not None:
            masks = [_as_bytes(rle["counts"]) for rle in rles]
            sizes = np.array([rle["size"] for rle in rles], np.int32).reshape(-1, 2)
        return cls(
            np.full(len(instances), image_id),
            instances.pred_classes.numpy(),
            instances.scores.numpy(),
            BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS),
            masks,
            sizes,
        )

    @classmethod
    def from_dicts(
        cls,
        rows: Sequence[Mapping[str, Any]],
        image_sizes: Mapping[Any, Tuple[int, int]],
        source: str = "results",
        start: int = 0,
    ) -> "Detections":
        """Detections in the format of the LVIS challenge.

        Args:
            rows: each with ``image_id``, ``category_id``, ``score`` and ``bbox`` or
                ``segmentation``: RLE, compressed or not, or polygons.
            image_sizes: height and width by image id, which polygons refer to.
            source: what to call the rows in errors.
            start: number of the first row.

        Raises:
            InputError: naming the first row that is wrong.
        """
        if not rows:
            return cls.concatenate([])
        has_box = [isinstance(row, Mapping) and "bbox" in row for row in rows]
        if len(set(has_box)) > 1:
            i = has_box.index(not has_box[0])
            has = "a 'bbox'" if has_box[i] else "no 'bbox'"
            raise InputError(f"{source}: number {start + i} has {has}, unlike those before it")
        field = "image_id"
        try:
            image_ids = _ids([row["image_id"] for row in rows])
            field = "category_id"
            category_ids = _ids([row["category_id"] for row in rows])
            field = "score"
            scores = _floats([row["score"] for row in rows])
            boxes = sizes = None
            masks: Optional[List[Optional[bytes]]] = None
            field = "bbox"
            if has_box[0]:
                lists = [row["bbox"] for row in rows]
                if set(map(len, lists)) != {4}:
                    raise ValueError("it is not [x, y, width, height]")
                boxes = _floats(list(itertools.chain.from_iterable(lists))).reshape(-1, 4)
            field = "segmentation"
            if any("segmentation" in row for row in rows):
                masks, sizes = _masks(rows, image_sizes)
            elif boxes is None:
                raise ValueError("neither it nor a bbox is there")
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            if len(rows) > 1:  # look for the one
                for i, row in enumerate(rows):
                    cls.from_dicts([row], image_sizes, source, start + i)
            reason = str(error) if isinstance(error, ValueError) else ""
            raise InputError(
                f"{source}: number {start} is wrong in {field!r}{reason and f' ({reason})'}: "
                f"{reprlib.repr(rows[0])}; expected are image_id, category_id, a number as score, "
                "and a bbox of [x, y, width, height] or a segmentation, RLE with size and counts "
                "or polygons"
            ) from error
        return cls(image_ids, category_ids, scores, boxes, masks, sizes)

    @classmethod
    def from_json(cls, path: str, image_sizes: Mapping[Any, Tuple[int, int]]) -> "Detections":
        """Read a results file piece by piece, so that memory holds the columns alone.

        Args:
            path: a json list of detections.
            image_sizes: see :meth:`from_dicts`.

        Raises:
            InputError: it is missing, is no json or holds something else; naming the place.
        """
        try:
            with garbage_collection_paused():
                parts = [
                    cls.from_dicts(rows, image_sizes, path, start)
                    for start, rows in _read_pieces(path)
                ]
        except (OSError, msgspec.DecodeError):
            # Missing, cut off, or in a layout that cannot be cut into pieces.
            rows = read_json(path)
            if not isinstance(rows, list):
                raise InputError(
                    f"{path} is no results file: expected a list, got a {type(rows).__name__}"
                ) from None
            parts = [cls.from_dicts(rows, image_sizes, path)]
        return cls.concatenate(parts)

    def rles(self) -> List[Any]:
        """The masks as dicts, as pycocotools takes them."""
        assert self.masks is not None and self.mask_sizes is not None
        return [{"size": s, "counts": c} for s, c in zip(self.mask_sizes.tolist(), self.masks)]

    def to_dicts(self) -> List[Dict[str, Any]]:
        """In the format of the LVIS challenge."""
        columns: List[Tuple[str, Sequence[Any]]] = [
            ("image_id", self.image_ids.tolist()),
            ("category_id", self.category_ids.tolist()),
        ]
        if self.boxes is not None:
            columns.append(("bbox", self.boxes.tolist()))
        columns.append(("score", self.scores.tolist()))
        rows = [dict(zip([k for k, _ in columns], r)) for r in zip(*(v for _, v in columns))]
        if self.masks is not None:
            for row, rle in zip(rows, self.rles()):
                if rle["counts"] is not None:
                    counts = rle["counts"].decode()
                    row["segmentation"] = {"size": rle["size"], "counts": counts}
        return rows

    def to_json(self, path: str) -> None:
        """Write a results file, a few thousand detections at a time."""
        with open(path, "wb") as f, garbage_collection_paused():
            f.write(b"[")
            for start in range(0, len(self), CHUNK_ROWS):
                part = self[start : start + CHUNK_ROWS]
                rows = part.to_dicts()
                # msgspec writes null for NaN, json what it reads again.
                finite = np.isfinite(part.scores).all() and (
                    part.boxes is None or np.isfinite(part.boxes).all()
                )
                text = msgspec.json.encode(rows) if finite else json.dumps(rows).encode()
                f.write((b"," if start else b"") + text[1:-1])
            f.write(b"]")


def _read_pieces(path: str) -> Iterator[Tuple[int, List[Any]]]:
    """Consecutive parts of a json list, with the number of each part's first item."""
    count = 0
    with open(path, "rb") as f:
        rest = f.read(CHUNK_BYTES).lstrip()
        if not rest.startswith(b"["):
            raise msgspec.DecodeError("no list")
        rest = rest[1:]
        while data := f.read(CHUNK_BYTES):
            rest += data
            whole = _WHOLE_ROWS.match(rest)
            if whole:
                rows = msgspec.json.decode(b"[" + whole[1] + b"]")
                yield count, rows
                count += len(rows)
                rest = rest[whole.end() :]
        yield count, msgspec.json.decode(b"[" + rest)


def _as_bytes(counts: Any) -> bytes:
    return counts.encode() if isinstance(counts, str) else bytes(counts)


def _ids(values: List[Any]) -> np.ndarray:
    """Ids as int64 or, where they are no such numbers, as they are."""
    _check_types(values, (int, float, str, np.number))
    try:
        return np.array(values, np.int64 if set(map(type, values)) == {int} else object)
    except OverflowError:
        return np.array(values, object)


def _floats(values: List[Any]) -> np.ndarray:
    _check_types(values, (int, float, np.number))
    return np.array(values, np.float64)


def _check_types(values: List[Any], types: Tuple[type, ...]) -> None:
    if not all(issubclass(kind, types) and kind is not bool for kind in set(map(type, values))):
        raise TypeError


def _masks(
    rows: Sequence[Mapping[str, Any]], image_sizes: Mapping[Any, Tuple[int, int]]
) -> Tuple[List[Optional[bytes]], np.ndarray]:
    """Counts, None where a detection has no mask, and sizes of the detections' masks.

    Raises:
        ValueError: one of them is no mask.
    """
    rles = [_compress(row, image_sizes) for row in rows]
    counts = [_as_bytes(rle["counts"]) if rle else None for rle in rles]
    sizes = np.array([rle["size"] if rle else (0, 0) for rle in rles])
    if sizes.shape != (len(rows), 2) or sizes.dtype.kind not in "iu" or (sizes < 0).any():
        raise ValueError("its size is not [height, width]")
    given = [i for i, count in enumerate(counts) if count is not None]
    try:
        import hotcoco

        hotcoco.mask.area([{"size": sizes[i].tolist(), "counts": counts[i]} for i in given])
    except ImportError:
        if not valid_rles([counts[i] or b"" for i in given], sizes[given].prod(axis=1)).all():
            raise ValueError("its counts are no RLE of its size") from None
    return counts, sizes.astype(np.int32)


def _compress(
    row: Mapping[str, Any], image_sizes: Mapping[Any, Tuple[int, int]]
) -> Optional[Dict[str, Any]]:
    """A detection's mask as compressed RLE, None if it has none."""
    mask = row.get("segmentation")
    if mask is None:
        return None
    if isinstance(mask, dict):
        if isinstance(mask["counts"], list):
            if not all(type(n) is int and n >= 0 for n in mask["counts"]) or (
                sum(mask["counts"]) != math.prod(mask["size"])
            ):
                raise ValueError("its counts are no RLE of its size")
            return mask_util.frPyObjects(mask, *mask["size"])
        return mask
    if not isinstance(mask, list):
        raise ValueError("it is neither RLE nor polygons")
    check_polygons(mask)
    # An unknown image is found out when the detections are evaluated.
    height, width = image_sizes.get(row["image_id"], (1, 1))
    return encode_mask(mask, height, width) or mask_util.encode(
        np.zeros((height, width), np.uint8, order="F")
    )
