"""The benchmark's data: mini_lvis or photographs, with the validation images in two halves."""

import json
from pathlib import Path
from typing import Any, NamedTuple, Union

from tde_det.atomic_file import atomic_file
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.errors import InputError
from tde_det.evaluation.recommend import split_images

FOLDER = "longtail_data"
# Choices are made on one half, the table is the other.
HALVES = ("tuning", "table")


class Photographs(NamedTuple):
    """Photographs in LVIS's format, which are not built but found.

    Attributes:
        folder: where they are, in the folder that DETECTRON2_DATASETS names.
        train, val: the jsons in it; images are in its folder images/.
    """

    folder: str
    train: str
    val: str


def write_json(path: Path, content: Any) -> None:
    """Write a json file that is there in whole or not at all."""
    with atomic_file(str(path)) as file:
        file.write(json.dumps(content).encode())


def _link(data: Photographs, root: Path, source: Path) -> Path:
    """Make photographs found below ``root``, too; returns the json of the validation images."""
    val = source / data.folder / data.val
    if not val.exists():
        raise InputError(
            f"{val} does not exist: name the folder that has {data.folder}/ in DETECTRON2_DATASETS"
        )
    root.mkdir(parents=True, exist_ok=True)
    link = root / data.folder
    link.unlink(missing_ok=True)
    link.symlink_to(val.parent.resolve())
    return val


def build_data(data: Union[Settings, Photographs], root: Path, source: Path) -> None:
    """Build or link a data set, and halve its validation images.

    Args:
        root: the folder for it.
        source: where photographs are.

    Raises:
        InputError: there are no such photographs.
    """
    if isinstance(data, Photographs):
        val = _link(data, root, source)
    else:
        build_mini_lvis(str(root), data)
        val = root / "mini_lvis_val.json"
    if not all((root / f"{half}.json").exists() for half in HALVES):
        for half, annotations in zip(HALVES, split_images(json.loads(val.read_text()), 0.5)):
            write_json(root / f"{half}.json", annotations)
