"""Files made from other files, kept in the user's cache folder."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, BinaryIO, Callable

import filelock

from ..errors import InputError

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where the files are kept: ``tde_det`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "tde_det"


def _digest(*key: Any) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def cached_file(
    source: str, kind: Any, write: Callable[[BinaryIO], None], is_valid: Callable[[str], bool]
) -> str:
    """The path of a file made from ``source``; its size and time of change tell if that is new.

    Several processes that ask for it at once make it once.

    Args:
        source: path of the file it is made from.
        kind: of the file, if several are made from one source; anything that JSON can hold.
        write: makes it.
        is_valid: whether a file is one that ``write`` has finished.

    Raises:
        InputError: there is no ``source``.
        OSError: the cache cannot be written.
    """
    if not os.path.isfile(source):
        raise InputError(f"{source} does not exist or is no file")
    state = os.stat(source)
    prefix = f"{Path(source).stem[:40]}-{_digest(os.path.realpath(source), kind)}"
    folder = cache_folder()
    path = folder / f"{prefix}-{_digest(state.st_size, state.st_mtime_ns)}.arrow"
    if path.exists() and is_valid(str(path)):
        return str(path)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / f"{prefix}.lock"):
        if path.exists():
            if is_valid(str(path)):  # another process has made it meanwhile
                return str(path)
            logger.warning("%s is damaged: reading %s again", path, source)
        logger.info("Reading %s; the next time it is taken from %s", source, path)
        # Others see the file only when it is complete. The lock guards its first name.
        unfinished = folder / f"{prefix}.making"
        try:
            with open(unfinished, "wb") as f:
                write(f)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        for other in folder.iterdir():  # of the source's earlier states
            if other.name.startswith(f"{prefix}-") and other != path:
                other.unlink()
    return str(path)
