#!/usr/bin/env python
"""Show where in a box the evidence for its class lies, without and with the model's adjustments.

A row of the sheet is a detection: the box, Grad-CAM of the class's factual logit, Grad-CAM of the
adjusted one (TDE's, if the config says no more), each with the last box stage's probability.
"""

from tde_det import cli
from tde_det.errors import InputError

EXAMPLE = (
    "visualize_activation.py --config-file configs/lvis_cascade_tde.yaml --input street.jpg \\\n"
    "      --output activation.png MODEL.WEIGHTS model_final.pth"
)


def parse_args():
    parser = cli.make_parser(__doc__, EXAMPLE)
    parser.add_argument("--input", nargs="+", required=True, help="images or folders of images")
    parser.add_argument("--output", required=True, help="the sheet: a .png, .jpg or .pdf file")
    parser.add_argument(
        "--best",
        type=int,
        default=8,
        metavar="N",
        help="the N detections whose probability the adjustment changes most (default: 8)",
    )
    parser.add_argument("--score-threshold", type=float, default=0.1, help="default: 0.1")
    return cli.parse_args(parser)


@cli.exit_on_input_error
def main():
    args = parse_args()
    if args.best < 1:
        raise InputError(f"--best must be at least 1, got {args.best}")
    if not args.output.lower().endswith((".png", ".jpg", ".pdf")):
        raise InputError(f"--output {args.output} is neither a .png nor a .jpg nor a .pdf file")
    import heapq

    from tqdm import tqdm

    from tde_det.data.categories import categories_of
    from tde_det.data.read_image import read_image
    from tde_det.engine import Predictor, setup_tool
    from tde_det.modeling import box_predictors
    from tde_det.output_files import check_writable
    from tde_det.visualization.activation import draw_sheet, explain_image
    from tde_det.visualization.inputs import list_files

    files = list(list_files(args.input))
    check_writable(args.output)
    cfg = setup_tool(args.config_file, args.opts, ["class names", "weights"])
    categories = categories_of(cfg.DATASETS.TEST[0])
    predictor = Predictor(cfg)
    examples, failed = [], []
    for path in tqdm(files, unit="file"):
        try:
            image = read_image(path)
        except InputError as error:
            tqdm.write(f"warning: {error}")
            failed.append(path)
            continue
        found = explain_image(predictor, image, args.score_threshold)
        examples = heapq.nlargest(args.best, [*examples, *found], key=lambda e: e.change())
    if examples:
        adjustments = box_predictors(predictor.model)[-1].adjustments
        title = "TDE" if list(adjustments) == ["tde"] else "adjusted"
        draw_sheet(examples, dict(enumerate(categories)), title).savefig(args.output)
        print(f"{len(examples)} detections are in {args.output}")
    else:
        raise InputError(f"no detection has a score of {args.score_threshold} or more")
    if failed:
        raise InputError(f"{len(failed)} of {len(files)} files are skipped: {', '.join(failed)}")


if __name__ == "__main__":
    main()
