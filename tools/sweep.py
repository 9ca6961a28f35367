#!/usr/bin/env python
"""Evaluate many chains of adjustments of one model from one forward pass per image.

A chain is one or more adjustments with their options, joined by +. It is all that is applied: a
chain without tde is one without TDE, and "none" applies nothing. Several values of an option stand
for as many chains. Adjustments: tde alpha, auto_alpha; tau_norm tau; norcal gamma, count_instances;
logit_adjustment tau; fracal strength; ncm temperature (its means must be in the checkpoint). All
keep the background's probability; exempt=false takes the method's own formula. An option that is
not named has the value of MODEL.TDE or of the checkpoint, else the default of docs/methods.md.
"""

import os

from tde_det import cli

EXAMPLE = (
    "sweep.py --config-file configs/lvis_cascade_tde.yaml MODEL.WEIGHTS model_final.pth \\\n"
    '      --adjust "tde alpha=0,0.5,1,1.5" "tde alpha=0.5,1 + norcal gamma=0.1,0.3" fracal'
)


def parse_args():
    parser = cli.make_parser(__doc__, EXAMPLE)
    parser.add_argument("--adjust", metavar="CHAIN", nargs="+", required=True, help="see above")
    parser.add_argument("--output", help="folder of sweep.csv and sweep.png (default: OUTPUT_DIR)")
    cli.add_launch_options(parser)
    return cli.parse_args(parser)


@cli.exit_on_input_error
def main(args):
    from detectron2.utils import comm

    from tde_det.adjustments import parse_chains
    from tde_det.engine import Trainer, load_model, setup_tool
    from tde_det.evaluation import METRICS, format_table
    from tde_det.evaluation.sweep import sweep
    from tde_det.evaluation.sweep_table import best
    from tde_det.modeling.build import errors_name

    with errors_name("--adjust"):
        chains = [chain for text in args.adjust for chain in parse_chains(text)]
    cfg = setup_tool(args.config_file, args.opts, ["test data", "weights"])
    model = load_model(cfg)
    for name in cfg.DATASETS.TEST:
        folder = args.output or cfg.OUTPUT_DIR
        if len(cfg.DATASETS.TEST) > 1:
            folder = os.path.join(folder, name)
        loader = Trainer.build_test_loader(cfg, name)
        results = sweep(cfg, model, loader, name, chains, folder)
        if not comm.is_main_process():
            continue
        for task in next(iter(results.values()), {}):
            rows = {title: metrics[task] for title, metrics in results.items()}
            print(f"\n{name}, {task}:\n{format_table(rows, METRICS)}")
            print(f"The highest AP has: {best(results, task)}")
        print(f"\nThe table is in {folder}/sweep.csv, the plot in sweep.png")


if __name__ == "__main__":
    arguments = parse_args()
    from tde_det.engine import launch_cli

    launch_cli(main, arguments)
