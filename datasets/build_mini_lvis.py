#!/usr/bin/env python
"""Build mini_lvis, the data set that ships as a seed and a sheet of cutouts."""

import argparse
import os

from tde_det import cli

EXAMPLE = "build_mini_lvis.py --num-classes 12 --output datasets/tiny_lvis"


def parse_args() -> argparse.Namespace:
    parser = cli.make_plain_parser(__doc__, EXAMPLE)
    root = "default: mini_lvis in DETECTRON2_DATASETS, or in datasets"
    parser.add_argument("--output", metavar="FOLDER", help=root)
    parser.add_argument("--num-classes", type=int, default=60, help="at most 1203 (default: 60)")
    parser.add_argument("--image-size", type=int, default=128, help="in pixels (default: 128)")
    parser.add_argument("--train-images", type=int, help="default: as the class counts need")
    parser.add_argument("--val-images", type=int, help="default: 30 images of every class")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    share = "of all training objects that one class has, such as 0.5 (default: as in LVIS)"
    parser.add_argument("--largest-share", type=float, help=share)
    return parser.parse_args()


@cli.exit_on_input_error
def main() -> None:
    options = vars(parse_args())
    from tde_det.data.custom_sets import datasets_root
    from tde_det.data.mini_lvis.build import Settings, build_mini_lvis

    folder = options.pop("output") or os.path.join(datasets_root(), "mini_lvis")
    build_mini_lvis(folder, Settings(**options))
    print(f"mini_lvis is in {folder}")


if __name__ == "__main__":
    main()
