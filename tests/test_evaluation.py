"""LVIS metrics against lvis-api itself."""

import copy
import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from lvis import LVISEval, LVISResults

from tde_det.data.categories import complete_categories
from tde_det.data.lvis_json import read_lvis_json
from tde_det.errors import InputError
from tde_det.evaluation import METRICS, LongTailEvaluator, evaluate_lvis
from tde_det.evaluation.lvis_api import _GroundTruth
from tde_det.output_files import check_writable, set_aside

SIZE = 160


def rle(x, y, w, h):
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
    encoded = mask_util.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def random_box(rng):
    x, y = rng.integers(0, SIZE - 110, 2)
    w, h = rng.integers(4, 110, 2)
    return [float(v) for v in (x, y, w, h)]


def random_set(seed, num_images=12, num_categories=9, per_image=12):
    """Ground truth and detections with ties, duplicates, empty images and absent categories."""
    rng = np.random.default_rng(seed)
    categories = [
        {"id": 3 * i + 2, "name": f"c{i}", "frequency": "rcf"[i % 3], "image_count": 5}
        for i in range(num_categories)
    ]
    ids = [c["id"] for c in categories]
    images, annotations, detections = [], [], []
    for i in range(num_images):
        images.append(
            {
                "id": 10 * i + 7,
                "height": SIZE,
                "width": SIZE,
                "file_name": f"{i}.jpg",
                "neg_category_ids": rng.choice(ids, 3, replace=False).tolist(),
                "not_exhaustive_category_ids": rng.choice(ids, 2, replace=False).tolist(),
            }
        )
        if i == 3:
            continue  # nothing annotated, nothing detected
        for _ in range(rng.integers(0, 6)):
            box = random_box(rng)
            label = int(rng.choice(ids[:-2]))  # the last two are never annotated
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": images[-1]["id"],
                    "category_id": label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "segmentation": rle(*box),
                }
            )
            for _ in range(rng.integers(0, 4)):  # near hits, several per object
                near = [max(0.0, v + int(rng.integers(-4, 5))) for v in box]
                near[2:] = [max(2.0, v) for v in near[2:]]
                other = int(rng.choice([label, label, int(rng.choice(ids))]))
                score = float(np.round(rng.random(), 1))  # many ties
                detections.append((images[-1]["id"], other, near, score))
        for _ in range(rng.integers(0, per_image)):
            score = float(np.round(rng.random(), 1))
            detections.append((images[-1]["id"], int(rng.choice(ids)), random_box(rng), score))
    data = {"images": images, "annotations": annotations, "categories": categories}
    results = [
        {"image_id": i, "category_id": c, "bbox": b, "score": s, "segmentation": rle(*b)}
        for i, c, b, s in detections
    ]
    return data, results


def lvis_api(monkeypatch, data, results, iou_type):
    """What lvis-api says, with the NumPy name it needs restored for the moment."""
    monkeypatch.setattr(np, "float", float, raising=False)
    results = copy.deepcopy(results)
    if iou_type == "segm":
        for result in results:
            del result["bbox"]  # as Detectron2: sizes by mask area
    gt = _GroundTruth(copy.deepcopy(data))
    evaluation = LVISEval(gt, LVISResults(gt, results), iou_type)
    evaluation.run()
    monkeypatch.undo()
    return evaluation


def assert_same(evaluation, metrics, per_category):
    for name in METRICS:
        expected = evaluation.results[name]
        if expected < 0:
            assert math.isnan(metrics[name])
        else:
            assert metrics[name] == pytest.approx(100 * expected, abs=1e-9)
    precision = evaluation.eval["precision"][..., 0]
    for i, ap in enumerate(per_category):
        values = precision[:, :, i]
        values = values[values > -1]
        if len(values):
            assert ap == pytest.approx(100 * values.mean(), abs=1e-9)
        else:
            assert math.isnan(ap)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_equals_lvis_api(monkeypatch, seed, iou_type):
    data, results = random_set(seed)
    expected = lvis_api(monkeypatch, data, results, iou_type)
    before = copy.deepcopy((data, results))
    actual = evaluate_lvis(data, data["categories"], results, iou_type)
    assert (data, results) == before, "inputs were changed"
    assert_same(expected, *actual)
    assert actual[0]["AP"] > 1


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_ignored_annotations_of_a_json(monkeypatch, tmp_path, iou_type):
    data, results = random_set(4)
    values = [1, True, 0, None]
    for i, annotation in enumerate(data["annotations"]):
        annotation["ignore"] = values[i % 4]
    (tmp_path / "gt.json").write_text(json.dumps(data))
    expected = lvis_api(monkeypatch, data, results, iou_type)
    read = read_lvis_json(str(tmp_path / "gt.json"))
    actual = evaluate_lvis(read, data["categories"], results, iou_type)
    assert_same(expected, *actual)
    for annotation in data["annotations"]:
        del annotation["ignore"]
    unignored = evaluate_lvis(data, data["categories"], results, iou_type)
    assert abs(actual[0]["AP"] - unignored[0]["AP"]) > 1


