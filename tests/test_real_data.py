"""Real photographs in LVIS format; skipped unless REAL_DATA names a folder with them."""

import os
from collections import Counter

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import lvis as detectron2_lvis

from tde_det.data import register_lvis_json
from tde_det.data.categories import complete_categories
from tde_det.data.lvis_json import read_lvis_json
from tde_det.data.lvis_table import LvisTable
from tde_det.data.rle import encode_mask
from tde_det.evaluation import evaluate_lvis

ROOT = os.environ.get("REAL_DATA", "")
pytestmark = pytest.mark.skipif(not os.path.isdir(ROOT), reason="REAL_DATA names no folder")


def test_same_dicts_as_detectron2(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = os.path.join(ROOT, "coco/")
    path = os.path.join(ROOT, "lvis/lvis_v1_val.json")
    expected = detectron2_lvis.load_lvis_json(path, root, "lvis_v1_val")
    assert list(LvisTable(path, root, built_in="lvis_v1_val")) == expected
    # Read as any json, only the class ids differ: the file lists the categories that it has.
    ids = sorted(c["id"] for c in read_lvis_json(path)["categories"])
    for record in expected:
        for annotation in record["annotations"]:
            annotation["category_id"] = ids.index(annotation["category_id"] + 1)
    assert list(LvisTable(path, root)) == expected


@pytest.mark.parametrize("name", ["lvis/lvis_v1_train.json", "ccp/ccp_lvis_train.json"])
def test_any_json(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = read_lvis_json(os.path.join(ROOT, name))
    annotations = {}
    for annotation in data["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    for _ in range(2):  # from the json, and from the cache
        table = LvisTable(os.path.join(ROOT, name), "root")
        assert len(table) == len(data["images"]) and not table.skipped()
        for record in table:
            expected = annotations.get(record["image_id"], [])
            assert [a["bbox"] for a in record["annotations"]] == [a["bbox"] for a in expected]
            masks = [a["segmentation"] for a in record["annotations"]]
            assert masks == [a["segmentation"] for a in expected]


def test_ground_truth_detects_itself():
    data = read_lvis_json(os.path.join(ROOT, "lvis/lvis_v1_val.json"))
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    detections = []
    for annotation in data["annotations"]:
        rle = encode_mask(annotation["segmentation"], *sizes[annotation["image_id"]])
        keys = ("image_id", "category_id", "bbox")
        detections.append({k: annotation[k] for k in keys} | {"score": 1.0, "segmentation": rle})
    for task in ("bbox", "segm"):
        metrics, per_category = evaluate_lvis(data, complete_categories(data), detections, task)
        assert metrics["AP"] == pytest.approx(100)
        measured = per_category[per_category >= 0]
        assert len(measured) == len({a["category_id"] for a in data["annotations"]})


def test_custom_set():
    path = os.path.join(ROOT, "ccp/ccp_lvis_val.json")
    records = register_lvis_json("ccp", path, os.path.join(ROOT, "ccp/images"))
    try:
        assert DatasetCatalog.get("ccp") == records and len(records) == 204
        metadata = MetadataCatalog.get("ccp")
        assert len(metadata.thing_classes) == 58
        assert Counter(c["frequency"] for c in metadata.lvis_categories) == dict(f=15, c=29, r=14)
    finally:
        DatasetCatalog.remove("ccp")
        MetadataCatalog.remove("ccp")
