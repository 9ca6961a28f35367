#!/usr/bin/env python
"""Run a trained detector on images, folders of images or videos, and save pictures."""

import argparse
import os

import cv2
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from tde_det.data import register_custom_sets
from tde_det.data.categories import categories_of
from tde_det.engine import exit_on_input_error, fall_back_to_cpu, read_config
from tde_det.engine.checkpoints import FittingCheckpointer, readable_checkpoint
from tde_det.errors import InputError
from tde_det.visualization import draw_comparison, select_readable

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--input", nargs="+", required=True, help="images, folders or videos")
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument("--score-threshold", type=float, default=0.3)
    parser.add_argument("--max-per-class", type=int, default=10, help="per image")
    parser.add_argument("--duplicate-iou", type=float, default=0.7)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs: MODEL.WEIGHTS …"
    )
    return parser.parse_args()


def expand(inputs):
    """All files named, and the images in all folders named."""
    for path in inputs:
        if os.path.isdir(path):
            names = [n for n in sorted(os.listdir(path)) if n.lower().endswith(IMAGES)]
            if not names:
                raise InputError(f"--input {path} holds no images ({', '.join(IMAGES)})")
            yield from (os.path.join(path, name) for name in names)
        elif os.path.isfile(path):
            yield path
        else:
            raise InputError(f"--input {path} does not exist")


@exit_on_input_error
def main():
    args = parse_args()
    cfg = read_config(args)
    setup_logger(name="tde_det")
    fall_back_to_cpu(cfg)
    if not os.path.exists(cfg.MODEL.WEIGHTS) and "://" not in cfg.MODEL.WEIGHTS:
        raise InputError(
            f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}, not a file: name a checkpoint with "
            "--opts MODEL.WEIGHTS output/model_final.pth"
        )
    paths = list(expand(args.input))
    register_custom_sets(cfg)
    categories = categories_of(cfg.DATASETS.TEST[0])
    by_id = {category["id"]: category for category in categories}
    weights, cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS, ""  # loaded below, where misfits are errors
    predictor = DefaultPredictor(cfg)
    with readable_checkpoint(weights):
        FittingCheckpointer(predictor.model).load(weights)
    os.makedirs(args.output, exist_ok=True)

    def draw(image):
        """Picture with predictions, of a ``uint8[H, W, 3]`` BGR image; BGR again."""
        instances = predictor(image)["instances"].to("cpu")
        detections = [
            {**d, "category_id": categories[d["category_id"]]["id"]}
            for d in instances_to_coco_json(instances, 0)
        ]
        selected = select_readable(
            detections, args.score_threshold, args.max_per_class, args.duplicate_iou
        )
        return draw_comparison(image[..., ::-1], None, selected, by_id)[..., ::-1]

    targets = set()
    for path in tqdm(paths, unit="file"):
        stem, extension = os.path.splitext(os.path.basename(path))
        target, number = os.path.join(args.output, stem + "_predictions"), 1
        while target in targets:  # files of equal names in different folders
            number += 1
            target = os.path.join(args.output, f"{stem}_{number}_predictions")
        targets.add(target)
        if extension.lower() in IMAGES:
            try:
                image = read_image(path, "BGR")
            except OSError as error:
                raise InputError(f"--input {path} cannot be read: {error}") from error
            cv2.imwrite(target + ".jpg", draw(image))
        else:
            draw_video(path, target + ".mp4", draw)
    print(f"Pictures are in {args.output}")


def draw_video(source, target, draw):
    """Draw every frame of a video file."""
    video = cv2.VideoCapture(source)
    rate = video.get(cv2.CAP_PROP_FPS)
    frames = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
    writer = None
    for _ in tqdm(iter(lambda: video.grab(), False), os.path.basename(source), frames or None):
        picture = draw(video.retrieve()[1])
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


if __name__ == "__main__":
    main()
