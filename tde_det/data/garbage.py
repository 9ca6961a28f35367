"""Python's garbage collection, out of the way of code that makes millions of small objects."""

import contextlib
import gc
from typing import Iterator


@contextlib.contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Leave out the search for reference cycles, which takes most of the time and finds none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
