"""Masks that stay on disk until they are used."""

from typing import Any, Iterator, Optional

import numpy as np
import pyarrow as pa


class StoredMasks:
    """``[N]`` counts of compressed RLEs in memory-mapped Arrow files, as a column of detections.

    Rows are selected without reading a mask; going through them reads one after the other.

    Args:
        column: strings, none of them missing.
        rows: those of the column that this has, ``int64[N]``; None for all.
    """

    def __init__(self, column: pa.ChunkedArray, rows: Optional[np.ndarray] = None):
        self._column = column
        self._rows = np.arange(len(column)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> "StoredMasks":
        """The masks at a slice, an array of indices or a mask of rows."""
        return StoredMasks(self._column, self._rows[rows])

    def __iter__(self) -> Iterator[str]:
        return (self._column[row].as_py() for row in self._rows.tolist())
