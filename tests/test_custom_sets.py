"""Any LVIS-format json: what Detectron2's loader refuses, and what must be refused clearly."""

import copy
import json
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.structures import BoxMode
from tool_runs import HEIGHT, SQUARE, annotation, small_set, write_small_set

from tde_det import add_tde_config
from tde_det.data import TolerantMapper, register_custom_sets
from tde_det.data.categories import complete_categories, frequency_of
from tde_det.data.lvis_json import read_lvis_json
from tde_det.data.rle import valid_rle
from tde_det.errors import InputError


@pytest.fixture
def dataset(tmp_path):
    """Content of a minimal set without coco_url, frequency, image_count, or contiguous ids."""
    write_small_set(tmp_path / "files")
    (tmp_path / "files/images").rename(tmp_path / "images")
    return small_set()


@pytest.fixture
def register(tmp_path):
    """Write a json, register it as DATASETS.LVIS_CUSTOM says, and return config and dicts."""
    names = []

    def run(*contents, train=None, **entry):
        cfg = get_cfg()
        add_tde_config(cfg)
        for i, content in enumerate(contents):
            path = tmp_path / f"set{i}.json"
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            names.append(f"{tmp_path.name}_{i}")
            cfg.DATASETS.LVIS_CUSTOM.append(
                {
                    "name": names[-1],
                    "json": str(path),
                    "image_root": str(tmp_path / "images"),
                    **entry,
                }
            )
        cfg.MODEL.MASK_ON = True
        cfg.DATASETS.TRAIN = (names[-len(contents)] if train is None else train,)
        register_custom_sets(cfg)
        return cfg, DatasetCatalog.get(names[-len(contents)])

    yield run
    for name in set(names) & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_what_detectron2_refuses(dataset, register, tmp_path):
    cfg, records = register(dataset)
    assert [r["image_id"] for r in records] == [1, 2, 3]
    assert records[0]["file_name"] == str(tmp_path / "images/1.jpg")
    assert [a["category_id"] for a in records[1]["annotations"]] == [0, 1]
    assert cfg.INPUT.MASK_FORMAT == "bitmask"
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    assert metadata.thing_classes == ["early", "late"]
    assert metadata.thing_dataset_id_to_contiguous_id == {5: 0, 70: 1}
    assert metadata.class_image_count == [{"id": 5, "image_count": 1}, {"id": 70, "image_count": 2}]
    assert [c["frequency"] for c in metadata.lvis_categories] == ["r", "r"]
    # Polygon, compressed and uncompressed RLE all become the same mask.
    mapped = TolerantMapper(cfg, is_train=True)
    mapped.augmentations.augs = []
    for record in records[:2]:
        for mask in mapped(record)["instances"].gt_masks:
            assert mask[10:30, 10:30].all() and mask.sum() == 400


def test_polygons_stay_polygons(dataset, register):
    dataset["annotations"] = dataset["annotations"][:1]
    cfg, _ = register(dataset)
    assert cfg.INPUT.MASK_FORMAT == "polygon"


def test_federated_loss_weights_come_from_the_set(dataset, register):
    cfg, _ = register(dataset)
    weights = detection_utils.get_fed_loss_cls_weights(cfg.DATASETS.TRAIN, 1.0)
    assert weights.tolist() == [1, 2]


def test_validation_takes_frequencies_from_training(dataset, register):
    train, val = copy.deepcopy(dataset), copy.deepcopy(dataset)
    train["annotations"] *= 20  # the same two images
    for i, extra in enumerate(train["annotations"]):
        train["annotations"][i] = {**extra, "id": i + 1}
    val["annotations"] = []
    cfg, _ = register(train, val)
    for entry in cfg.DATASETS.LVIS_CUSTOM:
        counts = [c["image_count"] for c in MetadataCatalog.get(entry["name"]).lvis_categories]
        assert counts == [1, 2]


def test_frequency_boundaries_are_lvis():
    assert [frequency_of(n) for n in (0, 10, 11, 100, 101)] == list("rrccf")


