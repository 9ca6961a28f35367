"""Output files are checked before the work that makes them, and earlier ones can be kept."""

import itertools
import logging
import os

from .errors import InputError

logger = logging.getLogger(__name__)


def check_writable(path: str) -> None:
    """Find out whether a file can be written, and create its folder. The file stays as it is.

    Raises:
        InputError: it cannot; with the path and the reason.
    """
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        existed = os.path.lexists(path)
        with open(path, "a"):
            pass
        if not existed:
            os.remove(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def set_aside(path: str) -> None:
    """Rename an earlier file, if there is one: ``sweep.csv`` becomes ``sweep_1.csv``, or ``_2``."""
    if not os.path.exists(path):
        return
    stem, extension = os.path.splitext(path)
    names = (f"{stem}_{i}{extension}" for i in itertools.count(1))
    kept = next(name for name in names if not os.path.exists(name))
    os.rename(path, kept)
    logger.info("The earlier %s is now %s", path, kept)
