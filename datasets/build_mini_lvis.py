"""Build mini_lvis, the data set that ships as a seed and a sheet of cutouts."""

import argparse
import os

from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.engine import exit_on_input_error


@exit_on_input_error
def main() -> None:
    default = Settings()
    root = os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "mini_lvis")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default=root, help=f"folder to make (default: {root})")
    parser.add_argument("--num-classes", type=int, default=default.num_classes, help="at most 1203")
    parser.add_argument("--image-size", type=int, default=default.image_size, help="in pixels")
    parser.add_argument("--train-images", type=int, help="default: as the class counts need")
    parser.add_argument("--val-images", type=int, help="default: 30 images of every class")
    parser.add_argument("--seed", type=int, default=default.seed)
    args = parser.parse_args()
    settings = Settings(
        args.num_classes, args.image_size, args.train_images, args.val_images, args.seed
    )
    build_mini_lvis(args.output, settings)
    print(f"mini_lvis is in {args.output}")


if __name__ == "__main__":
    main()
