"""Categories of LVIS-format data: their names, how often they occur, and their frequency group."""

from collections import Counter
from typing import Any, Dict, List, Optional

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES as LVIS_V0_5_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES as LVIS_V1_CATEGORIES

from ..errors import InputError
from .lvis_json import read_lvis_json


def frequency_of(image_count: int) -> str:
    """LVIS's group of a class by its training images: ``"r"`` ≤ 10 < ``"c"`` ≤ 100 < ``"f"``."""
    return "r" if image_count <= 10 else "c" if image_count <= 100 else "f"


def count_images(data: Dict[str, Any]) -> "Counter[int]":
    """Images each category is annotated in."""
    pairs = {(a["image_id"], a["category_id"]) for a in data["annotations"]}
    return Counter(category for _, category in pairs)


def complete_categories(
    data: Dict[str, Any], train_counts: Optional[Dict[int, int]] = None
) -> List[Dict[str, Any]]:
    """Categories sorted by id, each with ``name``, ``image_count`` and ``frequency``.

    Args:
        data: from :func:`read_lvis_json`.
        train_counts: images per category of the training split, which rare, common and frequent
            refer to; counted in ``data`` itself if None.
    """
    counts = count_images(data) if train_counts is None else train_counts
    categories = []
    for category in sorted(data["categories"], key=lambda c: c["id"]):
        given = {"name": str(category["id"]), "image_count": counts.get(category["id"], 0)}
        category = {**given, **category}
        category.setdefault("frequency", frequency_of(category["image_count"]))
        categories.append(category)
    return categories


def categories_of(dataset_name: str) -> List[Dict[str, Any]]:
    """Categories in the order of the model's classes; a json is read only if nothing else has them.

    Returns:
        dicts with ``id``, ``name`` and ``frequency``.

    Raises:
        InputError: the data set has no list of categories.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("lvis_categories"):
        return metadata.lvis_categories
    for version, built_in in (("v0.5", LVIS_V0_5_CATEGORIES), ("v1", LVIS_V1_CATEGORIES)):
        if dataset_name.startswith(f"lvis_{version}_") and "cocofied" not in dataset_name:
            by_id = sorted(built_in, key=lambda c: c["id"])
            return [{**c, "name": c["synonyms"][0]} for c in by_id]
    if metadata.get("json_file"):
        return complete_categories(read_lvis_json(metadata.json_file))
    raise InputError(f"{dataset_name} has no json file to take its categories from")
