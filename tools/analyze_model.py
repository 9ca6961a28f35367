#!/usr/bin/env python
"""Count parameters, FLOPs and activations of a model's parts, and take their time, at inference.

The image is a synthetic one, and weights need not be trained: the ROI heads see as many proposals
(MODEL.RPN.POST_NMS_TOPK_TEST), and the mask head as many detections (TEST.DETECTIONS_PER_IMAGE), as
there may be. No data set is needed.
"""

import re

from tde_det import cli

EXAMPLE = "analyze_model.py --config-file configs/lvis_cascade_tde.yaml --size 800x1333"


def parse_args():
    parser = cli.make_parser(__doc__, EXAMPLE)
    parser.add_argument(
        "--size",
        metavar="HxW",
        help="of the image as the model sees it (default: 480x640 resized as in the config)",
    )
    parser.add_argument("--iterations", type=int, default=5, help="to take the time (default: 5)")
    return cli.parse_args(parser)


@cli.exit_on_input_error
def main():
    args = parse_args()
    import torch
    from detectron2.modeling import build_model

    from tde_det.engine import setup_tool
    from tde_det.engine.analysis import analyze
    from tde_det.engine.sample_image import drawn_image, resized
    from tde_det.engine.value_checks import errors_name_section
    from tde_det.errors import InputError

    size = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", args.size or "480x640")
    if size is None:
        raise InputError(f"--size {args.size} is not of the form 800x1333")
    if args.iterations < 1:
        raise InputError(f"--iterations must be at least 1, got {args.iterations}")
    cfg = setup_tool(args.config_file, args.opts, data=False)
    image = drawn_image(*map(int, size.groups()))
    image = torch.from_numpy(image).permute(2, 0, 1).float() if args.size else resized(cfg, image)
    torch.manual_seed(max(cfg.SEED, 0))
    with errors_name_section(cfg, "MODEL"):
        model = build_model(cfg)
    analysis = analyze(model, [{"image": image}], args.iterations)
    print(f"{args.config_file}\n\n{analysis.table()}")


if __name__ == "__main__":
    main()
