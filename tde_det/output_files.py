"""Output files are checked before the work that makes them."""

import os

from .errors import InputError


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
