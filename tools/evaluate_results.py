#!/usr/bin/env python
"""Evaluate a results file against LVIS-format annotations: no model, no registered data set."""

import os

from tde_det import cli
from tde_det.errors import InputError

EXAMPLE = (
    "evaluate_results.py --json-file lvis_v1_val.json \\\n"
    "      --results lvis_instances_results.json --output metrics.json"
)


def parse_args():
    parser = cli.make_plain_parser(__doc__, EXAMPLE)
    parser.add_argument("--json-file", required=True, help="annotations, such as lvis_v1_val.json")
    parser.add_argument("--results", required=True, help="such as lvis_instances_results.json")
    parser.add_argument(
        *("--tasks", "-t"),
        nargs="+",
        choices=("bbox", "segm"),
        help="default: bbox, and segm if the results have masks",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="metrics.json to write, with per_category_ap.csv beside it (default: print only)",
    )
    parser.add_argument(
        "--ap-fixed",
        action="store_true",
        help="AP-fixed too: 10,000 detections per class, no limit per image (Dave et al., 2021)",
    )
    parser.add_argument(
        "--ap-pool",
        action="store_true",
        help="AP-pool too: AP-fixed's detections of all classes ranked together (same paper)",
    )
    parser.add_argument(
        "--calibration",
        action="store_true",
        help="expected calibration errors too: 15 bins of the score, IoU 0.5, 300 detections per "
        "image; the bins go into reliability.csv beside --output",
    )
    parser.add_argument(
        "--boundary", action="store_true", help="boundary AP too (Cheng et al., 2021)"
    )
    parser.add_argument(
        "--backend", choices=("hotcoco", "lvis"), default="hotcoco", help="default: hotcoco"
    )
    return parser.parse_args()


@cli.exit_on_input_error
def main():
    args = parse_args()
    from detectron2.utils.logger import setup_logger

    from tde_det.data.categories import complete_categories
    from tde_det.data.lvis_json import read_lvis_json
    from tde_det.evaluation import format_table, read_detections, report_lvis

    setup_logger(name="tde_det")
    for path in (args.json_file, args.results):
        if args.output and os.path.realpath(args.output) == os.path.realpath(path):
            raise InputError(f"--output {args.output} would overwrite what is evaluated")
    ground_truth = read_lvis_json(args.json_file)
    if not ground_truth["annotations"]:
        raise InputError(f"{args.json_file} has no annotations: nothing to measure")
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    detections = read_detections(args.results, sizes)
    tasks = args.tasks or (["bbox", "segm"] if detections.masks is not None else ["bbox"])
    results = report_lvis(
        ground_truth,
        complete_categories(ground_truth),
        detections,
        [*dict.fromkeys(tasks), *(["boundary"] if args.boundary else [])],
        args.output,
        args.backend,
        args.ap_fixed,
        args.ap_pool,
        args.calibration,
    )
    print(format_table(results))
    if args.output:
        print(f"Metrics are in {args.output}, the AP of every category in per_category_ap.csv")


if __name__ == "__main__":
    main()
