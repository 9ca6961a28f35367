#!/usr/bin/env python
"""Train one model of the benchmark, in as many pieces as it takes; run.py calls this.

Like tools/train_net.py --resume, but it saves and stops at a time, or when its caller has gone, and
keeps one earlier state: the last before the learning rate decays, from which a longer training goes
on. Exit status: 0 done, 3 to be continued, 4 the loss has become infinite.
"""

import json
import multiprocessing
import shutil
import sys
import time
from pathlib import Path
from typing import Dict

import torch
from detectron2.engine import HookBase

from tde_det import cli

HERE = Path(__file__).parent
EXAMPLE = (
    "train.py --config-file benchmarks/longtail/small.yaml DATASETS.TRAIN \"('mini_lvis_train',)\" "
    "OUTPUT_DIR output/longtail/try SOLVER.MAX_ITER 100"
)
DONE, CONTINUE, DIVERGED = 0, 3, 4
BEFORE_DECAY = "before_decay.pth"
CLOCKS = {"seconds": time.time, "cpu_seconds": time.process_time}


def start_from(folder: Path, shorter: Path) -> None:
    """Let a training go on from where a shorter one with the same rate began to decay.

    Until there both are the same training: nothing but the decay depends on the length.
    """
    if not (folder / "last_checkpoint").exists() and (shorter / BEFORE_DECAY).exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(shorter / BEFORE_DECAY, folder / "start.pth")
        (folder / "last_checkpoint").write_text("start.pth")


class Stopped(Exception):
    """The time is over."""


class Pieces(HookBase):
    """Saves the state every ``period`` iterations, before the first decay, and at the end of time.

    Args:
        until: seconds since the epoch.
        period: iterations.
        before_decay: iterations after which the state is kept.
    """

    def __init__(self, until: float, period: int, before_decay: int):
        self._until, self._period, self._before_decay = until, period, before_decay
        self._caller = multiprocessing.parent_process()
        self._spent = {name: 0.0 for name in CLOCKS}
        self._since = {name: clock() for name, clock in CLOCKS.items()}

    def state_dict(self) -> Dict[str, float]:
        """Seconds spent so far."""
        for name, clock in CLOCKS.items():
            now = clock()
            self._spent[name] += now - self._since[name]
            self._since[name] = now
        return dict(self._spent)

    def load_state_dict(self, state: Dict[str, float]) -> None:
        self._spent = dict(state)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self._before_decay:
            self._save(BEFORE_DECAY.removesuffix(".pth"))
        is_over = time.time() >= self._until
        is_over |= self._caller is not None and not self._caller.is_alive()
        if done < self.trainer.max_iter and (is_over or done % self._period == 0):
            # Never over the state that a resumed training would start from.
            last = Path(self.trainer.cfg.OUTPUT_DIR, "last_checkpoint")
            in_a = last.exists() and last.read_text().strip() == "state_a.pth"
            self._save("state_b" if in_a else "state_a")
            if is_over:
                raise Stopped

    def _save(self, name: str) -> None:
        self.trainer.checkpointer.save(name, iteration=self.trainer.iter)


def parse_args():
    parser = cli.make_parser(__doc__, EXAMPLE)
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds since the epoch")
    heads = "backbone, FPN and RPN stay as they are in MODEL.WEIGHTS; FOLDER keeps their outputs"
    parser.add_argument("--heads-alone", type=Path, metavar="FOLDER", help=heads)
    parser.add_argument("--period", type=int, default=100, help="iterations between two saves")
    args = cli.parse_args(parser)
    args.eval_only, args.resume = False, True
    args.opts += ["DATASETS.TEST", "()"]  # evaluations are steps of their own
    return args


@cli.exit_on_input_error
def main(args) -> int:
    from tde_det.engine import Trainer, setup
    from tde_det.output_files import check_writable

    sys.path[0] = str(HERE.parent)  # of the package longtail
    from longtail.frozen import trainer_of_heads

    cfg = setup(args)
    tag = Path(cfg.OUTPUT_DIR, "last_checkpoint")
    if tag.exists() and not tag.read_text().strip():  # killed between opening and writing it
        tag.unlink()
    check_writable(str(tag))
    trainer = (trainer_of_heads(args.heads_alone) if args.heads_alone else Trainer)(cfg)
    trainer.model.to(memory_format=torch.channels_last)  # a sixth faster on a CPU
    # A step's rate is set after the step before it.
    before_decay = min(cfg.SOLVER.STEPS, default=0) - 1
    pieces = Pieces(args.until, args.period, before_decay)
    trainer.register_hooks([pieces])
    trainer.resume_or_load(resume=True)
    # On a CPU, where Detectron2 has no AMP. A step is a third faster, or many times slower where
    # the CPU cannot compute in bfloat16.
    has_bfloat16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    half_precision = cfg.MODEL.DEVICE == "cpu" and has_bfloat16
    try:
        # A cache of half-precision weights would outlive the step that they are from.
        with torch.autocast("cpu", torch.bfloat16, half_precision, cache_enabled=False):
            trainer.train()
    except Stopped:
        return CONTINUE
    except FloatingPointError:
        return DIVERGED
    Path(cfg.OUTPUT_DIR, "spent.json").write_text(json.dumps(pieces.state_dict()))
    return DONE


if __name__ == "__main__":
    arguments = parse_args()
    sys.exit(main(arguments))
