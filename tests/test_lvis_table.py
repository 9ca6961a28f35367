"""Tables of LVIS jsons against Detectron2's own: the same dicts, drawn in the same order."""

import argparse
import copy
import errno
import itertools
import json
import multiprocessing
import os
import pathlib
import pickle

import data_loading
import numpy as np
import pyarrow as pa
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.datasets.lvis import (
    get_lvis_instances_meta,
    load_lvis_json,
    register_lvis_instances,
)
from detectron2.structures import BoxMode
from generate_lvis_json import generate

from tde_det.data import build_test_loader, build_train_loader, lvis_table, register_lvis_json
from tde_det.data.cache import cache_folder
from tde_det.data.image_files import check_images_exist
from tde_det.data.lvis_json import read_lvis_json
from tde_det.data.lvis_table import LvisTable
from tde_det.data.objects import box_centers, objects_in
from tde_det.data.registered import image_files, registered_dataset
from tde_det.errors import InputError


def random_lvis(seed, num_images=40, num_annotations=150, category_ids=range(1, 61)):
    """LVIS-format content in no order, with what a careful reader could trip over."""
    rng = np.random.default_rng(seed)

    def numbers(n):
        return [
            [int, float, lambda v: round(v, 2), lambda v: float(int(v))][rng.integers(4)](v)
            for v in rng.uniform(0.5, 500, n).tolist()
        ]

    images = []
    for image_id in (rng.choice(10_000, num_images, replace=False) + 1).tolist():
        image = {
            "id": image_id,
            "height": int(rng.integers(1, 900)),
            "width": int(rng.integers(1, 900)),
            "coco_url": f"http://x/y/{rng.choice(['train2017', 'vål'])}/{image_id:012}.jpg",
            "file_name": "not this one.jpg",
            "flickr_url": 'quoted " and \\ and é',
        }
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if rng.random() < 0.7:
                image[key] = rng.choice(category_ids, rng.integers(0, 5)).tolist()
        images.append(image)
    annotations = [
        {
            "id": annotation_id,
            "image_id": images[rng.integers(num_images * 3 // 4)]["id"],  # some have none
            "category_id": int(rng.choice(category_ids)),
            "bbox": numbers(4),
            "area": numbers(1)[0],
            "iscrowd": int(rng.random() < 0.3),
            "segmentation": [numbers(2 * n) for n in rng.integers(3, 9, rng.integers(1, 4))],
            "extra": [None, {"deep": [1]}],
        }
        for annotation_id in (rng.permutation(num_annotations) + 1).tolist()
    ]
    categories = [{"id": i, "name": f"c{i}"} for i in reversed(category_ids)]
    return {"annotations": annotations, "images": images, "info": {}, "categories": categories}


def exact(records):
    """Tells 1 from 1.0 and one order of keys from another, except that coordinates are floats."""
    records = copy.deepcopy(list(records))
    for record in records:
        for annotation in record["annotations"]:
            annotation["bbox"] = list(map(float, annotation["bbox"]))
            if isinstance(annotation.get("segmentation"), list):
                annotation["segmentation"] = [
                    [float(value) for value in polygon] for polygon in annotation["segmentation"]
                ]
    return repr([sorted_keys(record) for record in records])


def sorted_keys(value):
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return list(map(sorted_keys, value)) if isinstance(value, list) else value


def naive_records(path, root):
    """The dicts of a custom set, one annotation at a time; and what is left out, by reason."""
    data = read_lvis_json(path)
    class_of = {k: i for i, k in enumerate(sorted(c["id"] for c in data["categories"]))}
    records, skipped = [], {}
    for image in sorted(data["images"], key=lambda image: image["id"]):
        record = {
            "file_name": os.path.join(root, image["file_name"]),
            "image_id": image["id"],
            **{key: image[key] for key in ("height", "width")},
            **{key: image[key] for key in ("neg_category_ids", "not_exhaustive_category_ids")},
            "annotations": [],
        }
        records.append(record)
        for a in data["annotations"]:
            if a["image_id"] != image["id"]:
                continue
            mask = a.get("segmentation")
            if isinstance(mask, list):
                mask = [p for p in mask if len(p) > 5 and len(p) % 2 == 0]
            if not (np.isfinite(a["bbox"]).all() and a["bbox"][2] > 0 and a["bbox"][3] > 0):
                reason = "a box without area"
            elif mask == []:
                reason = "no polygon with at least 3 points"
            else:
                converted = {"bbox": a["bbox"], "bbox_mode": BoxMode.XYWH_ABS}
                converted["category_id"] = class_of[a["category_id"]]
                if a.get("iscrowd"):
                    converted["iscrowd"] = 1
                if mask is not None:
                    converted["segmentation"] = mask
                record["annotations"].append(converted)
                continue
            skipped[reason] = skipped.get(reason, 0) + 1
    return records, skipped


def write(folder, content, name="x.json"):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder / name)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache/tde_det"
    return cache_folder()


@pytest.fixture
def register():
    """Detectron2's own registration, undone afterwards."""
    names = []

    def run(name, json_file, root="r/", by=register_lvis_instances):
        names.append(name)
        if by is register_lvis_instances:
            by(name, {}, json_file, root)
        else:
            by(name, json_file)
        return name

    yield run
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def files(cache):
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


class TestSameDicts:
    @pytest.mark.parametrize("name", ["lvis_v1_t", "lvis_v0.5_t", "lvis_v0.5_t_cocofied"])
    @pytest.mark.parametrize("root", ["", "r", "r/", "/a/b/"])
    def test_as_load_lvis_json(self, tmp_path, name, root):
        mapping = get_lvis_instances_meta(name).get("thing_dataset_id_to_contiguous_id")
        path = write(tmp_path, random_lvis(1, category_ids=list(mapping or range(1, 61))))
        expected = load_lvis_json(path, root, name)
        dataset = LvisTable(path, root, built_in=name)
        assert list(dataset) == expected and exact(list(dataset)) == exact(expected)
        assert dataset.file_names() == [record["file_name"] for record in expected]
        assert dataset[-1] == expected[-1] and dataset[np.int64(3)] == expected[3]
        with pytest.raises(IndexError):
            dataset[len(expected)]

    def test_on_the_generated_json(self, tmp_path):
        sizes = dict(num_images=200, num_annotations=2000)
        for name in ("a", "b"):
            generate(tmp_path / name, **sizes)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        generate(tmp_path / "b", **sizes, seed=1)
        assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()
        content = json.loads((tmp_path / "a").read_text())
        assert (len(content["images"]), len(content["annotations"])) == (200, 2000)
        assert len(content["categories"]) == 1203
        counted = len({(a["image_id"], a["category_id"]) for a in content["annotations"]})
        assert sum(c["image_count"] for c in content["categories"]) == counted
        sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
        for annotation in content["annotations"]:
            points = np.concatenate([np.reshape(p, (-1, 2)) for p in annotation["segmentation"]])
            low, high = points.min(axis=0), points.max(axis=0)
            np.testing.assert_allclose(annotation["bbox"], [*low, *(high - low)], atol=0.011)
            assert (low >= 0).all() and (high <= sizes[annotation["image_id"]]).all()
        dataset = LvisTable(str(tmp_path / "a"), "r/", built_in="lvis_v1_t")
        expected = load_lvis_json(str(tmp_path / "a"), "r/", "lvis_v1_t")
        assert list(dataset) == expected and exact(dataset) == exact(expected)

    def test_of_any_json(self, tmp_path):
        content = random_lvis(7)
        content["categories"] = [{"id": c["id"] * 10 - 300} for c in content["categories"]]
        for i, annotation in enumerate(content["annotations"]):
            annotation["category_id"] = annotation["category_id"] * 10 - 300
            image = next(m for m in content["images"] if m["id"] == annotation["image_id"])
            if i % 4 == 0:
                pixels = np.random.default_rng(i).random((image["height"], image["width"])) < 0.5
                rle = mask_util.encode(np.asfortranarray(pixels, np.uint8))
                annotation["segmentation"] = {**rle, "counts": rle["counts"].decode()}
            elif i % 7 == 0:
                del annotation["segmentation"]
            elif i % 11 == 0:
                annotation["bbox"] = [1, float("nan"), 3, 4]
            elif i % 13 == 0:
                annotation["segmentation"] = [[1, 2, 3, 4]]
        for i, image in enumerate(content["images"]):
            image["file_name"] = f"{i}/ü.jpg"
            if i % 3 == 0:
                image["neg_category_ids"] = None
        path = write(tmp_path, content)
        expected, skipped = naive_records(path, "root")
        dataset = LvisTable(path, "root")
        assert exact(list(dataset)) == exact(expected)
        assert dataset.skipped() == skipped and len(skipped) == 2
        assert dataset.mask_kinds() == {"polygons", "rle", "none"}
        assert dataset.is_crowd().sum() == sum(
            "iscrowd" in a for record in expected for a in record["annotations"]
        )

    @pytest.mark.parametrize("built_in", ["lvis_v1_t", None])
    def test_columns(self, tmp_path, register, built_in):
        path = write(tmp_path, random_lvis(11))
        dataset = LvisTable(path, "r/", built_in=built_in)
        records = list(dataset)
        pairs = [(i, a) for i, record in enumerate(records) for a in record["annotations"]]
        assert dataset.image_index().tolist() == [i for i, _ in pairs]
        assert dataset.classes().tolist() == [a["category_id"] for _, a in pairs]
        assert dataset.boxes().tolist() == [a["bbox"] for _, a in pairs]
        assert dataset.is_crowd().tolist() == ["iscrowd" in a for _, a in pairs]
        assert dataset.sizes().tolist() == [[r["width"], r["height"]] for r in records]
        assert dataset.mask_kinds() == {"polygons"}
        by_column, by_record = objects_in(dataset), objects_in(records)
        assert by_column.num_images == by_record.num_images == 40
        for column, expected in zip(by_column[:3], by_record[:3]):
            assert column.tolist() == expected.tolist()
        name = register("lvis_v1_t", path) if built_in else "records"
        if not built_in:
            register(name, None, by=lambda name, _: DatasetCatalog.register(name, lambda: records))
        classes, centers = box_centers([name], 1203)
        kept = [(i, a) for i, a in pairs if "iscrowd" not in a]
        assert classes.tolist() == [a["category_id"] for _, a in kept]
        for (i, a), center in zip(kept, centers.tolist()):
            x, y, width, height = a["bbox"]
            size = records[i]["width"], records[i]["height"]
            expected = (x + width / 2) / size[0], (y + height / 2) / size[1]
            assert center == pytest.approx(expected, rel=1e-14)

    def test_of_a_set_without_annotations(self, tmp_path):
        content = random_lvis(0)
        del content["annotations"]
        dataset = LvisTable(write(tmp_path, content), "r/", built_in="lvis_v1_t")
        assert len(dataset) == 40 and all(record["annotations"] == [] for record in dataset)

    @pytest.mark.parametrize(
        "change, message",
        [
            (lambda a, m: a.update(segmentation={"size": [1, 1], "counts": [1]}), "mask of size"),
            (lambda a, m: a.update(segmentation=[[1, 2, 3, 4]]), "other than polygons of at least"),
            (lambda a, m: a.update(segmentation=[]), "other than polygons of at least"),
            (lambda a, m: a.pop("segmentation"), "other than polygons of at least"),
            (lambda a, m: a.update(bbox=[1, 2, "3", 4]), r"got `str` - at `.*bbox\[2\]"),
            (lambda a, m: m.pop("coco_url"), "image .* no coco_url"),
            (lambda a, m: m.update(coco_url="x.jpg"), "image .* no coco_url"),
            (lambda a, m: a.update(category_id=99), "category_id 99"),
        ],
    )
    def test_what_load_lvis_json_refuses(self, tmp_path, cache, change, message):
        content = random_lvis(1)
        annotation = next(a for a in content["annotations"] if a["id"] == 5)
        change(annotation, next(m for m in content["images"] if m["id"] == annotation["image_id"]))
        with pytest.raises(InputError, match=message):
            LvisTable(write(tmp_path, content), "r/", built_in="lvis_v1_t")
        assert files(cache) == []


class TestLoader:
    def cfg(self, names, sampler="TrainingSampler", **dataloader):
        cfg = get_cfg()
        cfg.DATASETS.TRAIN = names
        cfg.SOLVER.IMS_PER_BATCH = 4
        cfg.DATASETS.TRAIN_REPEAT_FACTOR = [(names[0], 2.5)]
        cfg.SEED = 3
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.DATALOADER.SAMPLER_TRAIN = sampler
        for key, value in dataloader.items():
            cfg.DATALOADER[key] = value
        return cfg

    def assert_same(self, cfg, batches=40):
        """Both loaders give the same batches, and the same repeat factors."""
        drawn, factors = [], []
        for build in (build_detection_train_loader, build_train_loader):
            np.random.seed(0)  # Detectron2's samplers without a seed start from it
            loader = build(cfg, mapper=pass_on)
            drawn.append(sum(itertools.islice(loader, batches), []))
            if build is build_train_loader:
                sampler = loader.batch_sampler.sampler
            else:
                sampler = (
                    loader.dataset
                    if hasattr(loader, "batch_size") and not hasattr(loader, "collate_fn")
                    else loader
                ).dataset.sampler
            if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
                factors.append(sampler._int_part + sampler._frac_part)
        assert exact(drawn[0]) == exact(drawn[1])
        if factors:
            assert torch.equal(*factors) and len(factors[0].unique()) > 1

    @pytest.mark.parametrize(
        "sampler, options",
        [
            ("TrainingSampler", {}),
            ("TrainingSampler", {"NUM_WORKERS": 1}),
            ("TrainingSampler", {"NUM_WORKERS": 2, "ASPECT_RATIO_GROUPING": False}),
            ("TrainingSampler", {"FILTER_EMPTY_ANNOTATIONS": False}),
            ("TrainingSampler", {"ASPECT_RATIO_GROUPING": False}),
            ("RepeatFactorTrainingSampler", {"REPEAT_THRESHOLD": 0.3}),
            ("RepeatFactorTrainingSampler", {"REPEAT_THRESHOLD": 0.3, "REPEAT_SQRT": False}),
            (
                "RepeatFactorTrainingSampler",
                {"REPEAT_THRESHOLD": 0.3, "FILTER_EMPTY_ANNOTATIONS": False},
            ),
            ("RandomSubsetTrainingSampler", {"RANDOM_SUBSET_RATIO": 0.5}),
            ("WeightedTrainingSampler", {}),
        ],
    )
    def test_draws_what_detectron2_draws(self, tmp_path, register, sampler, options):
        names = tuple(
            register(f"lvis_v1_{i}", write(tmp_path, random_lvis(i), f"{i}.json")) for i in range(2)
        )
        self.assert_same(self.cfg(names[:1], sampler, **options))
        self.assert_same(self.cfg(names, sampler, **options), batches=10)

    @pytest.mark.parametrize("filter_empty", [True, False])
    def test_custom_set_with_crowds(self, tmp_path, register, filter_empty, monkeypatch):
        monkeypatch.setattr("tde_det.data.custom_sets.check_image_files", lambda *_: None)
        content = random_lvis(3)
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1 if annotation["image_id"] % 2 else annotation["iscrowd"]
        path = write(tmp_path, content)
        name = register("crowds", path, by=lambda *a: register_lvis_json(*a, image_root="r"))
        assert list(registered_dataset(name)) == DatasetCatalog.get(name)
        for sampler in ("TrainingSampler", "RepeatFactorTrainingSampler"):
            options = {"FILTER_EMPTY_ANNOTATIONS": filter_empty, "REPEAT_THRESHOLD": 0.3}
            self.assert_same(self.cfg((name,), sampler, **options))

    def test_same_table_of_classes(self, tmp_path, register, monkeypatch):
        cfg = self.cfg((register("lvis_v1_t", write(tmp_path, random_lvis(2))),))
        tables = []
        monkeypatch.setattr(
            "detectron2.data.build.log_first_n", lambda _, text, **kwargs: tables.append(text)
        )
        for build in (build_train_loader, build_detection_train_loader):
            build(cfg, mapper=pass_on)
        assert len(tables) == 2 and tables[0] == tables[1] and "| 150" in tables[0]

    def test_of_a_test_set(self, tmp_path, register):
        name = register("lvis_v1_t", write(tmp_path, random_lvis(4)))
        cfg = self.cfg((name,))
        expected = sum(build_detection_test_loader(cfg, name, mapper=pass_on), [])
        assert exact(sum(build_test_loader(cfg, name, mapper=pass_on), [])) == exact(expected)

    def test_users_own_function_is_called(self, tmp_path, register):
        path = write(tmp_path, random_lvis(5))
        name = register("lvis_v1_t", path)
        records = DatasetCatalog.get(name)[:20]
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        DatasetCatalog.register(name, lambda: records)
        assert registered_dataset(name) is records
        self.assert_same(self.cfg((name,)))
        # Beside one of LVIS, Detectron2 loads both.
        other = register("lvis_v1_u", path)
        self.assert_same(self.cfg((other, name)))

    def test_nothing_to_train_on(self, tmp_path, register):
        content = random_lvis(6)
        content["annotations"] = []
        name = register("lvis_v1_t", write(tmp_path, content))
        with pytest.raises(InputError, match="lvis_v1_t.*no annotations to train on"):
            build_train_loader(self.cfg((name,)), pass_on)

    @pytest.mark.parametrize("category_id", [0, 1204, 10**12])
    def test_a_class_that_the_set_does_not_have(self, tmp_path, register, category_id):
        content = random_lvis(6)
        content["categories"].append({"id": category_id})
        content["annotations"][0].update(category_id=category_id, iscrowd=0)
        name = register("lvis_v1_t", write(tmp_path, content))
        with pytest.raises(InputError, match=f"class {category_id - 1} .* none of the 1203"):
            build_train_loader(self.cfg((name,)), pass_on)

    def test_missing_images_are_named(self, tmp_path, register):
        name = register("lvis_v1_t", write(tmp_path, random_lvis(6)), str(tmp_path) + "/")
        with pytest.raises(InputError, match="40 of 40 image files cannot be used"):
            check_images_exist(image_files(name), name, "")


def pass_on(record):
    return record


class TestCache:
    @pytest.fixture
    def path(self, tmp_path):
        return write(tmp_path, random_lvis(8, category_ids=range(1, 12)))  # COCO's first

    @pytest.fixture
    def reads(self, monkeypatch, tmp_path):
        """How often a json has been read, by any process."""
        log = tmp_path / "reads"
        log.touch()
        read = lvis_table.LvisJson

        def counted(path):
            with open(log, "a") as f:
                f.write("x")
            return read(path)

        monkeypatch.setattr(lvis_table, "LvisJson", counted)
        return lambda: len(log.read_text())

    def test_is_used_until_the_json_changes(self, path, cache, reads):
        expected = list(LvisTable(path, "r"))
        first = files(cache)
        assert list(LvisTable(path, "r")) == expected and reads() == 1 and len(first) == 1
        os.utime(path, ns=(1, 1))
        assert list(LvisTable(path, "r")) == expected and reads() == 2
        assert len(files(cache)) == 1 and files(cache) != first  # no stale file stays
        content = json.loads(pathlib.Path(path).read_text())
        content["images"][0]["height"] += 1000  # another size, the same time
        write(cache.parents[1], content)
        os.utime(path, ns=(1, 1))
        assert list(LvisTable(path, "r")) == to_list(path) != expected and reads() == 3
        assert len(files(cache)) == 1

    def test_keeps_data_sets_apart(self, path, cache, reads, tmp_path):
        os.makedirs(tmp_path / "other")
        twin = write(tmp_path / "other", pathlib.Path(path).read_text())
        os.utime(twin, ns=(os.stat(path).st_mtime_ns,) * 2)
        for _ in range(2):
            LvisTable(path, "r")
            LvisTable(path, "elsewhere")
            LvisTable(path, "r", built_in="lvis_v1_t")
            LvisTable(path, "r", built_in="lvis_v0.5_t_cocofied")
            LvisTable(twin, "r")
        assert reads() == len(files(cache)) == 4

    @pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
    def test_is_made_again_if_damaged(self, path, cache, reads, caplog, damage):
        expected = list(LvisTable(path, "r"))
        (file,) = (cache / name for name in files(cache))
        content = file.read_bytes()
        file.write_bytes({"cut": content[:-100], "empty": b"", "garbage": b"\0" * 999}[damage])
        assert list(LvisTable(path, "r")) == expected and reads() == 2
        assert "is damaged" in caplog.text
        assert list(LvisTable(path, "r")) == expected and reads() == 2

    def test_that_cannot_be_made(self, path, tmp_path, monkeypatch, caplog):
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        dataset = LvisTable(path, "r")
        assert "without a cache" in caplog.text and list(dataset) == to_list(path)
        assert list(pickle.loads(pickle.dumps(dataset))) == to_list(path)

    def test_on_a_full_disk(self, path, cache, monkeypatch, caplog):
        write_file = lvis_table._convert

        def fail_on_disk(json_file, mapping, out):
            write_file(json_file, mapping, out)
            if not isinstance(out, pa.NativeFile):
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(lvis_table, "_convert", fail_on_disk)
        assert list(LvisTable(path, "r")) == to_list(path)
        assert "No space left" in caplog.text and files(cache) == []

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_in_a_read_only_folder(self, path, cache, reads):
        LvisTable(path, "r")
        cache.chmod(0o500)
        assert list(LvisTable(path, "r")) == to_list(path) and reads() == 1
        os.utime(path, ns=(1, 1))
        assert list(LvisTable(path, "r")) == to_list(path)
        cache.chmod(0o700)

    def test_of_a_process_that_died(self, path, cache):
        LvisTable(path, "r")
        (name,) = files(cache)
        unfinished = name.rpartition("-")[0] + ".making"
        (cache / unfinished).write_bytes(b"half of it")
        os.utime(path, ns=(1, 1))
        assert list(LvisTable(path, "r")) == to_list(path)
        assert len(files(cache)) == 1 and unfinished not in files(cache)

    def test_is_made_once_by_processes_that_come_together(self, path, reads):
        context = multiprocessing.get_context("fork")
        with context.Pool(4) as pool:
            results = pool.map(to_table_list, [path] * 8, chunksize=1)
        assert reads() == 1 and all(result == to_list(path) for result in results)

    def test_travels_as_a_path(self, path):
        dataset = LvisTable(path, "r", built_in="lvis_v1_t")
        packed = pickle.dumps(dataset)
        assert len(packed) < 1000
        assert exact(pickle.loads(packed)) == exact(dataset)

    def test_outlives_its_file(self, path, cache):
        dataset = LvisTable(path, "r")
        for name in files(cache):
            (cache / name).unlink()
        assert list(dataset) == to_list(path)
        assert list(LvisTable(path, "r")) == to_list(path)


def to_list(path):
    return naive_records(path, "r")[0]


def to_table_list(path):
    return list(LvisTable(path, "r"))


def test_benchmark_compares_the_same_dicts(tmp_path, monkeypatch):
    def run(how, args, workers, cache):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        try:
            return data_loading.measure(how, args.json, workers)
        finally:
            DatasetCatalog.pop(data_loading.NAME)
            MetadataCatalog.pop(data_loading.NAME)

    monkeypatch.setattr(data_loading, "run", run)
    args = argparse.Namespace(json=tmp_path / "x.json", workers=[0, 1], repeat=1)
    generate(args.json, 100, 1000)
    table = data_loading.compare(args)
    assert table.count("seconds to the first batch") == 2 and table.count("worker, PSS") == 1
    monkeypatch.setattr(data_loading, "build_train_loader", lambda cfg, mapper: altered(cfg))
    with pytest.raises(InputError, match="differ"):
        data_loading.compare(args)


def altered(cfg):
    dataset = DatasetCatalog.get(data_loading.NAME)
    dataset[50]["annotations"] = dataset[50]["annotations"][1:]
    return build_detection_train_loader(dataset, mapper=pass_on, total_batch_size=4)