def test_nulls_and_box_only(dataset, tmp_path):
    dataset["images"][0].update(neg_category_ids=None, not_exhaustive_category_ids=None)
    dataset["annotations"][0].update(area=None)
    box_only = {"id": 9, "image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]}
    dataset["annotations"].append(box_only)
    (tmp_path / "x.json").write_text(json.dumps(dataset))
    data = read_lvis_json(str(tmp_path / "x.json"))
    assert data["images"][0]["not_exhaustive_category_ids"] == []
    assert data["annotations"][0]["area"] == 400 and data["annotations"][-1]["area"] == 12


def test_given_frequencies_are_kept(dataset):
    dataset["categories"][0].update(frequency="f", image_count=500)
    categories = complete_categories(dataset)
    assert (categories[1]["frequency"], categories[1]["image_count"]) == ("f", 500)


def test_missing_box_and_area_are_computed(dataset, tmp_path):
    for entry in dataset["annotations"]:
        del entry["bbox"], entry["area"]
    (tmp_path / "x.json").write_text(json.dumps(dataset))
    for entry in read_lvis_json(str(tmp_path / "x.json"))["annotations"]:
        assert entry["area"] == 400 and entry["bbox"] == [10, 10, 20, 20]


@pytest.mark.parametrize(
    "bad, reason",
    [
        (
            annotation(id=9, segmentation=[[1.0, 1.0, 5.0, 5.0]]),
            "no polygon with at least 3 points",
        ),
        (annotation(id=9, segmentation=[]), "no polygon with at least 3 points"),
        (annotation(id=9, bbox=[3.0, 3.0, 0.0, 5.0]), "a box without area"),
        (annotation(id=9, bbox=[3.0, 3.0, 5.0, -5.0]), "a box without area"),
        (annotation(id=9, bbox=[3.0, float("nan"), 5.0, 5.0]), "a box without area"),
    ],
)
def test_useless_annotations_are_skipped_and_counted(dataset, register, caplog, bad, reason):
    dataset["annotations"] += [bad]
    with caplog.at_level(logging.WARNING):
        _, records = register(dataset)
    assert f"skipped 1 annotations with {reason}" in caplog.text
    assert sum(len(r["annotations"]) for r in records) == 3


def test_one_bad_polygon_of_several(dataset, register, caplog):
    dataset["annotations"][0]["segmentation"].append([1.0, 1.0, 5.0, 5.0])
    _, records = register(dataset)
    assert records[0]["annotations"][0]["segmentation"] == [SQUARE]
    assert records[0]["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS
    assert "skipped" not in caplog.text


def test_images_without_annotations_are_kept_and_counted(dataset, register, caplog):
    with caplog.at_level(logging.INFO):
        _, records = register(dataset)
    assert records[2]["annotations"] == []
    assert "1 of 3 images have no annotations" in caplog.text


@pytest.mark.parametrize(
    "change, problem, place",
    [
        (lambda d: d["annotations"][0].update(id="a"), "got `str`", "annotations[0].id"),
        (lambda d: d["categories"].append("cat"), "got `str`", "categories[2]"),
        (lambda d: d["images"][0].update(file_name=5), "got `int`", "images[0].file_name"),
        (lambda d: d["images"][0].update(id=[1]), "got `array`", "images[0].id"),
        (lambda d: d["images"][0].update(height="40"), "got `str`", "images[0].height"),
        (lambda d: d["images"][0].update(height=0), "`float` > 0.0", "images[0].height"),
        (lambda d: d["images"][0].update(width=True), "got `bool`", "images[0].width"),
        (lambda d: d["images"].append(None), "got `null`", "images[3]"),
        (lambda d: d["images"].append({}), "field `id`", "images[3]"),
        (lambda d: d["categories"][0].update(id={}), "got `object`", "categories[0].id"),
        (lambda d: d["annotations"][0].update(id=[1]), "got `array`", "annotations[0].id"),
        (lambda d: d["annotations"].append(3), "got `int`", "annotations[3]"),
        (lambda d: d.update(annotations={"a": 1}), "got `object`", "annotations"),
    ],
)
def test_wrong_types_are_located(dataset, register, change, problem, place):
    change(dataset)
    with pytest.raises(InputError) as error:
        register(dataset)
    assert "set0.json is not in LVIS format" in str(error.value)
    assert problem in str(error.value) and str(error.value).endswith(f" - at `$.{place}`")


def naive_pixels(counts):
    """Pixels of a compressed RLE, number by number as in COCO's maskApi.c; None if it is none."""
    runs, rest = [], list(counts)
    while rest:
        value, digits, more = 0, 0, True
        while more:
            if not rest or digits == 12:
                return None
            digit = rest.pop(0) - 48
            if not 0 <= digit < 64:
                return None
            value |= (digit & 31) << 5 * digits
            digits, more = digits + 1, bool(digit & 32)
        if digit & 16:
            value -= 1 << 5 * digits
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return sum(runs) if runs and min(runs) >= 0 else None


def test_valid_rle():
    rng = np.random.default_rng(0)
    counts = [b"", b"!!!!", b"o" * 60, b"0:", "é".encode()]
    for density in np.linspace(0, 1, 60):
        mask = np.asfortranarray(rng.random((37, 211)) < density, np.uint8)
        good = mask_util.encode(mask)["counts"]
        counts += [good, good[:-1]]
        for _ in range(5):
            bad = bytearray(good)
            bad[rng.integers(len(bad))] = rng.integers(40, 120)
            counts.append(bytes(bad))
    expected = [naive_pixels(c) == 37 * 211 for c in counts]
    assert 60 <= sum(expected) < 200
    assert [valid_rle(c, 37 * 211) for c in counts] == expected
    assert not valid_rle(b"", 0)


def test_whole_floats_and_string_ids_are_taken(dataset, register):
    for image in dataset["images"]:
        image.update(height=float(HEIGHT), id=f"i{image['id']}")
    for entry in dataset["annotations"]:
        entry["image_id"] = f"i{entry['image_id']}"
    _, records = register(dataset)
    assert [r["image_id"] for r in records] == ["i1", "i2", "i3"]
    assert isinstance(records[0]["height"], int) and len(records[1]["annotations"]) == 2


def test_truncated_image_and_json(dataset, register, tmp_path):
    content = json.dumps(dataset)
    with pytest.raises(InputError, match="cannot be read as json"):
        register(content[: len(content) // 2])
    for damage in ("{}\n[", "[" * 10_000, content.replace("[[", "[[1e999, "), "[]", ""):
        with pytest.raises(InputError, match=r"set0.json"):
            register(damage)
    for old, new in ((b'"id": 1', b'"id": "\xff"'), (b'"area": 400.0', b'"area": "\xff"')):
        (tmp_path / "x.json").write_bytes(content.encode().replace(old, new))
        with pytest.raises(InputError, match="x.json"):
            read_lvis_json(str(tmp_path / "x.json"))
    path = tmp_path / "images/2.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"1 of 3 image files.*\n.*2.jpg is damaged: .*truncated"):
        register(dataset)


def test_bad_entries(dataset, register):
    with pytest.raises(InputError, match="LVIS_CUSTOM is a list"):
        register(dataset, colour="red")
    with pytest.raises(InputError, match="neither in the current folder nor in DETECTRON2"):
        register(dataset, json="no/such.json")
    with pytest.raises(InputError, match="two data sets called 'twice'"):
        register(dataset, dataset, name="twice")
    with pytest.raises(InputError, match="exists already"):
        register(dataset, name="coco_2017_val")
    other = copy.deepcopy(dataset)
    other["categories"].append({"id": 71})
    with pytest.raises(InputError, match="do not list the same category ids.*71"):
        register(dataset, other)
    other = copy.deepcopy(dataset)
    first, second = other["categories"][:2]
    first["name"], second["name"] = second["name"], first["name"]
    with pytest.raises(InputError, match=f"other names for category {first['id']}, '.*' and '.*'"):
        register(dataset, other)
    del first["name"], second["name"]  # a json without names has any
    register(dataset, other)


class TestMapper:
    """Damage that the check at the start cannot have seen."""

    def mapped(self, register, dataset, tmp_path, is_train, damage):
        cfg, records = register(dataset)
        damage(tmp_path / "images/1.jpg")
        return TolerantMapper(cfg, is_train=is_train)(records[0])

    def truncate(self, path):
        path.write_bytes(path.read_bytes()[:-400])

    def test_training_skips(self, register, dataset, tmp_path, caplog):
        assert self.mapped(register, dataset, tmp_path, True, self.truncate) is None
        assert "1.jpg" in caplog.text

    def test_inference_fails(self, register, dataset, tmp_path):
        with pytest.raises(InputError, match="1.jpg cannot be used"):
            self.mapped(register, dataset, tmp_path, False, self.truncate)

    def test_missing_file_fails(self, register, dataset, tmp_path):
        with pytest.raises(InputError, match="1.jpg does not exist"):
            self.mapped(register, dataset, tmp_path, True, lambda path: path.unlink())
