"""Detections of an evaluation under way, on disk: one that is interrupted can be continued.

Every process appends to an Arrow IPC stream of its own, a record batch an image. All streams are in
one folder, and each names the fingerprint of the evaluation that it belongs to. A process killed in
the middle of a write leaves an incomplete last batch, which is not read.
"""

import dataclasses
import heapq
import itertools
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from detectron2.utils import comm

from ..errors import InputError
from .detections import Detections
from .stored_masks import StoredMasks

logger = logging.getLogger(__name__)

_ABSENT = {"masks": pa.large_string(), "mask_sizes": pa.int32()}  # if the model has no masks


def _list_of_one(name: str, values: Optional[np.ndarray]) -> pa.Array:
    """A column of one row, which is the list of an image's values."""
    if values is None:
        return pa.nulls(1, pa.large_list(_ABSENT[name]))
    is_text = values.dtype.kind in "OU"
    flat = pa.array(values.ravel(), pa.large_string() if is_text else None)
    return pa.LargeListArray.from_arrays(pa.array([0, len(flat)], pa.int64()), flat)


def _position(image: pa.RecordBatch) -> int:
    return image["position"][0].as_py()


def _read_stream(path: Path) -> Tuple[Optional[str], Iterator[pa.RecordBatch]]:
    """A file's fingerprint, None if it is damaged, and the images that were written to the end."""
    try:
        reader = pa.ipc.open_stream(pa.memory_map(str(path)))
        fingerprint = reader.schema.metadata[b"fingerprint"].decode()
    except (OSError, TypeError, KeyError, pa.ArrowInvalid):
        return None, iter(())

    def images() -> Iterator[pa.RecordBatch]:
        while True:
            try:
                image = reader.read_next_batch()
                image.validate(full=True)
            except (StopIteration, OSError, pa.ArrowInvalid):
                return
            yield image

    return fingerprint, images()


def _detections(table: pa.Table) -> Detections:
    """Those of a table with a row an image."""
    columns: Dict[str, Any] = {}
    for field in dataclasses.fields(Detections):
        column, values = table[field.name], None
        if column.null_count < len(column):
            values = pc.list_flatten(column)
        if field.name == "masks":
            columns["masks"] = None if values is None else StoredMasks(values)
            continue
        columns[field.name] = None if values is None else values.to_numpy(zero_copy_only=False)
    if columns["image_ids"].dtype == object:
        columns["image_ids"] = columns["image_ids"].astype(str)
    for name, width in (("boxes", 4), ("mask_sizes", 2)):
        if columns[name] is not None:
            columns[name] = columns[name].reshape(-1, width)
    return Detections(**columns)


class Unfinished:
    """The detections of an evaluation, of all processes and of the runs before this one.

    Every process must make one at the same time. Detections of another evaluation in the folder are
    removed.

    Args:
        folder: for the files.
        fingerprint: of what determines the detections; the same on all processes.
        num_images: of the data set.

    Attributes:
        is_shared: whether all processes see the same folder; else this cannot be used.
        positions: in the data set, of the images that this process is to append, in this order.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: str, fingerprint: str, num_images: int):
        self._folder, self._fingerprint, self._num_images = Path(folder), fingerprint, num_images
        self._writer: Any = None
        self._count = 0
        token, left = self._prepare() if comm.is_main_process() else ("", [])
        token, left = comm.all_gather((token, left))[0]
        self.is_shared = all(comm.all_gather(os.path.exists(token)))
        if comm.is_main_process():
            os.remove(token)
        share = np.array_split(np.array(left, int), comm.get_world_size())[comm.get_rank()]
        self.positions: List[int] = share.tolist()

    def _prepare(self) -> Tuple[str, List[int]]:
        """A new file in the folder, to see who sees it, and the images that are not done."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor, token = tempfile.mkstemp(dir=self._folder, suffix=".token")
        except OSError as error:
            raise InputError(f"{self._folder} cannot be written: {error.strerror}") from error
        os.close(descriptor)
        done: Set[int] = set()
        for path in self._files():
            fingerprint, images = _read_stream(path)
            if fingerprint == self._fingerprint:
                done.update(map(_position, images))
            else:
                logger.warning("Evaluating anew: %s is of other weights or settings", path)
                path.unlink()
        if done:
            counts = len(done), self._num_images, self._folder
            logger.info("Continuing an evaluation: %d of %d images are done, in %s", *counts)
        return token, [i for i in range(self._num_images) if i not in done]

    def _files(self) -> List[Path]:
        return sorted(self._folder.glob("*.arrows"))

    def append(self, detections: Detections) -> None:
        """Write the detections of the next of :attr:`positions`; of which none may be.

        Raises:
            InputError: they cannot be written.
        """
        columns = {"position": pa.array([self.positions[self._count]], pa.int64())}
        columns.update((name, _list_of_one(name, c)) for name, c in vars(detections).items())
        image = pa.RecordBatch.from_pydict(columns)
        try:
            if self._writer is None:
                descriptor, path = tempfile.mkstemp(dir=self._folder, suffix=".arrows")
                os.close(descriptor)
                schema = image.schema.with_metadata({"fingerprint": self._fingerprint})
                # Unbuffered: what is written outlives a process that is killed.
                self._writer = pa.ipc.new_stream(pa.OSFile(path, "wb"), schema)
            self._writer.write_batch(image)
        except OSError as error:
            raise InputError(f"{self._folder} cannot be written: {error}") from error
        self._count += 1

    def collect(self) -> Optional[Detections]:
        """All detections in the data set's order, on the main process; None on the others.

        Numbers are in memory, masks stay on disk.

        Raises:
            InputError: images are missing.
        """
        if self._writer is not None:
            self._writer.close()
        comm.synchronize()
        if not comm.is_main_process():
            return None
        streams = [_read_stream(path) for path in self._files()]
        # A process takes its images in the data set's order. One that outlives the others of its
        # run may have done an image again.
        ordered = heapq.merge(
            *(images for fingerprint, images in streams if fingerprint == self._fingerprint),
            key=_position,
        )
        images = [next(same) for _, same in itertools.groupby(ordered, _position)]
        if len(images) < self._num_images:
            raise InputError(
                f"{self._folder} has the detections of {len(images)} of {self._num_images} images: "
                "run the same command again, which evaluates those that are missing"
            )
        return _detections(pa.Table.from_batches(images))

    def remove(self) -> None:
        """Remove the files, when the evaluation has finished."""
        if comm.is_main_process():
            shutil.rmtree(self._folder, ignore_errors=True)
