"""Names and frequencies of a data set's classes, without reading its json where possible."""

from typing import Any, Dict, List

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES as LVIS_V0_5_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES as LVIS_V1_CATEGORIES

from ..errors import InputError
from .lvis_json import complete_categories, read_lvis_json


def categories_of(dataset_name: str) -> List[Dict[str, Any]]:
    """Categories in the order of the model's classes, each with ``id``, ``name``, ``frequency``.

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
