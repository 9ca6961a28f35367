#!/usr/bin/env python
"""Evaluate many inference settings of one model from one forward pass per image."""

import os
import sys

from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from tde_det.data.class_counts import class_counts
from tde_det.engine import Trainer, exit_on_input_error, launch_cli, setup
from tde_det.engine.checkpoints import FittingCheckpointer, readable_checkpoint
from tde_det.engine.checks import check_files, check_num_classes
from tde_det.evaluation import METRICS, format_table
from tde_det.evaluation.sweep import best, sweep
from tde_det.inference.settings import list_settings


def parse_args():
    parser = default_argument_parser()
    parser.description = __doc__
    group = parser.add_argument_group(
        "settings, each a row of the table", "What one does not name stays as in the config."
    )
    group.add_argument("--alpha", type=float, nargs="+", default=[], help="MODEL.TDE.ALPHA")
    group.add_argument("--auto-alpha", action="store_true", help="MODEL.TDE.AUTO_ALPHA")
    group.add_argument(
        "--not-exempt",
        action="store_true",
        help="these once more with MODEL.TDE.BACKGROUND_EXEMPT False",
    )
    group.add_argument("--tau-norm", type=float, nargs="+", default=[], help="τ of τ-normalisation")
    group.add_argument("--norcal", type=float, nargs="+", default=[], help="γ of NorCal")
    parser.add_argument("--output", help="folder of sweep.csv and sweep.png (default: OUTPUT_DIR)")
    argv, keys = sys.argv[1:], get_cfg()
    first = next((i for i, word in enumerate(argv) if word.split(".")[0] in keys), len(argv))
    args = parser.parse_args(argv[:first])  # or else the last list of values would go on
    args.opts += argv[first:]
    args.eval_only = True
    return args


@exit_on_input_error
def main(args):
    settings = list_settings(
        args.alpha, args.auto_alpha, args.not_exempt, args.tau_norm, args.norcal
    )
    cfg = setup(args)
    counts = None
    if args.norcal:
        check_files(cfg.DATASETS.TRAIN)
        check_num_classes(cfg, cfg.DATASETS.TRAIN)
        counts = class_counts(cfg.DATASETS.TRAIN, cfg.MODEL.ROI_HEADS.NUM_CLASSES).images
    model = Trainer.build_model(cfg)
    checkpointer = FittingCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    with readable_checkpoint(cfg.MODEL.WEIGHTS or cfg.OUTPUT_DIR):
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    for name in cfg.DATASETS.TEST:
        folder = args.output or cfg.OUTPUT_DIR
        if len(cfg.DATASETS.TEST) > 1:
            folder = os.path.join(folder, name)
        loader = Trainer.build_test_loader(cfg, name)
        backend = cfg.TEST.LVIS_BACKEND
        results = sweep(model, loader, name, settings, folder, counts=counts, backend=backend)
        if not comm.is_main_process():
            continue
        for task in next(iter(results.values()), {}):
            rows = {str(setting): metrics[task] for setting, metrics in results.items()}
            print(f"\n{name}, {task}:\n{format_table(rows, METRICS)}")
            print(f"The highest AP: {best(results, task)}")
        print(f"\nThe table is in {folder}/sweep.csv, the plot in sweep.png")


if __name__ == "__main__":
    launch_cli(main, parse_args())
