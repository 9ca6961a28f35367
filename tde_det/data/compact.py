"""LVIS-format data sets in one read-only file that all workers and ranks share.

Detectron2 keeps a data set as Python dicts, parsed and pickled anew by every process. Here they are
packed (MessagePack) one after the other into a file that is made once for a json and then mapped
into memory: a process holds the images it has just read, the operating system's cache the rest.

The file: the packed dicts, polygons apart as one array of coordinates for each image; an index of
arrays (where each dict ends, the class of every annotation); the lengths and checksum of both.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import logging
import mmap
import os
import struct
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Set, Tuple, Union

import msgspec
import numpy as np
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.structures import BoxMode
from torch.utils.data import Dataset

from ..errors import InputError
from .garbage import garbage_collection_paused
from .lvis_json import LvisJson
from .records import built_in_record, contiguous_ids, custom_record

logger = logging.getLogger(__name__)

_VERSION = 1  # of the file's layout and of what the records hold
_TAIL = struct.Struct("<QQI8s")  # bytes of records, bytes of index, checksum of both, magic
_MAGIC = b"tde_det1"
_MASKS = {list: "polygons", dict: "rle", type(None): "none"}
_DAY = 24 * 60 * 60  # seconds


class _Index(msgspec.Struct):
    """What is known about the records without unpacking them."""

    record_ends: bytes  # (N,) int64, bytes
    annotation_ends: bytes  # (N,) int64
    classes: bytes  # (A,) int64, of the model
    is_crowd: bytes  # (A,) bool
    file_names: msgspec.Raw  # N strings, relative to the image root
    categories: List[Dict[str, Any]]  # as in the json
    image_count: Dict[int, int]  # images each category id is annotated in
    masks: Set[str]  # of "polygons", "rle" and "none"
    skipped: Dict[str, int]  # annotations left out, by reason


def cache_folder() -> Path:
    """Where the files are kept: ``tde_det`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "tde_det"


def _pack_polygons(annotations: List[Dict[str, Any]]) -> Tuple[str, bytes]:
    """Take the coordinates out of the annotations, leaving how many each polygon has.

    Returns:
        the type of the coordinates, and they: as whole hundredths of a pixel where that gives back
        the very same numbers, as it does for all of LVIS.
    """
    flat: List[float] = []
    for annotation in annotations:
        polygons = annotation.get("segmentation")
        if isinstance(polygons, list):
            annotation["segmentation"] = [len(polygon) for polygon in polygons]
            for polygon in polygons:
                flat += polygon
    content = struct.pack(f"<{len(flat)}d", *flat)
    values = np.frombuffer(content, "<f8")
    hundredths = np.rint(values * 100)
    for kind in ("<u2", "<i4"):
        limits = np.iinfo(kind)
        if ((hundredths >= limits.min) & (hundredths <= limits.max)).all():
            whole = hundredths.astype(kind)
            return (kind, whole.tobytes()) if (whole / 100 == values).all() else ("<f8", content)
    return "<f8", content


def _unpack_polygons(annotations: List[Dict[str, Any]], kind: str, content: bytes) -> None:
    """The inverse of :func:`_pack_polygons`, in place."""
    values = np.frombuffer(content, kind)
    flat = (values if kind == "<f8" else values / 100).tolist()
    end = 0
    for annotation in annotations:
        lengths = annotation.get("segmentation")
        if isinstance(lengths, list):
            polygons = annotation["segmentation"] = []
            for length in lengths:
                polygons.append(flat[end : end + length])
                end += length


@garbage_collection_paused()
def _write(json_file: str, built_in: Optional[str], out: BinaryIO) -> None:
    """Read a json and write it in the layout above."""
    source = LvisJson(json_file)
    mapping = contiguous_ids(source.categories)
    if built_in:  # like load_lvis_json, whatever categories the json lists
        meta = get_lvis_instances_meta(built_in)
        mapping = meta.get("thing_dataset_id_to_contiguous_id", {k: k - 1 for k in mapping})
    skipped: Counter[str] = Counter()
    image_count: Counter[int] = Counter()
    masks: Set[str] = set()
    record_ends, annotation_ends, classes, is_crowd, file_names = [], [], [], [], []
    encoder = msgspec.msgpack.Encoder()
    checksum = size = 0
    for image, annotations in source.by_image():
        image_count.update({a["category_id"] for a in annotations})
        try:
            if built_in:
                record = built_in_record(image, annotations, mapping)
            else:
                record = custom_record(image, annotations, mapping, skipped)
            kept = record["annotations"]
            masks |= {_MASKS[type(a.get("segmentation"))] for a in kept}
            packed = encoder.encode((record, *_pack_polygons(kept)))
        except KeyError as error:
            raise InputError(f"{json_file}: {built_in} has no category with id {error}") from None
        except (InputError, OverflowError) as error:
            raise InputError(f"{json_file}: image {image['id']}: {error}") from None
        out.write(packed)
        checksum = zlib.crc32(packed, checksum)
        size += len(packed)
        classes += [a["category_id"] for a in kept]
        is_crowd += ["iscrowd" in a for a in kept]
        record_ends.append(size)
        annotation_ends.append(len(classes))
        file_names.append(record["file_name"])
    index = encoder.encode(
        _Index(
            np.array(record_ends, np.int64).tobytes(),
            np.array(annotation_ends, np.int64).tobytes(),
            np.array(classes, np.int64).tobytes(),
            np.array(is_crowd, bool).tobytes(),
            msgspec.Raw(encoder.encode(file_names)),
            source.categories,
            image_count,
            masks,
            skipped,
        )
    )
    out.write(index)
    out.write(_TAIL.pack(size, len(index), zlib.crc32(index, checksum), _MAGIC))


def _is_whole(path: Path) -> bool:
    """Compare a file with its checksum, without mapping its pages into this process."""
    with open(path, "rb") as f:
        size = f.seek(0, os.SEEK_END)
        if size < _TAIL.size:
            return False
        f.seek(size - _TAIL.size)
        records, index, expected, magic = _TAIL.unpack(f.read())
        left = records + index
        if magic != _MAGIC or left + _TAIL.size != size:
            return False
        f.seek(0)
        checksum = 0
        while left:
            block = f.read(min(left, 1 << 20))
            checksum = zlib.crc32(block, checksum)
            left -= len(block)
    return checksum == expected


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes of this machine from making the same file meanwhile.

    The operating system releases the lock of a process that dies.
    """
    with open(path, "w") as f:
        with contextlib.suppress(OSError):  # file systems without locks: each makes its own
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _cached(json_file: str, built_in: Optional[str]) -> Path:
    """The cache's file for a json in its present state, made if need be.

    Raises:
        InputError: the json cannot be used.
        OSError: the cache cannot be written.
    """
    if not os.path.isfile(json_file):
        raise InputError(f"{json_file} does not exist or is no file")
    state = os.stat(json_file)

    def digest(*key: Any) -> str:
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]

    kind = get_lvis_instances_meta(built_in) if built_in else None
    mapping = kind and sorted(kind.get("thing_dataset_id_to_contiguous_id", {}).items())
    name = f"{Path(json_file).stem[:40]}-{digest(os.path.realpath(json_file), mapping)}"
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{digest(state.st_size, state.st_mtime_ns, _VERSION)}.records"
    if path.exists() and _is_whole(path):
        return path
    with _locked(folder / f"{name}.lock"):
        if path.exists():
            if _is_whole(path):  # made by another process while this one waited
                return path
            logger.warning("%s is damaged: reading %s again", path, json_file)
        logger.info("Reading %s; the next time it is taken from %s", json_file, path)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix="making-")
        try:
            with os.fdopen(descriptor, "wb") as f:
                _write(json_file, built_in, f)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _remove_stale(path, name)
    return path


def _remove_stale(current: Path, name: str) -> None:
    """Delete files of the same json in an earlier state, and those left by a dead process."""
    for other in current.parent.iterdir():
        with contextlib.suppress(OSError):  # another process may be at it
            dead = other.name.startswith("making-") and other.stat().st_mtime < time.time() - _DAY
            if dead or (other.name.startswith(f"{name}-") and other != current):
                other.unlink()


class CompactLvis(Dataset[Dict[str, Any]]):
    """The dicts of a json in LVIS format, as a map-style data set for Detectron2's loaders.

    Made from the json once and taken from :func:`cache_folder` as long as the json's size and
    modification time stay the same. Where nothing can be written, it is kept in memory.

    Args:
        json_file: path of the annotations.
        image_root: folder that the images' file names start from.
        built_in: name of one of Detectron2's LVIS data sets, to give what ``load_lvis_json`` gives
            for it; if None, what :func:`to_detectron2` gives.

    Attributes:
        annotation_ends: (N,) int64; where each image's annotations end in the following arrays.
        classes: (A,) int64, the model's class of every annotation.
        is_crowd: (A,) bool, COCO's ``iscrowd`` of every annotation.
        categories, image_count, masks, skipped: see ``_Index``.

    Raises:
        InputError: the json cannot be used.
    """

    def __init__(self, json_file: str, image_root: str, built_in: Optional[str] = None):
        self.json_file, self._image_root, self._is_built_in = json_file, image_root, bool(built_in)
        self._source: Union[Path, bytes]
        try:
            self._source = _cached(json_file, built_in)
            self._open()
        except OSError as error:
            logger.warning("%s is read without a cache in %s: %s", json_file, cache_folder(), error)
            buffer = io.BytesIO()
            _write(json_file, built_in, buffer)
            self._source = buffer.getvalue()
            self._open()

    def _open(self) -> None:
        if isinstance(self._source, bytes):
            content = memoryview(self._source)
        else:
            with open(self._source, "rb") as f:
                content = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
        size, index_size, _, _ = _TAIL.unpack(content[-_TAIL.size :])
        index = msgspec.msgpack.decode(content[size : size + index_size], type=_Index)
        self._content = content
        self._ends = np.frombuffer(index.record_ends, np.int64)
        self.annotation_ends = np.frombuffer(index.annotation_ends, np.int64)
        self.classes = np.frombuffer(index.classes, np.int64)
        self.is_crowd = np.frombuffer(index.is_crowd, bool)
        self._file_names = bytes(index.file_names)
        self.categories, self.image_count = index.categories, index.image_count
        self.masks, self.skipped = index.masks, index.skipped
        self._decoder = msgspec.msgpack.Decoder()

    def __getstate__(self) -> Tuple[Any, ...]:
        """What a spawned worker needs to map the file again."""
        return self.json_file, self._image_root, self._is_built_in, self._source

    def __setstate__(self, state: Tuple[Any, ...]) -> None:
        self.json_file, self._image_root, self._is_built_in, self._source = state
        self._open()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> Dict[str, Any]:
        """The dict of image ``i``, a new one at every call."""
        i = range(len(self))[i]  # negative numbers, IndexError
        start = self._ends[i - 1] if i else 0
        record, *polygons = self._decoder.decode(self._content[start : self._ends[i]])
        record["file_name"] = self._path(record["file_name"])
        for annotation in record["annotations"]:
            annotation["bbox_mode"] = BoxMode.XYWH_ABS
        _unpack_polygons(record["annotations"], *polygons)
        return record

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def _path(self, file_name: str) -> str:
        if self._is_built_in:  # as load_lvis_json joins them
            folder, name = file_name.split("/")
            return os.path.join(self._image_root + folder, name)
        return os.path.join(self._image_root, file_name)

    def file_names(self) -> List[str]:
        """Paths of all images, without unpacking their dicts."""
        return list(map(self._path, msgspec.msgpack.decode(self._file_names, type=List[str])))

    def to_list(self) -> List[Dict[str, Any]]:
        """All dicts, as ``DatasetCatalog`` gives them."""
        return list(self)
