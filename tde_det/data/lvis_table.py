"""LVIS-format data sets as memory-mapped Arrow files, shared by all workers and ranks.

A json is converted once to an Arrow IPC file in a cache folder. A row is an image, and its
annotations are a list in that row. A process reads the rows that it needs, and whole columns (such
as the classes of all annotations) without going through the rows.
"""

import functools
import json
import logging
import os
from collections import Counter
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple, Union

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from torch.utils.data import Dataset

from ..errors import InputError
from ..gc_pause import gc_paused
from .cache import cache_folder, cached_file
from .image_files import leads_out
from .lvis_json import LvisJson
from .records import table_schema, to_record, to_row

logger = logging.getLogger(__name__)

_VERSION = 2  # of the columns and of what they hold
_MAY_LEAVE = r"^/|(^|/)\.\.(/|$)|[\\:]"  # also Windows' C:\, which abspath knows there
_BATCH = 1024  # annotations converted at a time: few enough to stay in the processor's cache


@gc_paused()
def _convert(json_file: str, mapping: Optional[List[Tuple[int, int]]], out: Any) -> None:
    """Read a json and write its table to a file or an Arrow stream."""
    source = LvisJson(json_file)
    ids = sorted(category["id"] for category in source.categories)
    classes = {k: i if mapping is None else k - 1 for i, k in enumerate(ids)}
    if mapping:
        classes = dict(mapping)
    pairs = set(zip(source.image_index.tolist(), source.category_ids.tolist()))
    image_count = list(Counter(category for _, category in pairs).items())
    metadata = {"categories": source.categories, "image_count": image_count}
    packed = {key: json.dumps(value) for key, value in metadata.items()}
    schema = table_schema(source.images[0]["id"], packed)
    with pa.ipc.new_file(out, schema) as writer:
        rows: List[Dict[str, Any]] = []
        size = 0
        for image, annotations in source.by_image():
            try:
                rows.append(to_row(image, annotations, classes, mapping is not None))
            except KeyError as error:
                raise InputError(f"{json_file}: {error} is no category id of COCO") from None
            except InputError as error:
                raise InputError(f"{json_file}: image {image['id']}: {error}") from None
            size += len(annotations) + 1
            if size > _BATCH:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
                rows, size = [], 0
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))


def _read(source: Union[str, pa.Buffer]) -> pa.Table:
    file = pa.memory_map(source) if isinstance(source, str) else source
    return pa.ipc.open_file(file).read_all()


def _is_valid(path: str) -> bool:
    try:
        _read(path)
    except pa.ArrowInvalid:
        return False
    return True