def test_limit_of_300_detections(monkeypatch):
    data, results = random_set(0, num_images=4, per_image=700)
    assert_same(
        lvis_api(monkeypatch, data, results, "bbox"),
        *evaluate_lvis(data, data["categories"], results, "bbox"),
    )


def test_class_absent_from_results_counts_as_zero():
    data, results = random_set(1)
    label = data["annotations"][0]["category_id"]
    index = [c["id"] for c in data["categories"]].index(label)
    kept = [r for r in results if r["category_id"] != label]
    _, per_category = evaluate_lvis(data, data["categories"], kept, "bbox")
    assert per_category[index] == 0


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections_is_zero(iou_type):
    data, _ = random_set(2)
    metrics, per_category = evaluate_lvis(data, data["categories"], [], iou_type)
    assert metrics["AP"] == 0 and metrics["AR@300"] == 0
    assert sorted(set(per_category[~np.isnan(per_category)])) == [0]
    assert np.isnan(per_category[-2:]).all()  # never annotated


class TestEvaluator:
    @pytest.fixture
    def dataset(self, tmp_path):
        data, results = random_set(3)
        for category in data["categories"]:
            del category["frequency"], category["image_count"]
        path = tmp_path / "gt.json"
        path.write_text(json.dumps(data))
        name = str(tmp_path)
        MetadataCatalog.get(name).set(json_file=str(path), evaluator_type="lvis")
        yield name, data, results, tmp_path
        MetadataCatalog.remove(name)

    def run(self, dataset, results, tasks=("bbox",)):
        name, data, _, folder = dataset
        contiguous = {c["id"]: i for i, c in enumerate(data["categories"])}
        evaluator = LongTailEvaluator(name, tasks, str(folder / "out"))
        for image in data["images"]:
            mine = [r for r in results if r["image_id"] == image["id"]]
            instances = Instances((SIZE, SIZE))
            boxes = np.array([r["bbox"] for r in mine]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances.pred_boxes = Boxes(boxes)
            instances.scores = torch.tensor([r["score"] for r in mine], dtype=torch.float64)
            labels = [contiguous[r["category_id"]] for r in mine]
            instances.pred_classes = torch.tensor(labels, dtype=torch.long)
            evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
        return evaluator.evaluate()

    def test_files_and_numbers(self, dataset, monkeypatch):
        _, data, results, folder = dataset
        metrics = self.run(dataset, results)
        saved = json.loads((folder / "out/lvis_instances_results.json").read_text())
        assert {r["category_id"] for r in saved} == {r["category_id"] for r in results}
        completed = read_lvis_json(str(folder / "gt.json"))
        completed["categories"] = complete_categories(completed)
        expected = lvis_api(monkeypatch, completed, saved, "bbox")
        assert metrics["bbox"]["AP"] == pytest.approx(100 * expected.results["AP"], abs=1e-9)
        written = json.loads((folder / "out/metrics.json").read_text())
        assert written["bbox"]["AP"] == metrics["bbox"]["AP"]
        assert written["bbox"]["APf"] is None  # 12 images hold no frequent class
        lines = (folder / "out/per_category_ap.csv").read_text().splitlines()
        assert lines[0] == "category_id,name,frequency,train_images,instances,images,AP_bbox"
        assert len(lines) == 1 + len(data["categories"])
        instances = sum(int(line.split(",")[4]) for line in lines[1:])
        assert instances == len(data["annotations"])
        images = sum(int(line.split(",")[5]) for line in lines[1:])
        assert images == len({(a["image_id"], a["category_id"]) for a in data["annotations"]})

    def test_nothing_detected(self, dataset):
        assert self.run(dataset, [], ("bbox", "segm"))["segm"]["AP"] == 0

    def test_set_without_annotations(self, dataset):
        name, data, results, folder = dataset
        del data["annotations"]
        (folder / "gt.json").write_text(json.dumps(data))
        assert self.run(dataset, results) == {}
        saved = json.loads((folder / "out/lvis_instances_results.json").read_text())
        assert len(saved) == len(results)


def test_check_writable(tmp_path):
    check_writable(str(tmp_path / "new/folder/file"))
    assert list((tmp_path / "new/folder").iterdir()) == []
    (tmp_path / "file").write_text("content")
    check_writable(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "content"
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "file/x", "exists|Not a dir")):
        with pytest.raises(InputError, match=f"{path} cannot be written: .*({reason})"):
            check_writable(str(path))


def test_set_aside(tmp_path):
    path = tmp_path / "a.b" / "sweep.csv"
    path.parent.mkdir()
    set_aside(str(path))
    for content in ("first", "second"):
        path.write_text(content)
        set_aside(str(path))
        assert not path.exists()
    kept = {file.name: file.read_text() for file in path.parent.iterdir()}
    assert kept == {"sweep_1.csv": "first", "sweep_2.csv": "second"}
