"""Clear errors for checkpoints that cannot be loaded."""

import contextlib
import pickle
import struct
from typing import Iterator

from ..errors import InputError

# What torch.load and load_state_dict raise for files of other kinds.
_BROKEN = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    KeyError,
    AttributeError,
    RuntimeError,
)


@contextlib.contextmanager
def readable_checkpoint(path: str) -> Iterator[None]:
    """Turn what a broken or unfitting file makes loading raise into one line.

    Args:
        path: of the file, or of the folder whose last checkpoint is loaded.

    Raises:
        InputError: naming it.
    """
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        if "parameter group" not in str(error):
            raise InputError(f"{path} is no checkpoint that can be read: {error}") from error
        raise InputError(
            f"the last checkpoint in {path} is of a training with other trained parameters, such "
            "as the one before MODEL.LONG_TAIL.DECOUPLE: give another OUTPUT_DIR, or no --resume"
        ) from error
    except _BROKEN as error:
        kind = type(error).__name__
        raise InputError(f"{path} is no checkpoint that can be read ({kind}: {error})") from error
