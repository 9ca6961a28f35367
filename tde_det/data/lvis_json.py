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
import re
import reprlib
from collections import Counter
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Literal,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import msgspec
import numpy as np
import pycocotools.mask as mask_util

from ..errors import InputError
from .masks import check_polygons, encode_mask, valid_rles

logger = logging.getLogger(__name__)

_Id = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
_Natural = Annotated[int, msgspec.Meta(ge=0)]
_Pair = Annotated[List[int], msgspec.Meta(min_length=2, max_length=2)]
_Box = Annotated[List[float], msgspec.Meta(min_length=4, max_length=4)]


class _Category(msgspec.Struct):
    id: _Id
    name: str = ""
    frequency: Literal["r", "c", "f"] = "r"
    image_count: _Natural = 0


class _Image(msgspec.Struct):
    id: Union[_Id, str]
    height: float
    width: float
    file_name: Optional[str] = None
    coco_url: Optional[str] = None
    neg_category_ids: Optional[List[_Id]] = None
    not_exhaustive_category_ids: Optional[List[_Id]] = None


class _Rle(msgspec.Struct):
    size: _Pair
    counts: Union[str, List[_Natural]]


class _Annotation(msgspec.Struct):
    id: _Id
    image_id: Union[_Id, str]
    category_id: _Id
    bbox: Optional[_Box] = None
    area: Optional[float] = None
    segmentation: Union[List[List[float]], _Rle, None] = None
    iscrowd: Union[bool, int, None] = None


class _LazyFile(msgspec.Struct):
    """The parts of a json that matter, its annotations left as the bytes they are."""

    images: Any = None
    categories: Any = None
    annotations: Optional[List[msgspec.Raw]] = None


class _EagerFile(_LazyFile):
    annotations: Optional[List[Any]] = None  # type: ignore[assignment]


class _AnnotationHead(msgspec.Struct):
    image_id: Union[_Id, str]
    id: Optional[_Id] = None


_UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
_decode_bytes = msgspec.json.Decoder().decode
_TYPES = {"categories": _Category, "images": _Image, "annotations": _Annotation}


def frequency_of(image_count: int) -> str:
    """LVIS's group of a class by its training images: ``"r"`` ≤ 10 < ``"c"`` ≤ 100 < ``"f"``."""
    return "r" if image_count <= 10 else "c" if image_count <= 100 else "f"


def _decode(path: str, lazy: Any = Any, eager: Any = Any) -> Any:
    """Parse a json file as the type ``lazy``, or ``eager`` where it needs Python's own parser."""
    try:
        content = Path(path).read_bytes()
        try:
            return msgspec.json.decode(content, type=lazy)
        except msgspec.DecodeError:
            # Python writes these two, which JSON does not know.
            if b"NaN" not in content and b"Infinity" not in content:
                raise
            return msgspec.convert(json.loads(content), eager)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except msgspec.ValidationError as error:
        raise InputError(f"{path} is not in the expected format: {error}") from None
    except (OSError, *_UNREADABLE) as error:
        place = f" after {len(content):,} bytes" if "truncated" in str(error) else ""
        raise InputError(f"{path} cannot be read as json: {error}{place}") from None


def read_json(path: str) -> Any:
    """Parse a json file.

    Raises:
        InputError: it is missing or is no json (cut off, for instance).
    """
    return _decode(path)


