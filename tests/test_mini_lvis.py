"""The embedded data set: deterministic, exact masks, LVIS's long tail and federated fields."""

import hashlib
import json
import os
import shutil

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT
from PIL import Image

from tde_det.data.categories import count_images
from tde_det.data.lvis_json import read_lvis_json
from tde_det.data.mini_lvis import scenes
from tde_det.data.mini_lvis.build import (
    Settings,
    assign_classes,
    assign_drawings,
    build_mini_lvis,
    image_counts,
)
from tde_det.data.mini_lvis.cutouts import load_cutouts
from tde_det.data.mini_lvis.scenes import MIN_PIXELS
from tde_det.errors import InputError

SMALL = Settings(num_classes=12, image_size=96, train_images=40, val_images=20, seed=3)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "mini"
    build_mini_lvis(str(root), SMALL)
    return root


def digest(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return [(str(p.relative_to(root)), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]


def test_same_seed_same_bytes(built, tmp_path, monkeypatch):
    processes = os.cpu_count()
    monkeypatch.setattr("os.cpu_count", lambda: 1 if processes > 1 else 2)
    build_mini_lvis(str(tmp_path / "again"), SMALL)
    assert digest(built) == digest(tmp_path / "again")
    build_mini_lvis(str(tmp_path / "other"), SMALL._replace(seed=4))
    assert digest(built) != digest(tmp_path / "other")


@pytest.mark.parametrize("split, count", [("train", 40), ("val", 20)])
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


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_one_class_has_the_share_of_the_objects_that_is_asked_for(tmp_path, share):
    settings = Settings(12, 96, train_images=120, val_images=12, seed=3, largest_share=share)
    build_mini_lvis(str(tmp_path), settings)
    labels = {}
    for split in ("train", "val"):
        data = json.loads((tmp_path / f"mini_lvis_{split}.json").read_text())
        labels[split] = [a["category_id"] for a in data["annotations"]]
    assert labels["train"].count(12) / len(labels["train"]) == pytest.approx(share, rel=0.25)
    assert labels["val"].count(12) / len(labels["val"]) < 0.2
    with pytest.raises(InputError, match=r"largest_share must be in \(0, 1\), got 1"):
        build_mini_lvis(str(tmp_path), settings._replace(largest_share=1))


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


def test_training_shows_some_drawings_and_validation_all():
    rng = np.random.default_rng(0)
    images = [[0], [1, 0], [0, 2], [2, 0], [0], [1, 0], [0, 1], [1, 0], [1, 0, 2]]
    kinds = [4, 5, 3]

    def shown(drawings):
        pairs = [(i, d) for row in zip(images, drawings) for i, d in zip(*row)]
        return [[d for i, d in pairs if i == label] for label in range(3)]

    drawings = assign_drawings(rng, images, kinds, in_turn=True)
    assert list(map(len, drawings)) == list(map(len, images))
    for found, kind in zip(shown(drawings), kinds):
        counts = np.bincount(found, minlength=kind)
        assert len(counts) == kind and counts.max() - counts.min() <= 1
    many = [shown(assign_drawings(rng, images, kinds, in_turn=False)) for _ in range(2000)]
    for label, kind in enumerate(kinds):
        for position in range(len(many[0][label])):
            counts = np.bincount([found[label][position] for found in many], minlength=kind)
            assert np.abs(counts / 2000 - 1 / kind).max() < 0.06  # 5 standard deviations
    assert sum(len(set(found[2])) < 3 for found in many) > 1000  # 3 images, 3 drawings: 7 in 9


def test_built_validation_shows_every_drawing(built):
    cutouts = dict(zip(*load_cutouts()))
    for split in ("train", "val"):
        data = json.loads((built / f"mini_lvis_{split}.json").read_text())
        for category in data["categories"]:
            kinds = range(len(cutouts[category["name"]]))
            labels = [a for a in data["annotations"] if a["category_id"] == category["id"]]
            seen = {a["drawing"] for a in labels}
            assert seen == set(kinds) if split == "val" else seen <= set(kinds)


def test_drawing_says_which_cutout_is_shown(tmp_path, monkeypatch):
    """Each cutout is a disc of a colour that tells its class and its drawing."""
    disc = np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 30

    def coded(i, d):
        cutout = np.zeros((64, 64, 4), np.uint8)
        cutout[disc] = (60 + 50 * i, 60 + 50 * d, 0, 255)
        return cutout

    names = ["a", "b", "c"]
    cutouts = [[coded(i, d) for d in range(4)] for i in range(3)]
    settings = Settings(num_classes=3, image_size=96, train_images=6, val_images=2)
    monkeypatch.setattr("tde_det.data.mini_lvis.build.load_cutouts", lambda: (names, cutouts))
    monkeypatch.setattr("tde_det.data.mini_lvis.build.ProcessPoolExecutor", InProcess)
    monkeypatch.setattr(scenes, "shift_colors", lambda rng: np.eye(3, dtype=np.float32))
    build_mini_lvis(str(tmp_path / "x"), settings)
    data = json.loads((tmp_path / "x/mini_lvis_train.json").read_text())
    files = {image["id"]: tmp_path / "x" / image["file_name"] for image in data["images"]}
    drawings = set()
    for annotation in data["annotations"]:
        mask = cv2.erode(mask_util.decode(annotation["segmentation"]), np.ones((5, 5)))
        if mask.any():
            pixels = np.asarray(Image.open(files[annotation["image_id"]]))[mask > 0]
            i, d = np.median(pixels, axis=0)[:2] / 50 - 1.2
            name = data["categories"][annotation["category_id"] - 1]["name"]
            assert (names[round(i)], round(d)) == (name, annotation["drawing"])
            drawings.add(round(d))
    assert len(drawings) == 4


class InProcess:
    """A pool without processes, which would not see what a test replaces."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, *arguments, chunksize):
        return map(function, *arguments)


def test_existing_folders(built, tmp_path):
    before = digest(built)
    build_mini_lvis(str(built), SMALL)  # same settings: left alone
    assert digest(built) == before
    with pytest.raises(InputError, match="not built with .*seed=9.*version 2; remove it"):
        build_mini_lvis(str(built), SMALL._replace(seed=9))
    old = shutil.copytree(built, tmp_path / "version_1")
    content = json.loads((old / "mini_lvis_val.json").read_text())
    del content["info"]["version"]
    (old / "mini_lvis_val.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="version_1 exists and was not built .*choose another"):
        build_mini_lvis(str(old), SMALL)
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


@pytest.mark.parametrize(
    "bad", [{"num_classes": 0}, {"num_classes": 1204}, {"image_size": 8}, {"train_images": 0}]
)
def test_bad_settings(tmp_path, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        build_mini_lvis(str(tmp_path / "x"), SMALL._replace(**bad))
