#!/usr/bin/env python
"""Convert a results file for other tools: COCO data set json, FiftyOne labels, CVAT xml."""

from tde_det import cli
from tde_det.errors import InputError

EXAMPLE = (
    "convert_results.py --json-file lvis_v1_val.json --format cvat --score-threshold 0.3 \\\n"
    "      --results lvis_instances_results.json --output annotations.xml"
)


def parse_args():
    parser = cli.make_plain_parser(__doc__, EXAMPLE)
    parser.add_argument("--json-file", required=True, help="annotations, such as lvis_v1_val.json")
    parser.add_argument("--results", required=True, help="such as lvis_instances_results.json")
    parser.add_argument(
        "--format",
        choices=("coco", "fiftyone", "cvat"),
        required=True,
        help='coco: a data set json with scores; fiftyone: labels.json (boxes); cvat: "CVAT for '
        'images 1.1" (masks as masks)',
    )
    parser.add_argument("--output", required=True, help="the file to write")
    parser.add_argument("--score-threshold", type=float, default=0.05, help="default: 0.05")
    return parser.parse_args()


@cli.exit_on_input_error
def main():
    args = parse_args()
    import os

    from tde_det.data.categories import complete_categories
    from tde_det.data.lvis_json import read_lvis_json
    from tde_det.evaluation import read_detections
    from tde_det.evaluation.convert import FORMATS
    from tde_det.output_files import check_writable

    for path in (args.json_file, args.results):
        if os.path.realpath(args.output) == os.path.realpath(path):
            raise InputError(f"--output {args.output} would overwrite what is converted")
    check_writable(args.output)
    data = read_lvis_json(args.json_file)
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    detections = read_detections(args.results, sizes)
    if detections.boxes is None:
        raise InputError(f"{args.results} has masks only; converting needs 'bbox' too")
    categories = complete_categories(data)
    detections = detections[detections.scores >= args.score_threshold]
    for kind, ids, known in (
        ("image", detections.image_ids, sizes),
        ("category", detections.category_ids, {category["id"] for category in categories}),
    ):
        unknown = set(ids.tolist()) - set(known)
        if unknown:
            raise InputError(
                f"{args.results} has detections of {kind} {min(unknown, key=str)}, which "
                f"{args.json_file} does not list"
            )
    text = FORMATS[args.format](data["images"], categories, detections)
    with open(args.output, "w", encoding="utf-8") as f:
        f.write(text)
    print(
        f"{len(detections):,} detections with a score of at least {args.score_threshold:g} are in "
        f"{args.output}"
    )


if __name__ == "__main__":
    main()