class LvisJson:
    """An LVIS-format json, checked; annotations are decoded when they are asked for.

    In memory it takes little more than the file's size, where all of its numbers as Python objects
    take eight times that.

    Attributes:
        path: of the json.
        images, categories: as in the file, completed.

    Raises:
        InputError: naming the file and the first entry that is wrong, also while iterating.
    """

    def __init__(self, path: str):
        self.path = path
        content = _decode(path, _LazyFile, _EagerFile)
        self.categories = self._entries("categories", content.categories)
        self.images = self._entries("images", content.images)
        self._annotations: Sequence[Any] = content.annotations or []
        for image in self.images:
            self._complete_image(image)
        if len({type(image["id"]) for image in self.images}) > 1:
            raise InputError(f"{path}: some ids of 'images' are numbers and some are strings")
        self._category_ids = {category["id"] for category in self.categories}
        self._index_annotations()

    def __len__(self) -> int:
        return len(self._annotations)

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        """Annotations in the file's order; each has ``id``, ``bbox`` and ``area``."""
        return map(self._annotation, range(len(self)))

    def by_image(self) -> Iterator[Tuple[Dict[str, Any], List[Dict[str, Any]]]]:
        """Every image, by id, with its annotations, which keep the file's order."""
        order = np.argsort(self._image_index, kind="stable")
        starts = np.searchsorted(self._image_index[order], np.arange(len(self.images) + 1))
        for i in sorted(range(len(self.images)), key=lambda i: self.images[i]["id"]):
            own = order[starts[i] : starts[i + 1]].tolist()
            yield self.images[i], [self._annotation(j) for j in own]

    def _entries(self, kind: str, entries: Any) -> List[Dict[str, Any]]:
        """Check types and ids of ``"categories"`` or ``"images"``."""
        if not isinstance(entries, list) or not entries:
            raise InputError(
                f"{self.path} is not in LVIS format: it has no list {kind!r}, or an empty one"
            )
        for i, entry in enumerate(entries):
            self._check_types(entry, kind, i)
        self._check_unique((entry["id"] for entry in entries), kind)
        return entries

    def _check_unique(self, ids: Iterable[Any], kind: str) -> None:
        repeated = [k for k, n in Counter(ids).items() if n > 1]
        if repeated:
            raise InputError(f"{self.path}: id {repeated[0]} occurs more than once in {kind!r}")

    def _check_types(self, entry: Any, kind: str, i: int) -> None:
        """Compare an entry with its type in ``_TYPES``."""
        try:
            msgspec.convert(entry, _TYPES[kind])
            return
        except msgspec.ValidationError as error:
            problem = str(error)
        number = f"{self.path}: number {i} of {kind!r}"
        if not isinstance(entry, dict):
            raise InputError(f"{number} is {reprlib.repr(entry)}, no object")
        if "id" not in entry:
            raise InputError(f"{number} has no 'id'")
        singular = {"categories": "category", "images": "image", "annotations": "annotation"}
        where = f"{self.path}: {singular[kind]} {entry['id']}"
        missing = re.search(r"missing required field `(\w+)`$", problem)
        if missing:
            raise InputError(f"{where} has no {missing[1]}")
        place = re.search(r"\$\.(\w+)", problem)
        key = place[1] if place else ""
        found = {
            "id": "an id that is no whole number",
            "segmentation": "a segmentation that is neither RLE nor a list of [x, y, x, y, …]",
        }.get(key, f"{key} {reprlib.repr(entry.get(key))}")
        raise InputError(f"{where} has {found}: {problem}")

    def _complete_image(self, image: Dict[str, Any]) -> None:
        where = f"{self.path}: image {image['id']}"
        for key in ("height", "width"):
            if not (0 < image[key] < math.inf and image[key] == int(image[key])):
                raise InputError(f"{where} has {key} {image[key]}, expected whole pixels")
            image[key] = int(image[key])
        if not (image.get("file_name") or image.get("coco_url")):
            raise InputError(f"{where} has no file_name or coco_url")
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = image.get(key) or []

    def _index_annotations(self) -> None:
        """Find every annotation's image, without decoding the rest of it."""
        index = {image["id"]: i for i, image in enumerate(self.images)}
        decoder = msgspec.json.Decoder(_AnnotationHead)
        self._image_index = np.zeros(len(self), np.int64)
        ids = []
        for i, entry in enumerate(self._annotations):
            try:
                if isinstance(entry, msgspec.Raw):
                    head = decoder.decode(entry)
                else:
                    head = msgspec.convert(entry, _AnnotationHead)
                self._image_index[i] = index[head.image_id]
            except _UNREADABLE:
                self._annotation(i)
                raise
            except KeyError:
                raise InputError(
                    f"{self.path}: annotation {i + 1 if head.id is None else head.id} has image_id "
                    f"{head.image_id}, which 'images' does not list"
                ) from None
            ids.append(i + 1 if head.id is None else head.id)
        self._check_unique(ids, "annotations")

    def _annotation(self, i: int) -> Dict[str, Any]:
        entry = annotation = self._annotations[i]
        try:
            if isinstance(entry, msgspec.Raw):
                annotation = _decode_bytes(entry)
        except _UNREADABLE as error:
            where = f"{self.path}: number {i} of 'annotations'"
            raise InputError(f"{where} cannot be read: {error}") from None
        if isinstance(annotation, dict):
            annotation.setdefault("id", i + 1)
        self._check_types(annotation, "annotations", i)
        try:
            if annotation["category_id"] not in self._category_ids:
                raise InputError(
                    f"has category_id {annotation['category_id']}, which 'categories' does not list"
                )
            if entry is annotation:  # as JSON proper, it could not hold any other numbers
                check_polygons(annotation.get("segmentation"))
            _complete_annotation(annotation, self.images[self._image_index[i]])
        except InputError as error:
            raise InputError(f"{self.path}: annotation {annotation['id']} {error}") from None
        return annotation


def read_lvis_json(path: str) -> Dict[str, Any]:
    """Read an LVIS-format json and check that it holds together.

    Returns:
        ``images``, ``categories`` and ``annotations``; the latter is empty for a test set without
        any, annotations lacking an ``id``, ``bbox`` or ``area`` have been given theirs,
        uncompressed RLE is compressed, and images have both lists of the federated annotation.

    Raises:
        InputError: naming the file and the first entry that is wrong.
    """
    source = LvisJson(path)
    return {
        "images": source.images,
        "categories": source.categories,
        "annotations": list(source),
    }


def _complete_rle(annotation: Dict, height: int, width: int) -> None:
    """Check an annotation's RLE and compress it, in place."""
    mask = annotation["segmentation"]
    if mask["size"] != [height, width]:
        raise InputError(f"has a mask of size {mask['size']} in an image of {[height, width]}")
    counts = mask["counts"]
    if isinstance(counts, str):
        valid = valid_rles([counts.encode("ascii", "replace")], [height * width])[0]
    else:
        valid = min(counts, default=0) >= 0 and sum(counts) == height * width
    if not valid:
        raise InputError(f"has an RLE whose counts do not add up to {height * width}")
    if not isinstance(counts, str):
        mask = mask_util.frPyObjects(mask, height, width)
        annotation["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode()}


def _complete_annotation(annotation: Dict, image: Dict) -> None:
    """Give an annotation what it lacks, in place, and compress its RLE."""
    mask = annotation.get("segmentation")
    height, width = image["height"], image["width"]
    if isinstance(mask, dict):
        _complete_rle(annotation, height, width)
    for key in ("bbox", "area"):
        if annotation.get(key) is None:
            annotation.pop(key, None)
    if not mask and "bbox" in annotation:
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    if "bbox" not in annotation or "area" not in annotation:
        if not mask:
            raise InputError("has neither bbox nor segmentation")
        rle = encode_mask(annotation["segmentation"], height, width)
        if rle is None:
            annotation.setdefault("bbox", [0.0, 0.0, 0.0, 0.0])
            annotation.setdefault("area", 0.0)
        else:
            annotation.setdefault("bbox", mask_util.toBbox(rle).tolist())
            annotation.setdefault("area", float(mask_util.area(rle)))


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
