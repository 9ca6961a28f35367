"""The embedded data set: deterministic, exact masks, LVIS's long tail and federated fields."""

import hashlib
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT
from PIL import Image

from tde_det.data.categories import count_images
from tde_det.data.lvis_json import read_lvis_json
from tde_det.data.mini_lvis.build import Settings, assign_classes, build_mini_lvis, image_counts
from tde_det.data.mini_lvis.cutouts import load_cutouts
from tde_det.data.mini_lvis.scenes import MIN_PIXELS, compose_scene
from tde_det.errors import InputError

SMALL = Settings(num_classes=12, image_size=96, train_images=40, val_images=10, seed=3)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "mini"
    build_mini_lvis(str(root), SMALL)
    return root


def digest(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return [(str(p.relative_to(root)), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]


def test_same_seed_same_bytes(built, tmp_path):
    build_mini_lvis(str(tmp_path / "again"), SMALL)
    assert digest(built) == digest(tmp_path / "again")
    build_mini_lvis(str(tmp_path / "other"), SMALL._replace(seed=4))
    assert digest(built) != digest(tmp_path / "other")


@pytest.mark.parametrize("split, count", [("train", 40), ("val", 10)])
def test_annotations_fit_their_pictures(built, split, count):
    data = read_lvis_json(str(built / f"mini_lvis_{split}.json"))
    assert len(data["images"]) == count and len(data["categories"]) == 12
    by_image = {}
    for annotation in data["annotations"]:
        mask = mask_util.decode(annotation["segmentation"])
        assert mask.shape == (96, 96)
        assert mask.sum() == annotation["area"] >= MIN_PIXELS
        assert annotation["bbox"] == mask_util.toBbox(annotation["segmentation"]).tolist()
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    for image in data["images"]:
        annotations = by_image[image["id"]]
        overlap = sum(mask_util.decode(a["segmentation"]).astype(int) for a in annotations)
        assert overlap.max() <= 1, "masks are of visible parts"
        assert Image.open(built / image["file_name"]).size == (96, 96)
        present = {a["category_id"] for a in annotations}
        assert not present & set(image["neg_category_ids"])
        assert set(image["not_exhaustive_category_ids"]) <= present


def test_counts_are_what_the_categories_say(built):
    data = json.loads((built / "mini_lvis_train.json").read_text())
    counts = count_images(data)
    for category in data["categories"]:
        assert category["image_count"] == counts[category["id"]]
        instances = [a for a in data["annotations"] if a["category_id"] == category["id"]]
        assert category["instance_count"] == len(instances)
    val = json.loads((built / "mini_lvis_val.json").read_text())
    assert val["categories"] == data["categories"]
    assert min(count_images(val).values()) >= 1 and len(count_images(val)) == 12


def test_full_size_has_lvis_counts():
    expected = sorted(c["image_count"] for c in LVIS_CATEGORY_IMAGE_COUNT)
    counts = image_counts(1203)
    assert counts.tolist() == expected
    images = assign_classes(np.random.default_rng(0), counts, 20000)
    assert np.bincount(np.concatenate(images), minlength=1203).tolist() == expected
    assert all(len(set(classes)) == len(classes) for classes in images)


def test_default_proportion_of_frequencies():
    counts = image_counts(60)
    groups = [(counts <= 10).sum(), ((counts > 10) & (counts <= 100)).sum(), (counts > 100).sum()]
    assert np.allclose(groups, np.array([337, 461, 405]) * 60 / 1203, atol=1)


def test_objects_are_never_lost_in_crowds():
    names, cutouts = load_cutouts()
    assert len(names) == len(set(names)) == len(cutouts) == 1203
    image, masks = compose_scene(np.random.default_rng(0), cutouts[:40], 320)
    assert image.shape == (320, 320, 3) and image.dtype == np.uint8
    assert len(masks) == 40 and min(m.sum() for m in masks) >= MIN_PIXELS


def test_existing_folders(built, tmp_path):
    before = digest(built)
    build_mini_lvis(str(built), SMALL)  # same settings: left alone
    assert digest(built) == before
    with pytest.raises(InputError, match="not built with"):
        build_mini_lvis(str(built), SMALL._replace(seed=9))
    with pytest.raises(InputError, match="seed must be at least 0, got -1"):
        build_mini_lvis(str(tmp_path / "other"), SMALL._replace(seed=-1))
    assert digest(built) == before
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError):
        build_mini_lvis(str(tmp_path), SMALL)
    assert (tmp_path / "mine.txt").exists()


def test_too_many_objects(tmp_path):
    crowded = Settings(num_classes=1203, image_size=64, train_images=5)
    with pytest.raises(InputError, match="5 train images of 64 pixels would show up to .* 16 fit"):
        build_mini_lvis(str(tmp_path / "x"), crowded)
    with pytest.raises(InputError, match="300 objects do not fit into 64×64 pixels"):
        compose_scene(np.random.default_rng(0), load_cutouts()[1][:300], 64)
    full = compose_scene(np.random.default_rng(0), load_cutouts()[1][:20], 64)
    assert len(full[1]) == 20


@pytest.mark.parametrize(
    "bad", [{"num_classes": 0}, {"num_classes": 1204}, {"image_size": 8}, {"train_images": 0}]
)
def test_bad_settings(tmp_path, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        build_mini_lvis(str(tmp_path / "x"), SMALL._replace(**bad))
