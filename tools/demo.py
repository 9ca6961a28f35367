#!/usr/bin/env python
"""Run a trained detector on images, folders of images or videos, and save pictures.

A file that cannot be read is skipped; the last line then names it, and the exit code is 1.
"""

import os
import sys

import cv2
from tqdm import tqdm

from tde_det import cli
from tde_det.errors import InputError

EXAMPLE = (
    "demo.py --config-file configs/lvis_cascade_tde.yaml --input street.jpg clip.mp4 folder/ \\\n"
    "      --output pictures MODEL.WEIGHTS model_final.pth"
)


def parse_args():
    parser = cli.make_parser(__doc__, EXAMPLE)
    parser.add_argument(
        "--input",
        nargs="+",
        default=[],
        help="images, videos, or folders of images (.jpg, .png, .bmp, .webp, .tif; not subfolders)",
    )
    parser.add_argument("--output", help="folder for the pictures")
    parser.add_argument(
        *("--serve",),
        nargs="?",
        type=int,
        const=7860,
        metavar="PORT",
        help="instead, a web page on which adjustments can be tried on any image (port: 7860)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="of --serve; 0.0.0.0 opens it to the network"
    )
    parser.add_argument("--score-threshold", type=float, default=0.3, help="default: 0.3")
    parser.add_argument("--max-per-class", type=int, default=10, help="per image (default: 10)")
    parser.add_argument(
        "--duplicate-iou", type=float, default=0.7, help="of boxes of any class (default: 0.7)"
    )
    return cli.parse_args(parser)


def draw_image(source, target, draw):
    """Draw an image file."""
    from tde_det.data.read_image import read_image

    cv2.imwrite(target, draw(read_image(source)))


def draw_video(source, target, draw):
    """Draw every frame of a video file."""
    video = cv2.VideoCapture(source)
    rate = video.get(cv2.CAP_PROP_FPS)
    frames = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
    writer = None
    for _ in tqdm(iter(lambda: video.grab(), False), os.path.basename(source), frames or None):
        picture = draw(video.retrieve()[1], room_below=0.15)  # all frames are of one size
        # Video codecs take even sizes only.
        picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
        if writer is None:
            size = picture.shape[1::-1]
            writer = cv2.VideoWriter(target, cv2.VideoWriter_fourcc(*"mp4v"), rate or 25, size)
        writer.write(picture)
    video.release()
    if writer is None:
        raise InputError(f"--input {source} is neither an image nor a video that OpenCV can read")
    writer.release()


def serve(args):
    """Open the live page, until interrupted."""
    from tde_det.engine import setup_tool
    from tde_det.live.page import Live, serve

    cfg = setup_tool(args.config_file, args.opts, ["class names", "weights"])
    serve(Live(cfg), cfg.MODEL.TDE.ALPHA, args.host, args.serve)


@cli.exit_on_input_error
def main():
    args = parse_args()
    if args.serve is not None:
        return serve(args)
    if not (args.input and args.output):
        raise InputError("give --input and --output, or --serve")
    from tde_det.visualization.inputs import IMAGES, list_files

    files = list(list_files(args.input))
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json

    from tde_det.data.categories import categories_of
    from tde_det.engine import Predictor, setup_tool
    from tde_det.output_files import check_writable
    from tde_det.visualization import draw_panels, pixels, select_readable

    cfg = setup_tool(args.config_file, args.opts, ["class names", "weights"])
    categories = categories_of(cfg.DATASETS.TEST[0])
    by_id = {category["id"]: category for category in categories}
    predictor = Predictor(cfg)

    def draw(image, room_below=None):
        """Picture with predictions, of a ``uint8[H, W, 3]`` BGR image; BGR again."""
        detections = instances_to_coco_json(predictor(image)["instances"].to("cpu"), 0)
        for detection in detections:
            detection["category_id"] = categories[detection["category_id"]]["id"]
        selected = select_readable(
            detections, args.score_threshold, args.max_per_class, args.duplicate_iou
        )
        figure = draw_panels(image[..., ::-1], {"predictions": selected}, by_id, room_below)
        return pixels(figure)[..., ::-1]

    targets, failed = set(), []
    for path in tqdm(files, unit="file"):
        stem, extension = os.path.splitext(os.path.basename(path))
        name, number = f"{stem}_predictions", 1
        while name in targets:  # files of equal names in different folders
            number += 1
            name = f"{stem}_{number}_predictions"
        targets.add(name)
        is_image = extension.lower() in IMAGES
        target = os.path.join(args.output, name + (".jpg" if is_image else ".mp4"))
        check_writable(target)
        try:
            (draw_image if is_image else draw_video)(path, target, draw)
        except InputError as error:
            named = "" if path in str(error) else f"--input {path}: "
            tqdm.write(f"warning: {named}{error}", sys.stderr)
            failed.append(path)
    if len(failed) < len(files):
        print(f"Pictures are in {args.output}")
    if failed:
        raise InputError(f"{len(failed)} of {len(files)} files are skipped: {', '.join(failed)}")


if __name__ == "__main__":
    main()
