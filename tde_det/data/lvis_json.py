"""Read any json in LVIS format, check it and complete it.

Compared with Detectron2's ``load_lvis_json`` this also takes: images without ``coco_url``, any
category ids, categories without ``frequency`` or ``image_count``, and RLE masks.

A file that contradicts itself (an unknown id, a duplicate id, a mask of another size) is an error.
An annotation that no detector can learn from (a polygon with fewer than 3 points, a box without
area) is none; :mod:`.lvis_table` leaves it out.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Dict, Iterator, List, Optional, Tuple, Union

import msgspec
import numpy as np
import pycocotools.mask as mask_util
from typing_extensions import NotRequired, TypedDict

from ..errors import InputError
from ..gc_pause import gc_paused
from .rle import MAX_COORDINATE, check_polygons, encode_mask, valid_rle

_Id = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
_Natural = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Flag = Union[bool, int, None]
# Some files write 640.0.
_Pixels = Annotated[float, msgspec.Meta(gt=0, le=MAX_COORDINATE, multiple_of=1)]
_Pair = Annotated[List[int], msgspec.Meta(min_length=2, max_length=2)]
_Box = Annotated[List[float], msgspec.Meta(min_length=4, max_length=4)]
_UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)


class _Category(TypedDict):
    id: _Id
    name: NotRequired[str]
    # A pattern, not a Literal: its error shows what is known.
    frequency: NotRequired[Annotated[str, msgspec.Meta(pattern="^(r|c|f)$")]]
    image_count: NotRequired[_Natural]
    instance_count: NotRequired[_Natural]


class _Image(TypedDict):
    id: Union[_Id, str]
    height: _Pixels
    width: _Pixels
    file_name: NotRequired[Optional[str]]
    coco_url: NotRequired[Optional[str]]
    neg_category_ids: NotRequired[Optional[List[_Id]]]
    not_exhaustive_category_ids: NotRequired[Optional[List[_Id]]]


class _Annotation(TypedDict):
    id: NotRequired[_Id]
    image_id: Union[_Id, str]
    category_id: _Id
    bbox: NotRequired[Optional[_Box]]
    area: NotRequired[Optional[float]]
    iscrowd: NotRequired[_Flag]
    ignore: NotRequired[_Flag]  # lvis-api's: not evaluated
    # Left as the json's bytes: as Python numbers, LVIS's polygons would take 4 GB.
    segmentation: NotRequired[msgspec.Raw]


class _File(TypedDict):
    categories: Annotated[List[_Category], msgspec.Meta(min_length=1)]
    images: Annotated[List[_Image], msgspec.Meta(min_length=1)]
    annotations: NotRequired[Optional[List[_Annotation]]]


class _Rle(TypedDict):
    size: _Pair
    counts: Union[str, List[_Natural]]


_decode_mask = msgspec.json.Decoder(Union[List[List[float]], _Rle, None]).decode


def _raw_mask(entry: Dict[str, Any]) -> Dict[str, Any]:
    """Give an entry that Python's parser has decoded the type that msgspec gives it."""
    if "segmentation" in entry:
        entry["segmentation"] = msgspec.Raw(json.dumps(entry["segmentation"]))
    return entry


@gc_paused()
def read_json(path: str, kind: Any = Any) -> Any:
    """Parse a json file, as a certain type.

    Raises:
        InputError: it is missing, no json (cut off, for instance), or of another type.
    """
    try:
        content = Path(path).read_bytes()
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.DecodeError:
            # Python writes these two, which JSON does not know.
            if b"NaN" not in content and b"Infinity" not in content:
                raise
            hook = _raw_mask if kind is _File else None
            return msgspec.convert(json.loads(content, object_hook=hook), kind)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except msgspec.ValidationError as error:  # says what is wrong with which entry
        raise InputError(f"{path} is not in LVIS format: {error}") from None
    except (OSError, *_UNREADABLE) as error:
        place = f" after {len(content):,} bytes" if "truncated" in str(error) else ""
        raise InputError(f"{path} cannot be read as json: {error}{place}") from None


