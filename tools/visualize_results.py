#!/usr/bin/env python
"""Draw predictions beside ground truth, or those of two models beside it.

An image that cannot be read is skipped; the last line then names it, and the exit code is 1.
"""

import os

from tde_det import cli
from tde_det.errors import InputError

EXAMPLE = (
    "visualize_results.py --dataset lvis_v1_val --output pictures \\\n"
    "      --results output/inference/lvis_instances_results.json"
)


def panel(text):
    """``TITLE=FILE``, or a file alone, which is called after its OUTPUT_DIR."""
    title, _, path = text.rpartition("=")
    folders = [n for n in os.path.abspath(path).split(os.sep)[:-1] if n != "inference"]
    return title or folders[-1], path


def parse_args():
    parser = cli.make_parser(__doc__, EXAMPLE, config_file="")
    parser.add_argument(
        "--dataset", required=True, help="a registered name, or an LVIS-format json"
    )
    parser.add_argument("--image-root", help="folder of the images, if --dataset is a json")
    parser.add_argument(
        *("--results",),
        required=True,
        type=panel,
        metavar="[TITLE=]FILE",
        help="lvis_instances_results.json",
    )
    parser.add_argument(
        *("--compare",),
        nargs="+",
        type=panel,
        default=[],
        metavar="[TITLE=]FILE",
        help="more results, each in a panel to the right: "
        "--results factual=a.json --compare TDE=b.json",
    )
    parser.add_argument(
        *("--by-gain",),
        action="store_true",
        help="with --compare: first the images where the last results find more rare objects",
    )
    parser.add_argument("--format", choices=("jpg", "png", "pdf"), default="jpg")
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument("--limit", type=int, default=50, help="images drawn at most (default: 50)")
    parser.add_argument("--score-threshold", type=float, default=0.3, help="default: 0.3")
    parser.add_argument("--max-per-class", type=int, default=5, help="per image (default: 5)")
    parser.add_argument(
        "--duplicate-iou", type=float, default=0.7, help="of boxes of any class (default: 0.7)"
    )
    return cli.parse_args(parser)


@cli.exit_on_input_error
def main():
    args = parse_args()
    from tde_det.data import register_custom_sets, register_lvis_json
    from tde_det.engine import read_config
    from tde_det.engine.checks import check_files
    from tde_det.visualization import draw_results

    register_custom_sets(read_config(args.config_file, args.opts), check_images=False)
    if args.dataset.endswith(".json"):
        if not args.image_root:
            raise InputError("--dataset is a json: say with --image-root where its images are")
        register_lvis_json(args.dataset, args.dataset, args.image_root, check_images=False)
    check_files([args.dataset])
    results = dict([args.results, *args.compare])
    if len(results) <= len(args.compare):
        raise InputError("--compare: give every file a TITLE= of its own")
    if not args.compare:
        results = {"predictions": args.results[1]}
    paths = draw_results(
        args.dataset,
        results,
        args.output,
        limit=args.limit,
        extension=args.format,
        by_gain=args.by_gain,
        score_threshold=args.score_threshold,
        max_per_class=args.max_per_class,
        duplicate_iou=args.duplicate_iou,
    )
    print(f"{len(paths)} pictures are in {args.output}")


if __name__ == "__main__":
    main()
