"""When Detectron2's event writers (TensorBoard, metrics.json) write."""

from typing import Any, Callable, List

from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicWriter

WRITE_PERIOD = 20  # iterations between two writes of Detectron2's trainer


def write_all_evaluations(
    hooks: List[HookBase], build_writers: Callable[[], Any], eval_period: int
) -> List[HookBase]:
    """A trainer's hooks, its writers last, so that they write what the others put.

    Of several evaluations between two writes, only the last would be written. So the writers write
    after each, if ``eval_period`` is shorter than theirs.
    """
    writers = [hook for hook in hooks if isinstance(hook, PeriodicWriter)]
    if writers and 0 < eval_period < WRITE_PERIOD:
        writers = [PeriodicWriter(build_writers(), eval_period)]
    return [*(hook for hook in hooks if not isinstance(hook, PeriodicWriter)), *writers]
