"""What a run depends on besides its data, classifier and seed."""

import math
from typing import Any, Dict, List, NamedTuple, Sequence

from ..adjustments import Step


class Schedule(NamedTuple):
    """SGD with momentum 0.9: linear warm-up, then a cosine down to 0."""

    epochs: int
    batch_size: int
    lr: float  # after warm-up
    weight_decay: float = 5e-4  # of all parameters that are trained
    warmup_epochs: float = 1.0

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0, as a fraction of ``lr``."""
        warmup = min(1.0, (step + 1) / max(1.0, self.warmup_epochs * steps_per_epoch))
        return warmup * 0.5 * (1 + math.cos(math.pi * step / (self.epochs * steps_per_epoch)))


class Machine(NamedTuple):
    """What computes."""

    device: str = "cpu"
    workers: int = 0  # processes that read image files; images in memory need none
    threads: int = 1  # of PyTorch on the CPU, per run


class RunSettings(NamedTuple):
    """Settings that all runs of an experiment share."""

    arch: str  # this and stem_stride: see build_backbone
    stem_stride: int
    normalized: Dict[str, Any]  # num_heads, tau and gamma, see CausalNormClassifier
    mu: float  # see TDE
    loss: str  # this and loss_options: see build_criterion
    loss_options: Dict[str, Any]
    schedule: Schedule
    adjustments: Sequence[List[Step]]  # chains, see adjustments.parse_chains
    retrain: Sequence[str]  # keys of methods.RETRAINING
    retrain_schedule: Schedule
    machine: Machine
