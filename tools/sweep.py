#!/usr/bin/env python
"""Evaluate many chains of adjustments of one model from one forward pass per image.

A chain is one or more adjustments with their options, joined by +. It is all that is applied: a
chain without tde is one without TDE, and "none" applies nothing. Several values of an option stand
for as many chains. Adjustments: tde alpha; tau_norm tau; norcal gamma, count_instances;
logit_adjustment tau; fracal strength; ncm temperature and prototypes strength, prior, whose class
means must be in the checkpoint. All keep the background's probability; exempt=false takes the
method's own formula. An option that is not named has the value of MODEL.TDE or of the checkpoint,
else the default of docs/methods.md.

--recommend tries all that mean something for the model, chooses on one part of the images, and
reports on the rest. The model may be Detectron2's own: any whose box predictor is
FastRCNNOutputLayers, with softmax or sigmoid scores.
"""

import os

from tde_det import cli

FEW_IMAGES = 200  # with 102, settings lost on other images what they had gained on these
EXAMPLE = (
    "sweep.py --config-file configs/lvis_cascade_tde.yaml MODEL.WEIGHTS model_final.pth \\\n"
    '      --adjust "tde alpha=0,0.5,1,1.5" "tde alpha=0.5,1 + norcal gamma=0.1,0.3" fracal\n'
    "  sweep.py --config-file cascade_mask_rcnn_vitdet_b_100ep.py --recommend \\\n"
    "      train.init_checkpoint=model_final.pkl"
)


def parse_args():
    parser = cli.make_parser(__doc__, EXAMPLE)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--adjust", metavar="CHAIN", nargs="+", help="see above")
    what.add_argument("--recommend", action="store_true", help="see above")
    parser.add_argument(
        "--choose-on", metavar="PART", type=float, default=0.5, help="of the images (default: 0.5)"
    )
    parser.add_argument("--output", help="folder of the tables (default: OUTPUT_DIR)")
    cli.add_launch_options(parser)
    return cli.parse_args(parser)


def compare(cfg, model, loader, name, chains, folder):
    """Evaluate chains; print and write a table of them."""
    from detectron2.utils import comm

    from tde_det.evaluation import METRICS, format_table
    from tde_det.evaluation.sweep import sweep
    from tde_det.evaluation.sweep_table import best

    results = sweep(cfg, model, loader, name, chains, folder)
    if not comm.is_main_process():
        return
    for task in next(iter(results.values()), {}):
        rows = {title: metrics[task] for title, metrics in results.items()}
        print(f"\n{name}, {task}:\n{format_table(rows, METRICS)}")
        print(f"The highest AP has: {best(results, task)}")
    print(f"\nThe table is in {folder}/sweep.csv, the plot in sweep.png")


def recommend(cfg, model, loader, name, folder, part):
    """Choose adjustments on a part of the images; print what they do on the rest."""
    from tde_det.evaluation import METRICS, format_table
    from tde_det.evaluation.recommend import how_to_use, recommend

    found = recommend(cfg, model, loader, name, folder, part)
    if found is None:
        return
    chosen_on, reported_on = found.num_images
    marks = {found.current: f"{found.current} (as it is)"}
    for task in found.reported["none"]:
        rows = {marks.get(title, title): m[task] for title, m in found.reported.items()}
        print(
            f"\n{name}, {task}: the best setting of each family on {chosen_on} images, measured on "
            f"{reported_on} others:\n{format_table(rows, METRICS)}"
        )
    print(f"\nAll numbers are in {folder}/recommend.csv")
    print(f"The best by {found.task} AP on the {chosen_on} images: {found.chosen}")
    print(f"What it changes on the {reported_on} others; the model as it is: {found.current}")
    before, after = found.reported[found.current], found.reported[found.chosen]
    for task in before:
        changes = {m: after[task][m] - before[task][m] for m in ("AP", "APr", "APc", "APf")}
        print(f"  {task}", *(f"{m} {v:+.2f}" for m, v in changes.items() if v == v), sep="  ")
    # The first of equals: what gains nothing on other images is not worth a change.
    candidates = (found.current, "none", found.chosen)
    use = max(candidates, key=lambda title: found.reported[title][found.task]["AP"])
    why = "" if use == found.chosen else " (what was gained there is not gained on other images)"
    print(f"Recommended: {use}{why}")
    if chosen_on < FEW_IMAGES:
        print(f"{chosen_on} images are few to choose on: a point of AP more or less may be chance")
    print(f"To use it: {how_to_use(cfg, model, use)}")
    print("An evaluation of all images gives other numbers than those of a part")


@cli.exit_on_input_error
def main(args):
    from tde_det.adjustments import parse_chains
    from tde_det.engine import Trainer, load_model, setup_tool
    from tde_det.modeling.build import errors_name

    with errors_name("--adjust"):
        chains = [chain for text in args.adjust or () for chain in parse_chains(text)]
    cfg = setup_tool(args.config_file, args.opts, ["test data", "weights"])
    model = load_model(cfg)
    for name in cfg.DATASETS.TEST:
        folder = args.output or cfg.OUTPUT_DIR
        if len(cfg.DATASETS.TEST) > 1:
            folder = os.path.join(folder, name)
        loader = Trainer.build_test_loader(cfg, name)
        if args.recommend:
            recommend(cfg, model, loader, name, folder, args.choose_on)
        else:
            compare(cfg, model, loader, name, chains, folder)


if __name__ == "__main__":
    arguments = parse_args()
    from tde_det.engine import launch_cli

    launch_cli(main, arguments)
