"""How a training ends before its last iteration."""

from typing import Optional


class EndTraining(BaseException):
    """Leaves Detectron2's training loop; ``Trainer.train`` catches it.

    No ``Exception``, of which the loop would log a traceback.

    Args:
        error: what the program is to end with, an ``InputError`` or ``SystemExit``.
        checkpoint: the last iteration whose state is to be saved; None to save nothing.
        on_all_ranks: whether all ranks leave the loop, in the same iteration.
    """

    def __init__(
        self, error: BaseException, checkpoint: Optional[int] = None, on_all_ranks: bool = False
    ):
        super().__init__(error)
        self.error, self.checkpoint, self.on_all_ranks = error, checkpoint, on_all_ranks
