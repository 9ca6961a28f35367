#!/usr/bin/env python
"""Convert a checkpoint of the authors' lvis1.0 code (mmdet 2.4) for tde_det.

Writes the weights and, beside them, the config that goes with them, for
tools/train_net.py --eval-only --config-file model.yaml. The architecture is that of --config-file;
the authors' X101 is lvis_cascade_tde_X101.yaml with
MODEL.RESNETS.NUM_GROUPS 64 MODEL.RESNETS.WIDTH_PER_GROUP 4.
"""

import os

from tde_det import cli
from tde_det.errors import InputError

CONFIG = os.path.join(os.path.dirname(__file__), "../configs/lvis_cascade_tde.yaml")
EXAMPLE = (
    "convert_reference.py --output model.pth \\\n"
    "      MODEL.WEIGHTS work_dirs/htc_r101_fpn_20e_causal/latest.pth"
)


def parse_args():
    parser = cli.make_parser(__doc__, EXAMPLE, CONFIG)
    parser.add_argument(
        "--output",
        metavar="FILE",
        required=True,
        help="model.pth or model.safetensors to write, with model.yaml beside",
    )
    return cli.parse_args(parser)


@cli.exit_on_input_error
def main():
    args = parse_args()
    from detectron2.modeling import build_model
    from detectron2.utils.logger import setup_logger

    from tde_det.engine import read_config
    from tde_det.engine.mmdet_checkpoint import (
        convert_mmdet_checkpoint,
        mmdet_conventions,
        read_mmdet_checkpoint,
    )
    from tde_det.engine.value_checks import errors_name_section
    from tde_det.output_files import check_writable
    from tde_det.weight_files import write_weights

    setup_logger(name="tde_det")
    yaml_file = os.path.splitext(args.output)[0] + ".yaml"
    if args.output == yaml_file:
        raise InputError(f"--output {args.output} is the config's name: give model.pth, say")
    for path in (args.output, yaml_file):
        if os.path.exists(path):
            raise InputError(f"{path} exists already: name another --output, or delete it")
        check_writable(path)
    if "MODEL.WEIGHTS" not in args.opts:  # the config file's are others
        raise InputError("no checkpoint is named: add MODEL.WEIGHTS latest.pth")
    cfg = read_config(args.config_file, args.opts)
    state = read_mmdet_checkpoint(cfg.MODEL.WEIGHTS)
    conventions = mmdet_conventions(cascade="Cascade" in cfg.MODEL.ROI_HEADS.NAME)
    cfg.merge_from_list(conventions)
    cfg.MODEL.DEVICE, device = "cpu", cfg.MODEL.DEVICE
    with errors_name_section(cfg, "MODEL"):
        model = build_model(cfg)
    converted, left_out = convert_mmdet_checkpoint(state, model)

    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device, args.output
    write_weights(args.output, converted, cfg.dump())
    with open(yaml_file, "w") as f:
        f.write(cfg.dump())
    print(f"{len(converted)} tensors are in {args.output}, the config is {yaml_file}.\nIt sets:")
    for key, value in zip(conventions[::2], conventions[1::2]):
        print(f"  {key} {value}")
    print("Left out: all num_batches_tracked, which frozen batch norm has no use for")
    for head in sorted({".".join(key.split(".")[:3]) for key in left_out if "mask_head" in key}):
        print(f"Left out: {head}, since Detectron2's cascade has a single mask head")
    if any(key.endswith("causal_embed") for key in state):
        print(
            "causal_embed is now feature_mean. The authors' code averages background boxes into "
            "it; tools/calibrate.py --adjust tde measures the foreground's mean on training data."
        )


if __name__ == "__main__":
    main()
