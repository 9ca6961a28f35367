#!/usr/bin/env python
"""Write a checkpoint that carries adjustments: no training, and the same config evaluates it.

tau_norm          divide the class weights of a linear classifier by their norm to the power tau
norcal            divide scores by class counts to the power gamma
logit_adjustment  subtract tau times the log of the class's share of the instances
fracal            divide scores by frequency and by spread over the image
ncm               score by similarity to class means, from one pass over DATASETS.TRAIN; it
                  ignores the logits before it, those of TDE among them
prototypes        add similarity to class means, the more the rarer a class; the same pass
tde               measure the feature mean of TDE, in one pass over DATASETS.TRAIN

Several are joined by +. The new checkpoint carries these adjustments alone. An evaluation applies
TDE first, as strongly as MODEL.TDE says, and then these. All of them keep the background's
probability; exempt=false takes the method's own formula.
"""

import os

from tde_det import cli

EXAMPLE = (
    "calibrate.py --config-file configs/lvis_cascade_baseline.yaml \\\n"
    '      --adjust "norcal gamma=0.6" --output calibrated.pth MODEL.WEIGHTS model_final.pth'
)


def parse_args():
    parser = cli.make_parser(__doc__, EXAMPLE)
    parser.add_argument("--adjust", metavar="CHAIN", required=True, help="see above")
    parser.add_argument(
        "--output", metavar="FILE", required=True, help="checkpoint to write, .pth or .safetensors"
    )
    parser.add_argument("--max-images", type=int, help="of the pass over the images (default: all)")
    some = "only so many of every class, such as 30: rare ones, which matter, are seen whole"
    parser.add_argument("--images-per-class", type=int, help=some)
    balanced = "TDE's mean is that of the class means: no class is most of it"
    parser.add_argument("--class-balanced", action="store_true", help=balanced)
    cli.add_launch_options(parser)
    return cli.parse_args(parser)


@cli.exit_on_input_error
def main(args):
    from detectron2.utils import comm

    from tde_det.adjustments import parse_chains
    from tde_det.engine import load_model, setup_tool
    from tde_det.engine.calibration import calibrate
    from tde_det.engine.checkpoints import activation_of
    from tde_det.errors import InputError
    from tde_det.modeling import box_predictors
    from tde_det.modeling.build import errors_name
    from tde_det.output_files import check_writable
    from tde_det.weight_files import write_weights

    with errors_name("--adjust"):
        chain, *others = parse_chains(args.adjust)
        if others:
            raise InputError(
                f"--adjust {args.adjust!r} has several values; tools/sweep.py takes them"
            )
    for key in ("max_images", "images_per_class"):
        value = getattr(args, key)
        if value is not None and value < 1:
            raise InputError(f"--{key.replace('_', '-')} must be positive, got {value}")
    if comm.is_main_process():  # now, not after a pass over the training set
        if os.path.exists(args.output):
            raise InputError(f"{args.output} exists already: name another --output, or delete it")
        check_writable(args.output)
    needs = [] if {step.name for step in chain} == {"tau_norm"} else ["train data"]
    cfg = setup_tool(args.config_file, args.opts, [*needs, "weights"])
    cfg.VIS_PERIOD = 0
    model = load_model(cfg, use="calibrate")
    limits = args.max_images, args.images_per_class
    for line in calibrate(cfg, model, chain, *limits, args.class_balanced):
        print(line)
    if comm.is_main_process():
        write_weights(args.output, model.state_dict(), cfg.dump(), activation_of(model))
        empty = ' and MODEL.ADJUSTMENTS "[]"' if cfg.MODEL.ADJUSTMENTS else ""
        print(f"{args.output} carries {args.adjust}; use it with the same config{empty}")
        print(f"An evaluation then applies {box_predictors(model)[0].adjustments.describe()}")


if __name__ == "__main__":
    arguments = parse_args()
    from tde_det.engine import launch_cli

    launch_cli(main, arguments)
