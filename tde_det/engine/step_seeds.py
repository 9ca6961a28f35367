"""Random numbers of a training step, such as those that sample RoIs, by its number."""

from typing import Any, Dict

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from ..random_state import seed_of


class StepSeeds(HookBase):
    """Seeds Python, NumPy, PyTorch and CUDA before each step by (seed, rank, iteration).

    So a step draws the same numbers after a kill, an evaluation or a signal.

    Args:
        seed: SEED; negative for a random one, which a checkpoint keeps. All ranks must call this.
    """

    def __init__(self, seed: int):
        self._seed = seed if seed >= 0 else comm.shared_random_seed()

    def before_step(self) -> None:
        seed_all_rng(seed_of(self._seed, comm.get_rank(), self.trainer.iter))

    def state_dict(self) -> Dict[str, Any]:
        return {"seed": self._seed}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self._seed = state_dict["seed"]
