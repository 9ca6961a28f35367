#!/usr/bin/env python
"""Download LVIS v1 and the COCO images it annotates, or check what is there.

Interrupted downloads continue where they stopped; what is there already is not fetched again.
"""

import argparse
from pathlib import Path

from tde_det import cli
from tde_det.errors import InputError

EXAMPLE = "prepare_lvis.py --images"
ANNOTATIONS_URL = "https://dl.fbaipublicfiles.com/LVIS"
IMAGES_URL = "http://images.cocodataset.org/zips"
# Archive → (what it contains, folder below the root that this goes to, md5).
ANNOTATIONS = {
    "lvis_v1_train.json.zip": ("lvis_v1_train.json", "lvis", "4410d837f71203af226950447ef9d422"),
    "lvis_v1_val.json.zip": ("lvis_v1_val.json", "lvis", "87734a7f895990b9552075d7ce723e27"),
}
IMAGES = {
    "val2017.zip": ("val2017", "coco", "442b8da7639aecaf257c1dceb8ba8c80"),
    "train2017.zip": ("train2017", "coco", "cced6f7f71b7629ddf16f17bbcfab6b2"),
}


def parse_args() -> argparse.Namespace:
    parser = cli.make_plain_parser(__doc__, EXAMPLE)
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="folder that gets lvis/ and coco/ (default: DETECTRON2_DATASETS, or datasets)",
    )
    parser.add_argument("--images", action="store_true", help="the COCO images too, 19 GB")
    parser.add_argument(
        "--check", action="store_true", help="download nothing; check what is there"
    )
    parser.add_argument("--base-url", help=f"default: {ANNOTATIONS_URL}, {IMAGES_URL}")
    parser.add_argument(
        "--checksums",
        metavar="FILE",
        type=Path,
        help="of md5sum or sha256sum, in place of the built-in checksums",
    )
    parser.add_argument("--keep-archives", action="store_true", help="keep the zip files")
    return parser.parse_args()


def read_checksums(path: Path) -> dict:
    """Archive name → digest, from the output of md5sum or sha256sum."""
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        return {name.lstrip("*"): digest for digest, name in lines}
    except (OSError, ValueError) as error:
        raise InputError(f"--checksums {path} cannot be read: {error}") from None


def fetch(args: argparse.Namespace) -> None:
    """Download and extract all archives whose content is not there."""
    from tde_det.data.download import download, extract

    checksums = read_checksums(args.checksums) if args.checksums else {}
    archives = [(ANNOTATIONS_URL, name, *rest) for name, rest in ANNOTATIONS.items()]
    if args.images:
        archives += [(IMAGES_URL, name, *rest) for name, rest in IMAGES.items()]
    for url, name, content, folder, digest in archives:
        target = args.output / folder / content
        if target.exists():
            print(f"{target} is there already")
            continue
        archive = args.output / folder / name
        if not archive.exists():
            base = (args.base_url or url).rstrip("/")
            download(f"{base}/{name}", archive, checksums.get(name, digest))
        extract(archive, content, target)
        if not args.keep_archives:
            archive.unlink()


def check(root: Path) -> None:
    """Read both annotation files and look for every image they list.

    Raises:
        InputError: with all that is missing.
    """
    from tde_det.data.image_files import check_images_exist
    from tde_det.data.lvis_json import LvisJson

    problems = []
    for content, folder, _ in ANNOTATIONS.values():
        path = str(root / folder / content)
        try:
            source = LvisJson(path)
            annotations = sum(1 for _ in source)
            print(f"{path}: {len(source.images):,} images, {annotations:,} annotations")
            names = ["/".join(image["coco_url"].split("/")[-2:]) for image in source.images]
            files = [str(root / "coco" / name) for name in names]
            check_images_exist(files, path, "Get them with --images")
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(
            "the data set is not complete\n  "
            + "\n  ".join(problems)
            + "\nDelete what is damaged, and run this again without --check"
        )
    print("The data set is complete")


@cli.exit_on_input_error
def main() -> None:
    args = parse_args()
    if args.output is None:
        from tde_det.data.custom_sets import datasets_root

        args.output = Path(datasets_root())
    if args.check:
        check(args.output)
    else:
        fetch(args)
        print(f"LVIS v1 is in {args.output}")


if __name__ == "__main__":
    main()
