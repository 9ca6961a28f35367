#!/usr/bin/env python
"""Train or evaluate a detector."""

from tde_det import cli
from tde_det.stop_signals import exit_when_asked

EXAMPLE = "train_net.py --config-file configs/lvis_cascade_tde.yaml --num-gpus 8"


def parse_args():
    parser = cli.make_parser(__doc__, EXAMPLE)
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR"
    )
    cli.add_launch_options(parser)
    return cli.parse_args(parser)


@cli.exit_on_input_error
def main(args):
    exit_when_asked()
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    from tde_det.engine import Trainer, load_model, setup

    cfg = setup(args)
    if args.eval_only:
        model = load_model(cfg, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_tta(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = parse_args()
    exit_when_asked()
    from tde_det.engine import launch_cli

    launch_cli(main, arguments)
