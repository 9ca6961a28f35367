#!/usr/bin/env python
"""Train or evaluate a detector; the command line is Detectron2's own."""

from detectron2.engine import default_argument_parser, hooks
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from tde_det.engine import Trainer, exit_on_input_error, launch_cli, setup
from tde_det.engine.checkpoints import FittingCheckpointer, readable_checkpoint


@exit_on_input_error
def main(args):
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = FittingCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        with readable_checkpoint(cfg.MODEL.WEIGHTS or cfg.OUTPUT_DIR):
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_tta(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks(
            [hooks.EvalHook(0, lambda: trainer.test_with_tta(cfg, trainer.model))]
        )
    return trainer.train()


if __name__ == "__main__":
    launch_cli(main, default_argument_parser().parse_args())
