"""The detector that trainings start from.

That of drawings knows other classes than the benchmark's, that of photographs knows no classes: it
tells objects from background.
"""

import json
from pathlib import Path
from typing import Any, Collection, Dict, Tuple

import torch

from tde_det.data.mini_lvis.build import Settings, build_mini_lvis

from .data import FOLDER as OWN
from .data import Photographs, write_json
from .rows import DECONFOUNDED, Training
from .steps import Model, Steps

FOLDER, JSON = "longtail_others", "others.json"  # of the data set, and in it
OBJECTS = "longtail_objects.json"
PREDICTOR = "roi_heads.box_predictor."
ALL_TRAINED = ("MODEL.TIMM.FROZEN_STAGES", "2")  # but ImageNet's stem and stride 4
CLASSIFIER = (f"{PREDICTOR}cls_score.", f"{PREDICTOR}adjustments.")  # the weights that are dropped


def without_classes(content: Dict[str, Any], names: Collection[str]) -> Dict[str, Any]:
    """LVIS annotations without the classes of these names and the images that show one of them."""
    kept = [c for c in content["categories"] if c["name"] not in names]
    ids = {c["id"]: i for i, c in enumerate(kept, 1)}
    shown = {a["image_id"] for a in content["annotations"] if a["category_id"] not in ids}
    images = [image for image in content["images"] if image["id"] not in shown]
    for image in images:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [ids[i] for i in image[key] if i in ids]
    return {
        **content,
        "images": images,
        "categories": [{**c, "id": ids[c["id"]]} for c in kept],
        "annotations": [
            {**a, "category_id": ids[a["category_id"]]}
            for a in content["annotations"]
            if a["image_id"] not in shown
        ],
    }


def as_one_class(content: Dict[str, Any]) -> Dict[str, Any]:
    """LVIS annotations with all objects of one class."""
    first = {**content["categories"][0], "id": 1, "name": "object", "frequency": "f"}
    return {
        **content,
        "images": [
            {**image, "neg_category_ids": [], "not_exhaustive_category_ids": []}
            for image in content["images"]
        ],
        "categories": [first],
        "annotations": [{**a, "category_id": 1} for a in content["annotations"]],
    }


def _build_others(steps: Steps, data: Settings) -> Tuple[int, Dict[str, str]]:
    """Build the data set of all other classes; returns their number, and its entry in a config."""
    root = steps.folder / FOLDER
    build_mini_lvis(str(root), data)
    own = json.loads((steps.folder / OWN / "mini_lvis_val.json").read_text())
    names = {c["name"] for c in own["categories"]}
    # The validation split, because it shows all classes equally often.
    others = without_classes(json.loads((root / "mini_lvis_val.json").read_text()), names)
    write_json(root / JSON, others)
    entry = {"name": FOLDER, "json": f"{FOLDER}/{JSON}", "image_root": FOLDER}
    return len(others["categories"]), entry


def _build_objects(steps: Steps, data: Photographs) -> Tuple[int, Dict[str, str]]:
    """The photographs with all objects of one class, likewise."""
    content = json.loads((steps.folder / OWN / data.folder / data.train).read_text())
    write_json(steps.folder / OBJECTS, as_one_class(content))
    images = f"{OWN}/{data.folder}/images"
    return 1, {"name": "longtail_objects", "json": OBJECTS, "image_root": images}


def pretrain(steps: Steps) -> str:
    """The checkpoint that a shape's trainings start from, without its classifier; "" for none.

    Raises:
        OutOfTime: to be continued.
    """
    if steps.shape.pretraining is None:
        return ""
    data, rate, iterations = steps.shape.pretraining
    build: Any = _build_objects if isinstance(data, Photographs) else _build_others
    num_classes, entry = build(steps, data)
    # De-confounded: a linear classifier learns next to nothing of 1,143 classes in that time.
    classifier = DECONFOUNDED if num_classes > 1 else ()
    opts = (*ALL_TRAINED, *classifier, "MODEL.ROI_HEADS.NUM_CLASSES", str(num_classes))
    opts += ("DATASETS.LVIS_CUSTOM", str([entry]), "DATASETS.TRAIN", f"('{entry['name']}',)")
    model = Model(Training("pretraining", "", opts), rate, iterations, 1)
    if not steps.train(model):
        raise RuntimeError(f"the loss became infinite: {model.folder}")
    path: Path = steps.checkpoint(model, "without_classifier.pth")
    weights = torch.load(steps.checkpoint(model), weights_only=True)["model"]
    torch.save({"model": {k: v for k, v in weights.items() if not k.startswith(CLASSIFIER)}}, path)
    return str(path)
