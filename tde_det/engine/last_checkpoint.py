"""The checkpoint that a training is resumed from: the newest one that is whole."""

import functools
import logging
import os
import re
import zipfile
import zlib
from typing import Any, List

from detectron2.utils.logger import log_first_n

from ..errors import InputError
from .safe_checkpointer import SafeCheckpointer

_OF_TRAINING = re.compile(r"model_(\d{7}|final)\.pth")  # not those that calibrate.py writes


@functools.cache
def _is_whole(path: str, *_of_this_version: int) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None  # every part has its checksum
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError):
        return False


def is_whole(path: str) -> bool:
    """Whether a file is a checkpoint as ``torch.save`` writes it, with no byte lost or changed."""
    if not os.path.isfile(path):
        return False
    stat = os.stat(path)
    return _is_whole(path, stat.st_size, stat.st_mtime_ns)


def _by_age(folder: str) -> List[str]:
    """Checkpoints of a training, the newest first."""
    if not os.path.isdir(folder):
        return []
    names = sorted(filter(_OF_TRAINING.fullmatch, os.listdir(folder)), reverse=True)
    paths = [os.path.join(folder, name) for name in names]
    return sorted(paths, key=lambda path: os.stat(path).st_mtime_ns, reverse=True)


def last_checkpoint(folder: str) -> str:
    """The path of the checkpoint to resume from; "" if there is none.

    It is the one that the file ``last_checkpoint`` names. If that cannot be used, it is the newest
    one before that can, and a warning names both.

    Raises:
        InputError: there are checkpoints, and all are damaged.
    """
    try:
        with open(os.path.join(folder, "last_checkpoint"), encoding="utf-8") as file:
            name = file.read().strip()
        path = os.path.join(folder, name)
        if name and is_whole(path):
            return path
        problem = f"{path} is damaged or missing" if name else f"{file.name} is empty"
    except FileNotFoundError:
        problem = f"{folder} has no file last_checkpoint"
    except (OSError, UnicodeDecodeError) as error:
        problem = f"last_checkpoint in {folder} cannot be read ({error})"
    candidates = _by_age(folder)
    found = next(filter(is_whole, candidates), "")
    if found:
        message = f"{problem}: the training resumes from {found}"
        log_first_n(logging.WARNING, message, name=__name__, key="message")
    elif candidates or "no file" not in problem:
        raise InputError(
            f"{problem}, and no checkpoint in {folder} is whole: do not resume, or give another "
            "OUTPUT_DIR"
        )
    return found


class ResumingCheckpointer(SafeCheckpointer):
    """A checkpointer for files of strangers, too, which resumes from :func:`last_checkpoint`."""

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> Any:
        return last_checkpoint(self.save_dir)
