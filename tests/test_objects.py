"""Where the objects of registered data sets are, against loops over their dicts."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from tde_det.data import register_lvis_json
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.data.objects import box_centers, class_counts
from tde_det.errors import InputError


def naive_centers(records):
    classes, centers = [], []
    for record in records:
        for annotation in record["annotations"]:
            if annotation.get("iscrowd"):
                continue
            left, top, right, bottom = BoxMode.convert(
                annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS
            )
            classes.append(annotation["category_id"])
            center = ((left + right) / 2 / record["width"], (top + bottom) / 2 / record["height"])
            centers.append(center)
    return classes, centers


@pytest.fixture
def records():
    rng = np.random.default_rng(0)
    return [
        {
            **{"width": 40, "height": 30 + i},
            "annotations": [
                {
                    "bbox": (rng.random(4) * 10 + [0, 0, 10, 10]).tolist(),
                    "bbox_mode": rng.choice([BoxMode.XYWH_ABS, BoxMode.XYXY_ABS]),
                    "category_id": int(rng.integers(4)),
                    "iscrowd": int(rng.integers(2)),
                }
                for _ in range(i % 3)
            ],
        }
        for i in range(12)
    ]


@pytest.fixture
def register(tmp_path):
    """Registers dicts, or mini_lvis if there are none; undone afterwards."""
    names = []

    def run(records=None):
        names.append(f"objects_{len(names)}")
        if records is None:
            build_mini_lvis(str(tmp_path), Settings(8, 64, train_images=12, val_images=2, seed=3))
            register_lvis_json(names[-1], str(tmp_path / "mini_lvis_train.json"), str(tmp_path))
        else:
            DatasetCatalog.register(names[-1], lambda: records)
        return names[-1]

    yield run
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name, None)


def test_box_centers(register, records):
    names = [register(records), register()]
    classes, centers = box_centers(names, 8)
    expected = naive_centers(records + DatasetCatalog.get(names[1]))
    assert classes.tolist() == expected[0] and len(classes) > 20
    torch.testing.assert_close(centers, torch.tensor(expected[1], dtype=torch.float64))
    assert ((centers > 0) & (centers < 1)).all()
    assert class_counts(names, 8).instances.tolist() == torch.bincount(classes).tolist()
    assert class_counts(names[1:], 8).num_images == 12


def test_of_no_objects(register):
    classes, centers = box_centers([register([{"annotations": []}])], 8)
    assert classes.shape == (0,) and centers.shape == (0, 2)


@pytest.mark.parametrize("key", ["bbox", "width"])
def test_without_places(register, records, key):
    for record in records:
        record.pop(key, None)
        for annotation in record["annotations"]:
            annotation.pop(key, None)
    name = register(records)
    with pytest.raises(InputError, match=f"{name} does not say where"):
        box_centers([name], 8)
    assert class_counts([name], 8).num_images == 12


def test_bad_names_and_classes(register, records):
    with pytest.raises(InputError, match="'nowhere'"):
        box_centers(["nowhere"], 8)
    with pytest.raises(InputError, match="class 3 .*none of the 3 classes.*NUM_CLASSES"):
        box_centers([register(records)], 3)


def test_counts_of_objects_images_and_crowds(register):
    records = [
        {"annotations": [{"category_id": c} for c in (0, 0, 0, 1, 1, 2)]},
        {"annotations": [{"category_id": 0}, {"category_id": 4, "iscrowd": 1}]},
        {"annotations": [{"category_id": c, "iscrowd": 0} for c in (0, 1, 3)]},
        {"annotations": []},
        {},
    ]
    name = register(records)
    counts = class_counts([name], 5)
    assert counts.instances.tolist() == [5, 3, 1, 1, 0]
    assert counts.images.tolist() == [3, 2, 1, 1, 0]
    assert counts.num_images == 5
    assert class_counts([name, name], 5).instances.tolist() == [10, 6, 2, 2, 0]


def test_counts_of_a_json_equal_its_records(register):
    name = register()
    counts, records = class_counts([name], 8), DatasetCatalog.get(name)
    for c in range(8):
        each = [[a["category_id"] for a in r["annotations"]].count(c) for r in records]
        assert counts.instances[c] == sum(each)
        assert counts.images[c] == sum(n > 0 for n in each)


def test_no_objects_to_count(register):
    name = register([{}])
    with pytest.raises(InputError, match=f"{name} has no objects"):
        class_counts([name], 8)
