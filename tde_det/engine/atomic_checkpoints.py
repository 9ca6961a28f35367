"""Write checkpoints that are whole whenever the program, the machine or the disk fails."""

import contextlib
import glob
import logging
import os
from typing import Any, Optional

import torch
from torch import nn

from ..atomic_file import PARTIAL, atomic_file
from ..errors import InputError
from .last_checkpoint import ResumingCheckpointer

logger = logging.getLogger(__name__)


def os_error(error: Optional[BaseException]) -> Optional[OSError]:
    """The error of the system that led to an error, if one did: PyTorch raises its own on top."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


class AtomicCheckpointer(ResumingCheckpointer):
    """Detectron2's checkpointer, which writes to a temporary name first.

    Args:
        model, save_dir, checkpointables: as Detectron2's.
        on_full_disk: SOLVER.ON_FULL_DISK.
    """

    def __init__(
        self, model: nn.Module, save_dir: str, on_full_disk: str = "stop", **checkpointables: Any
    ):
        super().__init__(model, save_dir, **checkpointables)
        self._on_full_disk = on_full_disk

    def save(self, name: str, **kwargs: Any) -> None:
        """Detectron2's; the earlier checkpoints stay as they are if it fails.

        Raises:
            InputError: a weight is not finite; or the file cannot be written, and it is the last
                checkpoint of the training or ``on_full_disk`` is "stop".
        """
        if not self.save_dir or not self.save_to_disk:
            return
        for key, weight in self.model.named_parameters():
            if not bool(torch.isfinite(weight).all()):
                raise InputError(f"{name}.pth is not written: {key} is not finite")
        state = {"model": self.model.state_dict(), **kwargs}
        for key, part in self.checkpointables.items():
            state[key] = part.state_dict()
        path = os.path.join(self.save_dir, f"{name}.pth")
        for left_by_a_kill in glob.glob(os.path.join(glob.escape(self.save_dir), f"*{PARTIAL}")):
            with contextlib.suppress(OSError):
                os.remove(left_by_a_kill)
        logger.info("Saving checkpoint to %s", path)
        try:
            with atomic_file(path) as file:
                torch.save(state, file)
            self.tag_last_checkpoint(f"{name}.pth")
        except (OSError, RuntimeError) as error:
            reason = os_error(error)
            if reason is None:
                raise
            message = f"{path} cannot be written: {reason.strerror}. Earlier checkpoints are whole"
            if self._on_full_disk == "stop" or name == "model_final":
                raise InputError(message) from error
            logger.warning("%s; the training goes on, as SOLVER.ON_FULL_DISK says", message)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of a whole checkpoint to ``last_checkpoint``."""
        with atomic_file(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())
