"""What a box stage tells Detectron2's event storage, and so TensorBoard, in training.

    tde/foreground_cosine   mean of cos(xᵏ, d̂ᵏ) over the foreground boxes of the batch and the heads
    tde/mean_norm_change    (‖x̄‖ − ‖x̄′‖) / ‖x̄′‖, where x̄′ is x̄ an iteration before
    probability/rare        mean predicted probability of their own class over the foreground boxes
    probability/common      of rare, common and frequent classes, before any adjustment
    probability/frequent

x̄ and d̂ include the batch. Detectron2's cascade puts ``stage0/`` and so on before the names, as it
does with its own. What there is nothing to measure for, such as ``probability/rare`` without a
foreground box of a rare class, is not put.
"""

import logging
import math
from typing import Any, Callable, Optional, Sequence

import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

from ..activations import scores_from_logits
from ..adjustments import Adjustments
from ..adjustments.feature_mean import head_cosine
from ..errors import InputError

logger = logging.getLogger(__name__)

GROUPS = {"rare": "r", "common": "c", "frequent": "f"}


class TrainingEvents:
    """Puts the events of one box stage.

    Args:
        frequencies: gives ``"r"``, ``"c"`` or ``"f"`` of every class, when it is first needed. If
            it raises an :class:`InputError`, and without it, probabilities are not put.
    """

    def __init__(self, frequencies: Optional[Callable[[], Sequence[str]]] = None):
        self._frequencies = frequencies
        self._groups: Optional[Tensor] = None  # of each class
        self._norm = 0.0  # of x̄, an iteration before

    @torch.no_grad()
    def put(
        self, x: Tensor, logits: Tensor, labels: Tensor, activation: str, adjustments: Adjustments
    ) -> None:
        """Put the events of a batch. Does nothing outside of an ``EventStorage``.

        Only the main process does, with its own boxes: its events are the ones that are written.
        Like Detectron2's own events of this stage it waits for the GPU, twice.

        Args:
            x, logits, labels: ``Tensor[N, D]``, ``Tensor[N, C+1]`` and ``Tensor[N]``.
            activation: one of ``ACTIVATIONS``.
            adjustments: of the predictor; if TDE is one, its mean has this batch in it.
        """
        if not (has_event_storage() and comm.is_main_process()):
            return
        if self._groups is None:
            self._groups = self._numbered_groups(logits.shape[1] - 1)
        foreground = torch.nonzero((labels >= 0) & (labels < logits.shape[1] - 1)).squeeze(1)
        labels = labels[foreground]
        scores = scores_from_logits(logits[foreground].float(), activation)
        scores = scores.gather(1, labels.unsqueeze(1)).squeeze(1)
        groups = self._groups.to(labels.device)[labels]
        # The mean of nothing is not a number.
        values = {f"probability/{n}": scores[groups == i].mean() for i, n in enumerate(GROUPS)}
        if "tde" in adjustments:
            tde: Any = adjustments["tde"]
            mean = tde.feature_mean
            cosine = head_cosine(x[foreground].to(mean.dtype), mean, tde.num_heads)
            values["tde/foreground_cosine"] = cosine.mean()
            values["norm"] = mean.norm()
        numbers = dict(zip(values, torch.stack([*values.values()]).tolist()))
        if "tde" in adjustments:
            norm = numbers.pop("norm")
            numbers["tde/mean_norm_change"] = norm / self._norm - 1 if self._norm else math.nan
            if not norm:  # there is no direction yet
                del numbers["tde/foreground_cosine"]
            self._norm = norm
        finite: Any = {name: value for name, value in numbers.items() if math.isfinite(value)}
        get_event_storage().put_scalars(**finite)

    def _numbered_groups(self, num_classes: int) -> Tensor:
        """The number of each class's group, -1 if unknown."""
        letters = [*GROUPS.values()]
        try:
            if self._frequencies is not None:
                return torch.tensor([letters.index(f) for f in self._frequencies()])
        except InputError as error:
            logger.warning("Probabilities of rare, common and frequent classes: %s", error)
        return torch.full((num_classes,), -1)
