"""Real photographs in LVIS format; skipped unless REAL_DATA names a folder with them."""

import os
from collections import Counter

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import lvis as detectron2_lvis

from tde_det.data import register_lvis_json
from tde_det.data.compact import CompactLvis
from tde_det.data.lvis_json import complete_categories, read_lvis_json
from tde_det.data.masks import encode_mask
from tde_det.data.records import to_detectron2
from tde_det.evaluation import evaluate_lvis

ROOT = os.environ.get("REAL_DATA", "")
pytestmark = pytest.mark.skipif(not os.path.isdir(ROOT), reason="REAL_DATA names no folder")


def test_same_dicts_as_detectron2():
    path = os.path.join(ROOT, "lvis/lvis_v1_val.json")
    root = os.path.join(ROOT, "coco/")
    expected = detectron2_lvis.load_lvis_json(path, root, "lvis_v1_val")
    actual, skipped = to_detectron2(read_lvis_json(path), "val")
    for record in actual:
        record["file_name"] = root + record["file_name"]
    assert actual == expected and not skipped


def test_compact_gives_the_same_dicts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = os.path.join(ROOT, "coco/")
    path = os.path.join(ROOT, "lvis/lvis_v1_val.json")
    expected = detectron2_lvis.load_lvis_json(path, root, "lvis_v1_val")
    assert list(CompactLvis(path, root, built_in="lvis_v1_val")) == expected
    for name in ("lvis/lvis_v1_train.json", "ccp/ccp_lvis_train.json"):  # with RLE
        path = os.path.join(ROOT, name)
        expected, _ = to_detectron2(read_lvis_json(path), name)
        for record in expected:
            record["file_name"] = root + record["file_name"]
        assert list(CompactLvis(path, root)) == list(CompactLvis(path, root)) == expected


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
