"""Detectron2's training step, in micro-batches, and without an update that is not finite."""

import contextlib
import logging
import time
from typing import Any, Dict, List

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ..distributed import StepSum
from .nonfinite import (
    Buffers,
    NonFiniteLoss,
    agree_before_roi_heads,
    are_finite,
    describe_nonfinite,
    gradients_are_finite,
    on_any_rank,
    told_to_other_ranks,
)

logger = logging.getLogger(__name__)


class TrainStep(SimpleTrainer):
    """``SimpleTrainer`` with SOLVER.ACCUMULATE and SOLVER.SKIP_NONFINITE.

    Args:
        args: those of ``SimpleTrainer``. The loader gives the images of a whole step.
        accumulate: micro-batches n ≥ 1, which a step's images are split into.
        skip_nonfinite: steps of the training that may be skipped.
    """

    _data_loader_iter_obj: Any  # SimpleTrainer's, None before the first step

    def __init__(self, *args: Any, accumulate: int = 1, skip_nonfinite: int = 0):
        super().__init__(*args)
        wrapped = isinstance(self.model, DistributedDataParallel)
        self._network = self.model.module if wrapped else self.model
        self._sync_later = self.model.no_sync if wrapped else contextlib.nullcontext
        self._device = next(self._network.parameters()).device
        self._step_sums = [m for m in self._network.modules() if isinstance(m, StepSum)]
        self._accumulate, self._skip_nonfinite, self._skipped = accumulate, skip_nonfinite, 0
        self._buffers = Buffers(self._network)
        agree_before_roi_heads(self._network, self._device)

    def run_step(self) -> None:
        """One update of the weights.

        Raises:
            NonFiniteLoss: it cannot be made; weights and statistics are those before the step.
        """
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        images = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self._buffers.save()
        self.optimizer.zero_grad()
        losses: Dict[str, Tensor] = {}
        try:
            for part in range(self._accumulate):
                self._add_micro_batch(part, images[part :: self._accumulate], losses)
            reason = self._reason_against(losses)
            failed = on_any_rank(bool(reason), self._device)
        except FloatingPointError as error:
            failed, reason = True, str(error).split("!")[0]
        if failed:
            self._skip(images, {k: v.item() for k, v in losses.items()}, reason)
            return
        self.after_backward()
        self._write_metrics(losses, data_time)
        self._update()

    def end_workers(self) -> None:
        """End the loader's processes, if there are some.

        At the end of a program, Python sends them SIGTERM and waits for them. They ignore it, see
        :func:`~tde_det.stop_signals.ignore_stop_signals`.
        """
        iterator, self._data_loader_iter_obj = self._data_loader_iter_obj, None
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()

    def _add_micro_batch(self, part: int, images: List[Any], losses: Dict[str, Tensor]) -> None:
        """Add a micro-batch's n-th part of the gradients, and of the loss terms."""
        for step_sum in self._step_sums:
            step_sum.part, step_sum.parts = part, self._accumulate
        is_last = part == self._accumulate - 1
        with contextlib.nullcontext() if is_last else self._sync_later():
            with told_to_other_ranks(self._device):
                terms = self._forward(images)
            if isinstance(terms, Tensor):
                terms = {"total_loss": terms}
            terms = {name: term / self._accumulate for name, term in terms.items()}
            self._backward(sum(terms.values()))
        for name, term in terms.items():
            losses[name] = losses.get(name, 0) + term.detach()

    def _forward(self, images: List[Any]) -> Any:
        return self.model(images)

    def _backward(self, loss: Any) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()

    def _reason_against(self, losses: Dict[str, Tensor]) -> str:
        """Why the step must not be made; "" if it may."""
        if not are_finite(losses):
            return "the loss is not finite"
        return "" if gradients_are_finite(self._network) else "the gradient is not finite"

    def _skip(self, images: List[Any], losses: Dict[str, float], reason: str) -> None:
        self._buffers.restore()
        self.optimizer.zero_grad()
        message = describe_nonfinite(self.iter, images, losses, reason)
        if self._skipped == self._skip_nonfinite:
            raise NonFiniteLoss(message)
        self._skipped += 1
        logger.warning(
            "Skipped %d of at most %d steps: %s", self._skipped, self._skip_nonfinite, message
        )

    def state_dict(self) -> Dict[str, Any]:
        return {**super().state_dict(), "skipped_nonfinite": self._skipped}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._skipped = state_dict.get("skipped_nonfinite", 0)


class AMPTrainStep(TrainStep, AMPTrainer):
    """:class:`TrainStep` in half precision, with ``AMPTrainer``'s scaler.

    A gradient that overflows is the scaler's to skip, as always; SKIP_NONFINITE does not count it.
    """

    def _forward(self, images: List[Any]) -> Any:
        with torch.autocast(self._device.type, dtype=self.precision):
            return self.model(images)

    def _backward(self, loss: Any) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _reason_against(self, losses: Dict[str, Tensor]) -> str:
        return "" if are_finite(losses) else "the loss is not finite"