class LvisJson:
    """An LVIS-format json, checked. Masks are decoded when an annotation is asked for.

    Attributes:
        categories, images: as in the file, without keys that this package does not use.
        image_index: ``int64[A]``, position in ``images`` of every annotation's image.
        category_ids: ``int64[A]``, of every annotation.

    Raises:
        InputError: naming the file and the first entry that is wrong, also while iterating.
    """

    def __init__(self, path: str):
        self._path = path
        data = read_json(path, _File)
        self.categories, self.images = data["categories"], data["images"]
        self._annotations = data.get("annotations") or []
        for image in self.images:
            if not (image.get("file_name") or image.get("coco_url")):
                raise InputError(f"{path}: image {image['id']} has no file_name or coco_url")
            image.update(height=int(image["height"]), width=int(image["width"]))
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                image[key] = image.get(key) or []
        for i, annotation in enumerate(self._annotations):
            annotation.setdefault("id", i + 1)
        for kind in ("categories", "images", "annotations"):
            ids = [entry["id"] for entry in data.get(kind) or ()]
            if len(set(ids)) < len(ids):
                repeated = Counter(ids).most_common(1)[0][0]
                raise InputError(f"{path}: id {repeated} occurs more than once in {kind!r}")
        if len({type(image["id"]) for image in self.images}) > 1:
            raise InputError(f"{path}: some ids of 'images' are numbers and some are strings")
        positions = {image["id"]: i for i, image in enumerate(self.images)}
        self.image_index = self._column("image_id", positions, "images")
        known = {category["id"]: category["id"] for category in self.categories}
        self.category_ids = self._column("category_id", known, "categories")

    def _column(self, key: str, values: Dict[Any, int], listed_in: str) -> np.ndarray:
        """The value for every annotation's ``key``."""
        try:
            return np.array([values[a[key]] for a in self._annotations], np.int64)
        except KeyError:
            wrong = next(a for a in self._annotations if a[key] not in values)
            place = f"annotation {wrong['id']} has {key} {wrong[key]}"
            raise InputError(f"{self._path}: {place}, which {listed_in!r} does not list") from None

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        """Annotations in the file's order; each has ``id``, ``bbox`` and ``area``."""
        return map(self._annotation, range(len(self._annotations)))

    def by_image(self) -> Iterator[Tuple[Dict[str, Any], List[Dict[str, Any]]]]:
        """Every image, by id, with its annotations, which keep the file's order."""
        order = np.argsort(self.image_index, kind="stable")
        starts = np.searchsorted(self.image_index[order], np.arange(len(self.images) + 1))
        for i in sorted(range(len(self.images)), key=lambda i: self.images[i]["id"]):
            chosen = order[starts[i] : starts[i + 1]].tolist()
            yield self.images[i], [self._annotation(j) for j in chosen]

    def _annotation(self, i: int) -> Dict[str, Any]:
        annotation = {key: v for key, v in self._annotations[i].items() if v is not None}
        image = self.images[self.image_index[i]]
        try:
            mask = _decode_mask(annotation.pop("segmentation", b"null"))
            _complete_annotation(annotation, mask, image["height"], image["width"])
            return annotation
        except InputError as error:
            problem = str(error)
        except _UNREADABLE as error:
            problem = (
                "has a segmentation that is neither RLE nor a list of polygons [x, y, x, y, …] of "
                f"finite numbers: {error}"
            )
        raise InputError(f"{self._path}: annotation {annotation['id']} {problem}")


def read_lvis_json(path: str) -> Dict[str, Any]:
    """All of an :class:`LvisJson`: ``images``, ``categories``, and ``annotations``, maybe empty.

    Annotations lacking an ``id``, ``bbox`` or ``area`` have been given theirs, uncompressed RLE is
    compressed, and images have both lists of the federated annotation.
    """
    source = LvisJson(path)
    return {"images": source.images, "categories": source.categories, "annotations": list(source)}


def _compressed_rle(mask: Dict[str, Any], height: int, width: int) -> Dict[str, Any]:
    """Check an RLE, and compress it if it is not."""
    if mask["size"] != [height, width]:
        raise InputError(f"has a mask of size {mask['size']} in an image of {[height, width]}")
    counts, pixels = mask["counts"], height * width
    if isinstance(counts, str):
        is_valid = valid_rle(counts.encode("ascii", "replace"), pixels)
    else:
        is_valid = sum(counts) == pixels
    if not is_valid:
        raise InputError(f"has an RLE whose counts do not add up to {pixels}")
    if isinstance(counts, str):
        return mask
    return {**mask, "counts": mask_util.frPyObjects(mask, height, width)["counts"].decode()}


def _complete_annotation(annotation: Dict[str, Any], mask: Any, height: int, width: int) -> None:
    """Give an annotation its mask, with the RLE compressed, and what it lacks."""
    if isinstance(mask, dict):
        mask = _compressed_rle(mask, height, width)
    if mask is not None:
        annotation["segmentation"] = mask
    if not mask and "bbox" in annotation:
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    if "bbox" in annotation and "area" in annotation:
        return
    if not mask:
        raise InputError("has neither bbox nor segmentation")
    check_polygons(mask)
    rle = encode_mask(mask, height, width)
    annotation.setdefault("bbox", mask_util.toBbox(rle).tolist() if rle else [0.0] * 4)
    annotation.setdefault("area", float(mask_util.area(rle)) if rle else 0.0)
