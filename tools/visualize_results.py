#!/usr/bin/env python
"""Draw predictions beside ground truth."""

import argparse
import os
from collections import defaultdict

import cv2
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from tqdm import tqdm

from tde_det.data import DataError, register_custom_sets, register_lvis_json
from tde_det.data.categories import categories_of
from tde_det.data.lvis_json import read_json
from tde_det.engine.launch import exit_on_data_error
from tde_det.engine.setup import check_files, read_config
from tde_det.visualization import draw_comparison, select_readable


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="a registered name, or an LVIS-format json")
    parser.add_argument("--image-root", help="folder of the images, if --dataset is a json")
    parser.add_argument("--config-file", default="", help="its DATASETS.LVIS_CUSTOM are registered")
    parser.add_argument("--results", required=True, help="lvis_instances_results.json")
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument("--limit", type=int, default=50, help="images drawn at most (default: 50)")
    parser.add_argument("--score-threshold", type=float, default=0.3)
    parser.add_argument("--max-per-class", type=int, default=5, help="per image")
    parser.add_argument("--duplicate-iou", type=float, default=0.7)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser.parse_args()


@exit_on_data_error
def main():
    args = parse_args()
    if args.dataset.endswith(".json"):
        if not args.image_root:
            raise DataError("--dataset is a json: say with --image-root where its images are")
        register_lvis_json(args.dataset, args.dataset, args.image_root)
    else:
        register_custom_sets(read_config(args))
        check_files([args.dataset])
    records = DatasetCatalog.get(args.dataset)
    categories = categories_of(args.dataset)
    detections = defaultdict(list)
    for detection in read_json(args.results):
        detections[detection["image_id"]].append(detection)
    unknown = set(detections) - {record["image_id"] for record in records}
    if unknown:
        raise DataError(
            f"{args.results} has detections in image {min(unknown)}, which {args.dataset} "
            f"({MetadataCatalog.get(args.dataset).json_file}) does not list"
        )
    by_id = {category["id"]: category for category in categories}
    os.makedirs(args.output, exist_ok=True)
    for record in tqdm(records[: args.limit], unit="image"):
        annotations = [
            {
                **annotation,
                "bbox": BoxMode.convert(
                    annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS
                ),
                "category_id": categories[annotation["category_id"]]["id"],
            }
            for annotation in record["annotations"]
        ]
        selected = select_readable(
            detections[record["image_id"]],
            args.score_threshold,
            args.max_per_class,
            args.duplicate_iou,
        )
        image = read_image(record["file_name"], "RGB")
        picture = draw_comparison(image, annotations, selected, by_id)
        path = os.path.join(args.output, f"{record['image_id']}.jpg")
        cv2.imwrite(path, picture[..., ::-1])
    print(f"{min(args.limit, len(records))} pictures are in {args.output}")


if __name__ == "__main__":
    main()
