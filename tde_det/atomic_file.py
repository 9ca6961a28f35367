"""Files that are there as a whole or not at all."""

import contextlib
import os
from typing import IO, Iterator

PARTIAL = ".partial"  # how the name of a file ends that is being written


@contextlib.contextmanager
def atomic_file(path: str) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of ``path`` at the end, and is on the disk then.

    If anything goes wrong meanwhile, ``path`` stays as it was, and what has been written is
    removed. A kill can leave ``path + ".partial"``.

    Raises:
        OSError: it cannot be written.
    """
    partial = path + PARTIAL
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name is on the disk, too
    finally:
        os.close(folder)
