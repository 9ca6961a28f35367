"""Stop at the end of an iteration, with a checkpoint, when a scheduler asks for it."""

import contextlib
import logging
import signal
from typing import Any, Iterator, Optional

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..stop_signals import STOPPED, on_stop_signals
from .end_training import EndTraining

logger = logging.getLogger(__name__)


class Preemption(HookBase):
    """Ends the training on all ranks alike after SIGTERM or SIGUSR1 to any of them.

    It belongs after the hooks that change or save the training's state, and before evaluations. A
    signal during an evaluation, in which ranks do not wait for each other, ends its own process at
    once; the launcher then sends SIGTERM to the others.
    """

    def __init__(self) -> None:
        self._signal: Optional[int] = None
        self._in_evaluation = False
        # Ranks agree by one number an iteration, on the CPU: nothing waits for a GPU.
        self._group: Any = dist.new_group(backend="gloo") if comm.get_world_size() > 1 else None

    @contextlib.contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Around the training."""
        with on_stop_signals(self._handle):
            yield

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around an evaluation."""
        self._in_evaluation = True
        try:
            self._end_if(self._signal is not None)
            yield
        except Exception:  # a loader's worker may have had the signal, too
            self._end_if(self._signal is not None)
            raise
        finally:
            self._in_evaluation = False

    def _handle(self, number: int) -> None:
        self._signal = number
        if self._in_evaluation:
            self._in_evaluation = False  # a second signal must not disturb the way out
            self._end_if(True)

    def after_step(self) -> None:
        asked = torch.tensor(int(self._signal is not None))
        if self._group is not None:
            dist.all_reduce(asked, group=self._group)
        self._end_if(bool(asked), on_all_ranks=True)

    def _end_if(self, asked: bool, on_all_ranks: bool = False) -> None:
        if asked:
            name = signal.Signals(self._signal).name if self._signal else "a signal to another rank"
            logger.warning("Stopped by %s: go on with --resume", name)
            raise EndTraining(SystemExit(STOPPED), self.trainer.iter, on_all_ranks)
