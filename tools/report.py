#!/usr/bin/env python
"""Make a page that compares runs: which classes improved, what changed in the images, and why.

A RUN is an output folder of tools/train_net.py, or a results file; NAME=PATH gives it a name. The
first one is what the others are compared with. One run with a de-confounded model is compared with
itself, at α = 0 and with TDE, from one pass over the images. The page is a folder: open index.html
in a browser, from disk. KEY VALUE pairs change the runs' configs.
"""

from tde_det import cli

EXAMPLE = (
    "report.py output/lvis_cascade_tde --output report\n"
    "  report.py baseline=output/baseline tde=output/lvis_cascade_tde --output report\n"
    "  report.py A=a.json B=b.json --annotations lvis_v1_val.json --images coco --output report"
)


def parse_args():
    parser = cli.make_plain_parser(__doc__, EXAMPLE)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="see above")
    parser.add_argument("--output", required=True, help="folder of the page")
    parser.add_argument("--dataset", default="", help="registered name (default: DATASETS.TEST)")
    parser.add_argument("--annotations", metavar="JSON", default="", help="or such a file")
    parser.add_argument("--images", metavar="FOLDER", default="", help="of --annotations")
    parser.add_argument(
        "--no-model", action="store_true", help="leave checkpoints alone: results files only"
    )
    parser.add_argument(
        "--model-images",
        type=int,
        default=100,
        help="images to measure cosines on, 0 for none (default: 100)",
    )
    parser.add_argument(
        "--resamples", type=int, default=200, help="of the images, for intervals (default: 200)"
    )
    parser.add_argument(
        "--min-score", type=float, default=0.05, help="of detections drawn (default: 0.05)"
    )
    parser.add_argument(
        "--per-image", type=int, default=40, help="detections drawn at most (default: 40)"
    )
    return cli.parse_args(parser)


@cli.exit_on_input_error
def main():
    args = parse_args()
    from detectron2.utils.logger import setup_logger

    from tde_det.errors import InputError
    from tde_det.report import Options, Shown, build_report

    for word in args.opts[::2]:
        if "=" in word:  # what other tools take for a change to a .py config
            raise InputError(f"{word}: give the run a name without a dot")
    setup_logger(distributed_rank=0, name="tde_det")
    options = Options(
        args.dataset,
        args.annotations,
        args.images,
        args.opts,
        not args.no_model,
        args.model_images,
        args.resamples,
        Shown(args.min_score, args.per_image),
    )
    print(f"The page is {build_report(args.runs, args.output, options)}")


if __name__ == "__main__":
    main()