class LvisTable(Dataset[Dict[str, Any]]):
    """The dicts of a json in LVIS format, as a map-style data set for Detectron2's loaders.

    The table is taken from the cache folder as long as the json's size and modification time stay
    the same. Where nothing can be written, it is kept in memory.

    Args:
        json_file: path of the annotations.
        image_root: folder that the images' file names start from.
        built_in: name of one of Detectron2's LVIS data sets, to give what ``load_lvis_json`` gives
            for it. If None, it takes any category ids, RLE masks and COCO's crowds, and leaves out
            annotations that no detector can learn from.
        allow_outside_root: whether a file name may lead out of ``image_root``.

    Attributes:
        json_file, image_root: as given.
        categories: as in the json.
        image_count: images each category id is annotated in.

    Raises:
        InputError: the json cannot be used.
    """

    def __init__(
        self,
        json_file: str,
        image_root: str,
        built_in: Optional[str] = None,
        allow_outside_root: bool = False,
    ):
        self.json_file, self.image_root, self._is_built_in = json_file, image_root, bool(built_in)
        self._source: Union[str, pa.Buffer]
        # Category ids and classes of Detectron2's own sets; empty if class = id - 1.
        meta = get_lvis_instances_meta(built_in) if built_in else None
        mapping = meta and sorted(meta.get("thing_dataset_id_to_contiguous_id", {}).items())
        write = functools.partial(_convert, json_file, mapping)
        try:  # other class ids, or other annotations, are other files
            self._source = cached_file(json_file, [_VERSION, mapping], write, _is_valid)
        except (OSError, NotImplementedError) as error:  # the latter: no locks here
            logger.warning("%s is read without a cache in %s: %s", json_file, cache_folder(), error)
            stream = pa.BufferOutputStream()
            write(stream)
            self._source = stream.getvalue()
        metadata = self._table.schema.metadata
        self.categories: List[Dict[str, Any]] = json.loads(metadata[b"categories"])
        self.image_count: Dict[int, int] = dict(json.loads(metadata[b"image_count"]))
        if not allow_outside_root:
            self._check_file_names()

    def __getstate__(self) -> Dict[str, Any]:
        """What a spawned worker needs to map the file again."""
        return {key: value for key, value in vars(self).items() if key != "_table"}

    @functools.cached_property
    def _table(self) -> pa.Table:
        return _read(self._source)

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, i: int) -> Dict[str, Any]:
        """The dict of image ``i``, a new one at every call."""
        i = range(len(self))[i]  # negative numbers, IndexError
        (row,) = self._table.slice(i, 1).to_pylist()
        return to_record(row, self._path(row["file_name"]))

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def _path(self, file_name: str) -> str:
        if self._is_built_in:  # as load_lvis_json joins them
            return self.image_root + file_name
        return os.path.join(self.image_root, file_name)

    def _check_file_names(self) -> None:
        """Refuse names that lead out of ``image_root``; links below it may lead anywhere."""
        names = self._table["file_name"]
        odd = names.filter(pc.match_substring_regex(names, _MAY_LEAVE)).to_pylist()
        for name in odd:
            if leads_out(self.image_root, self._path(name)):
                raise InputError(
                    f"{self.json_file}: the file name {name} leads out of the image root, "
                    f"{self.image_root}: correct either, or set DATASETS.ALLOW_OUTSIDE_ROOT True "
                    "for a DATASETS.LVIS_CUSTOM that you trust"
                )

    def file_names(self) -> List[str]:
        """Paths of all images."""
        return list(map(self._path, self._table["file_name"].to_pylist()))

    def sizes(self) -> np.ndarray:
        """Width and height of every image, ``int64[N, 2]``."""
        return np.stack([self._table[key].to_numpy() for key in ("width", "height")], axis=1)

    def skipped(self) -> Dict[str, int]:
        """How many annotations are left out, by reason."""
        return Counter(pc.list_flatten(self._table["skipped"]).to_pylist())

    def image_index(self) -> np.ndarray:
        """The image of every annotation, ``int64[A]``."""
        lengths = pc.list_value_length(self._table["annotations"]).to_numpy()
        return np.repeat(np.arange(len(self)), lengths)

    def classes(self) -> np.ndarray:
        """The model's class of every annotation, ``int64[A]``."""
        return self._column("category_id").to_numpy()

    def is_crowd(self) -> np.ndarray:
        """COCO's ``iscrowd`` of every annotation, ``bool[A]``."""
        return self._column("iscrowd").to_numpy()

    def boxes(self) -> np.ndarray:
        """x, y, width and height in pixels of every annotation, ``float64[A, 4]``."""
        return pc.list_flatten(self._column("bbox")).to_numpy().reshape(-1, 4)

    def mask_kinds(self) -> Set[str]:
        """Which of "polygons", "rle" and "none" the annotations have."""
        polygons, rle = (pc.is_valid(self._column(key)).to_numpy() for key in ("polygons", "rle"))
        kinds = {"polygons": polygons, "rle": rle, "none": ~polygons & ~rle}
        return {kind for kind, has in kinds.items() if has.any()}

    def _column(self, key: str) -> pa.ChunkedArray:
        return pc.struct_field(pc.list_flatten(self._table["annotations"]), key)
