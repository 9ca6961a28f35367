"""Detectron2's default trainer, for machines that fail and schedulers that want them back."""

import logging
import weakref
from typing import Any, List

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger

from ..errors import InputError
from .atomic_checkpoints import AtomicCheckpointer
from .end_training import EndTraining
from .full_disk import TolerantWriter, tolerate_full_disk
from .nonfinite import NonFiniteLoss
from .preemption import Preemption
from .step_seeds import StepSeeds
from .train_step import AMPTrainStep, TrainStep


class FaultTolerantTrainer(DefaultTrainer):
    """``DefaultTrainer`` that goes on after faults as if there had been none.

    Its steps are :class:`TrainStep`'s, its checkpoints :class:`AtomicCheckpointer`'s.
    """

    def __init__(self, cfg: CfgNode):
        """Assemble what ``DefaultTrainer`` does, with our training step and checkpointer."""
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        network = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, network)
        devices = {"device_ids": None} if cfg.MODEL.DEVICE == "cpu" else {}
        model = create_ddp_model(network, broadcast_buffers=False, **devices)
        self._trainer = (AMPTrainStep if cfg.SOLVER.AMP.ENABLED else TrainStep)(
            *(model, self.build_train_loader(cfg), optimizer),
            accumulate=cfg.SOLVER.ACCUMULATE,
            skip_nonfinite=cfg.SOLVER.SKIP_NONFINITE,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = AtomicCheckpointer(
            model, cfg.OUTPUT_DIR, cfg.SOLVER.ON_FULL_DISK, trainer=weakref.proxy(self)
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self._preemption = Preemption()
        self.register_hooks(self.build_hooks())

    def train(self) -> Any:
        """Train from ``start_iter`` on; on a stop signal or an error, save what is worth it.

        Raises:
            SystemExit: a signal asked to stop; with the code ``stop_signals.STOPPED``.
            InputError: the loss is not finite, the disk is full, or an input cannot be used.
        """
        tolerate_full_disk()
        with self._preemption.handling_signals():
            try:
                return super().train()
            except EndTraining as end:
                self._save_before_end(end)
                raise end.error from None
            finally:
                self._trainer.end_workers()

    def _save_before_end(self, end: EndTraining) -> None:
        # After the last iteration there is model_final.pth.
        if end.checkpoint is not None and self.start_iter <= end.checkpoint < self.max_iter - 1:
            self.iter = end.checkpoint
            if comm.is_main_process():
                self.checkpointer.save(f"model_{self.iter:07d}")
        if end.on_all_ranks:
            comm.synchronize()
            if not comm.is_main_process() and isinstance(end.error, InputError):
                raise SystemExit(1)  # one rank says why

    def run_step(self) -> None:
        try:
            super().run_step()
        except NonFiniteLoss as error:
            skipped = self.cfg.SOLVER.SKIP_NONFINITE
            way_out = (
                f"SOLVER.SKIP_NONFINITE {skipped} is used up: take a lower SOLVER.BASE_LR"
                if skipped
                else "Take a lower SOLVER.BASE_LR, or skip such steps by SOLVER.SKIP_NONFINITE"
            )
            end = InputError(f"{error}. {way_out}")
            raise EndTraining(end, self.iter - 1, on_all_ranks=True) from error
        except InputError as error:
            raise EndTraining(error) from error

    def after_step(self) -> None:
        try:
            super().after_step()
        except InputError as error:
            raise EndTraining(error) from error

    def after_train(self) -> None:
        """Detectron2's; a training that ended before its last iteration is not evaluated."""
        if self.iter < self.max_iter:
            self._hooks: List[HookBase] = [
                hook for hook in self._hooks if not isinstance(hook, hooks.EvalHook)
            ]
        super().after_train()

    def build_hooks(self) -> List[HookBase]:
        """Detectron2's hooks, seeds of the steps, and stop signals before evaluations."""
        stock = [hook for hook in super().build_hooks() if not isinstance(hook, hooks.EvalHook)]
        evaluation = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
        return [StepSeeds(self.cfg.SEED), *stock, self._preemption, evaluation]

    def build_writers(self) -> List[EventWriter]:
        """Detectron2's, which a full disk does not stop."""
        return [TolerantWriter(writer) for writer in super().build_writers()]

    def _evaluate(self) -> Any:
        with self._preemption.evaluating():
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results
