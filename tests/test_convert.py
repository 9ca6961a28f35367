"""Results in the formats of other tools, read back by independent means."""

import json
import runpy
import sys
import xml.etree.ElementTree as xml

import numpy as np
import pycocotools.mask as mask_util
import pytest
from conftest import REPOSITORY
from pycocotools.coco import COCO

from tde_det.evaluation.convert import row_runs

IMAGES = [
    {"id": 7, "file_name": "a/one & two.jpg", "height": 20, "width": 30},
    {"id": 9, "coco_url": "http://host/train2017/000.jpg", "height": 10, "width": 10},
]
CATEGORIES = [{"id": 4, "name": "cup <big>"}, {"id": 2, "name": "bowl"}]


def mask(seed, height=20, width=30):
    pixels = np.random.default_rng(seed).random((height, width)) < 0.4
    rle = mask_util.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return pixels, {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.fixture
def convert(tmp_path, monkeypatch):
    """Converts three detections and returns the file; or, with other results, the error."""
    data = {"images": IMAGES, "annotations": [], "categories": CATEGORIES}
    (tmp_path / "data.json").write_text(json.dumps(data))
    rows = [
        {"image_id": 7, "category_id": 4, "score": 0.5, "bbox": [1, 2, 3, 4]},
        {"image_id": 7, "category_id": 2, "score": 0.75, "bbox": [0, 0, 30, 20]},
        {"image_id": 9, "category_id": 2, "score": 0.01, "bbox": [0, 0, 5, 5]},
    ]
    rows[0]["segmentation"], rows[1]["segmentation"] = mask(0)[1], mask(1)[1]
    rows[2]["segmentation"] = mask(2, 10, 10)[1]

    def run(kind, results=rows, **other):
        (tmp_path / "results.json").write_text(json.dumps(results))
        words = {"json-file": tmp_path / "data.json", "results": tmp_path / "results.json"}
        words |= {"format": kind, "output": tmp_path / "out", **other}
        argv = [str(w) for key, value in words.items() for w in (f"--{key}", value)]
        monkeypatch.setattr(sys, "argv", ["convert_results.py", *argv])
        runpy.run_path(f"{REPOSITORY}/tools/convert_results.py", run_name="__main__")
        return tmp_path / "out"

    return run


def test_coco(convert):
    data = COCO(str(convert("coco")))
    assert [a["score"] for a in data.loadAnns(data.getAnnIds(7))] == [0.75, 0.5]
    assert data.getAnnIds(9) == []
    (annotation,) = data.loadAnns(data.getAnnIds(7, catIds=[4]))
    assert np.array_equal(data.annToMask(annotation), mask(0)[0])
    assert annotation["area"] == mask(0)[0].sum()
    assert data.loadImgs(9)[0]["file_name"] == "train2017/000.jpg"


def test_fiftyone(convert):
    content = json.loads(convert("fiftyone").read_text())
    assert content["classes"] == ["bowl", "cup <big>"]
    assert content["labels"]["train2017/000"] == []
    best, second = content["labels"]["a/one & two"]
    assert best == {"label": "bowl", "bounding_box": [0, 0, 1, 1], "confidence": 0.75}
    assert second["bounding_box"] == pytest.approx([1 / 30, 2 / 20, 3 / 30, 4 / 20])


def test_cvat(convert):
    root = xml.parse(convert("cvat")).getroot()
    assert [image.get("name") for image in root.iter("image")] == [
        "a/one & two.jpg",
        "train2017/000.jpg",
    ]
    assert [label.findtext("name") for label in root.iter("label")] == ["bowl", "cup <big>"]
    drawn = list(root.iter("mask"))
    assert [d.get("label") for d in drawn] == ["bowl", "cup <big>"]
    for element, seed in zip(drawn, (1, 0)):
        pixels = []
        for number, length in enumerate(element.get("rle").split(",")):
            pixels += int(length) * [number % 2 == 1]
        left, top, width, height = (int(element.get(k)) for k in ("left", "top", "width", "height"))
        whole = np.zeros((20, 30), bool)
        whole[top : top + height, left : left + width] = np.reshape(pixels, (height, width))
        assert np.array_equal(whole, mask(seed)[0])
    assert drawn[0].find("attribute").text == "0.7500"


def test_cvat_has_boxes_where_there_are_no_masks(convert):
    root = xml.parse(
        convert("cvat", [{"image_id": 7, "category_id": 4, "score": 1, "bbox": [1, 2, 3, 4]}])
    )
    (box,) = root.iter("box")
    assert [float(box.get(k)) for k in ("xtl", "ytl", "xbr", "ybr")] == [1, 2, 4, 6]


def test_runs_of_an_empty_mask():
    empty = mask_util.encode(np.zeros((4, 5), np.uint8, order="F"))
    assert row_runs(empty) == ([0, 0, 0, 0], [])


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        ([{"image_id": 8, "category_id": 4, "score": 1, "bbox": [0, 0, 1, 1]}], {}, "image 8"),
        ([{"image_id": 7, "category_id": 5, "score": 1, "bbox": [0, 0, 1, 1]}], {}, "category 5"),
        (
            [{"image_id": 7, "category_id": 4, "score": 1, "segmentation": mask(0)[1]}],
            {},
            "masks only",
        ),
        ([], {"output": "/proc/nowhere/x"}, "cannot be written"),
        ({}, {}, "no list"),
    ],
)
def test_bad_input(convert, results, options, message):
    with pytest.raises(SystemExit, match=message):
        convert("coco", results, **options)
