"""Every way to evaluate against lvis-api itself, on random sets full of oddities."""

import copy
import csv
import json
import logging
import math
import runpy
import sys

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from conftest import REPOSITORY
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from lvis import LVIS, LVISEval, LVISResults
from odd_lvis_sets import HEIGHT, WIDTH, encode, odd_set

from tde_det.engine import Trainer
from tde_det.errors import InputError
from tde_det.evaluation import BACKENDS, Detections, hotcoco_backend, lvis_eval, results_file
from tde_det.evaluation.boundary import mask_boundary
from tde_det.evaluation.lvis_eval import lvis_curves
from tde_det.evaluation.results_file import parse_detections, read_detections, write_detections


class GroundTruth(LVIS):
    def _load_json(self, path):
        return path


def naive_boundary(rle):
    """mask_to_boundary of boundary-iou-api, on the whole image."""
    mask = mask_util.decode(rle)
    distance = max(1, int(round(0.02 * math.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2))))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
    return mask_util.encode(np.asfortranarray(mask - eroded[1:-1, 1:-1]))


class BoundaryEval(LVISEval):
    def compute_iou(self, img_id, cat_id):
        gt, dt = self._get_gt_dt(img_id, cat_id)
        if not gt or not dt:
            return super().compute_iou(img_id, cat_id)
        dt = [dt[i] for i in np.argsort([-d["score"] for d in dt], kind="mergesort")]
        pairs = [[r["segmentation"] for r in rows] for rows in (dt, gt)]
        edges = [[naive_boundary(m) for m in masks] for masks in pairs]
        crowd = [0] * len(gt)
        return np.minimum(mask_util.iou(*pairs, crowd), mask_util.iou(*edges, crowd))


@pytest.fixture
def lvis_api_result(monkeypatch):
    """Precision and recall of lvis-api, with the NumPy name it needs restored."""
    monkeypatch.setattr(np, "float", float, raising=False)

    def curves(data, results, task, max_dets=300):
        results = copy.deepcopy(results)
        for result in results:
            # As Detectron2: sizes by mask area. Without boxes, lvis-api takes those of the masks.
            if task != "bbox":
                result.pop("bbox", None)
            elif "bbox" in result:
                result.pop("segmentation", None)
        gt = GroundTruth(copy.deepcopy(data))
        dt = LVISResults(gt, results, max_dets=max_dets)
        kind = BoundaryEval if task == "boundary" else LVISEval
        evaluation = kind(gt, dt, "bbox" if task == "bbox" else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation.eval["precision"], evaluation.eval["recall"]

    return curves


def assert_equal(expected, actual):
    for one, other in zip(expected, actual):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("first", range(0, 240, 40))
def test_equals_lvis_api(lvis_api_result, caplog, monkeypatch, first, task):
    monkeypatch.setattr(hotcoco_backend, "BATCH", 20)
    precisions = []
    for seed in range(first, first + 40):
        # Some with more than 300 detections in an image, some with masks only.
        data, results = odd_set(seed, with_boxes=seed % 4 > 0, most=700 if seed % 40 < 2 else 12)
        if not results:
            continue
        expected = lvis_api_result(data, results, task)
        before = copy.deepcopy((data, results))
        for backend in BACKENDS:
            assert_equal(expected, lvis_curves(data, results, task, backend))
        assert (data, results) == before, "inputs were changed"
        precisions.append(expected[0][expected[0] > -1])
    assert 0.2 < np.concatenate(precisions).mean() < 0.8  # something matched, and not all
    assert "slowly" not in caplog.text


@pytest.mark.parametrize("problem", ["annotation 0", "NaN score", "NaN box", "infinite box"])
def test_falls_back_to_lvis_api(lvis_api_result, caplog, problem):
    different = False
    for seed in range(8):
        data, results = odd_set(seed)
        plain = lvis_curves(data, results, "bbox")
        for i, annotation in enumerate(data["annotations"]):
            if problem == "annotation 0":
                annotation["id"] = i
        for result in results[::3]:
            if problem == "NaN score":
                result["score"] = float("nan")
            elif problem.endswith("box"):
                value = float("nan" if "NaN" in problem else "inf")
                result["bbox"] = [value, *result["bbox"][1:]]
        caplog.clear()
        actual = lvis_curves(data, results, "bbox")
        assert_equal(lvis_api_result(data, results, "bbox"), actual)
        assert "slowly" in caplog.text
        different |= not np.array_equal(plain[0], actual[0])
    assert different


def test_without_hotcoco(lvis_api_result, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    data, results = odd_set(1)
    for task in ("bbox", "segm"):
        assert_equal(lvis_api_result(data, results, task), lvis_curves(data, results, task))
    assert caplog.text.count("hotcoco cannot be imported") == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_ap_fixed(lvis_api_result, monkeypatch, task, backend):
    monkeypatch.setattr(lvis_eval, "MAX_DETECTIONS_FIXED", 250)
    for seed in range(3):
        data, results = odd_set(seed, most=1500, num_categories=4, num_images=2)
        by_category = {}
        for result in results:
            by_category.setdefault(result["category_id"], []).append(result)
        best = []
        for rows in by_category.values():
            best.extend(sorted(rows, key=lambda r: r["score"], reverse=True)[:250])
        per_image = np.unique([r["image_id"] for r in best], return_counts=True)[1]
        assert len(best) < len(results) and per_image.max() > 300
        expected = lvis_api_result(data, best, task, max_dets=-1)
        assert_equal(expected, lvis_curves(data, results, task, backend, fixed=True))
        assert not np.array_equal(expected[0], lvis_api_result(data, results, task)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_boundary_ap(lvis_api_result, backend):
    for seed in range(10):
        data, results = odd_set(seed)
        expected = lvis_api_result(data, results, "boundary")
        assert_equal(expected, lvis_curves(data, results, "boundary", backend))
    assert not np.array_equal(expected[0], lvis_curves(data, results, "segm")[0])


def test_boundary_of_a_mask():
    rng = np.random.default_rng(0)
    for height, width in ((5, 7), (40, 300), (200, 150)):
        for blur in (1, 9, 31):
            noise = cv2.GaussianBlur(rng.random((height, width)), (blur, blur), 0)
            rle = encode(noise > np.median(noise))
            assert mask_boundary(rle)["counts"] == naive_boundary(rle)["counts"]
        for full in (0, 1):
            rle = encode(np.full((height, width), full))
            assert mask_boundary(rle)["counts"] == naive_boundary(rle)["counts"]


class TestDetections:
    def instances(self, rng, count, rle=False):
        result = Instances((HEIGHT, WIDTH))
        result.pred_boxes = Boxes(torch.from_numpy(rng.random((count, 4), np.float32) * 100))
        result.scores = torch.from_numpy(rng.random(count, np.float32))
        result.pred_classes = torch.from_numpy(rng.integers(0, 9, count))
        result.pred_masks = torch.from_numpy(rng.random((count, HEIGHT, WIDTH)) > 0.5)
        if rle:
            result.pred_masks_rle = [encode(mask.numpy()) for mask in result.pred_masks]
            result.remove("pred_masks")
        return result

    @pytest.mark.parametrize("rle", [False, True])
    def test_writes_what_detectron2_writes(self, tmp_path, monkeypatch, rle):
        monkeypatch.setattr(results_file, "CHUNK_ROWS", 4)
        expected, parts = [], []
        for image_id, count in ((7, 3), (2**60, 0), (5, 9)):
            seeded = [self.instances(np.random.default_rng(image_id), count) for _ in range(2)]
            expected += instances_to_coco_json(seeded[0], image_id)
            instances = self.instances(np.random.default_rng(image_id), count, rle)
            parts.append(Detections.from_instances(instances, image_id))
        write_detections(Detections.concatenate(parts), str(tmp_path / "results.json"))
        assert json.loads((tmp_path / "results.json").read_text()) == expected

    @pytest.mark.parametrize("layout", [{}, {"indent": 1}, {"separators": (",", ":")}])
    def test_reads_what_was_written(self, tmp_path, layout):
        for seed in range(6):
            rows = [r for r in odd_set(seed)[1] if math.isfinite(r["score"])]
            (tmp_path / "r.json").write_text(json.dumps(rows, **layout))
            read = read_detections(str(tmp_path / "r.json"), {})
            assert read.to_dicts() == rows

    def test_reads_nan_and_unknown_fields(self, tmp_path):
        row = {"image_id": 1, "category_id": 2, "score": float("nan"), "bbox": [1, 2, 3, 4]}
        rows = [{**row, "parts": [{"a": 1}, {"b": 2}] * 20}] * 9
        (tmp_path / "r.json").write_text(json.dumps(rows))
        read = read_detections(str(tmp_path / "r.json"), {})
        assert len(read) == 9 and read.boxes.tolist() == [[1, 2, 3, 4]] * 9

    def test_forms_of_masks(self):
        polygon = [10.0, 10.0, 60.0, 12.0, 40.0, 90.0]
        rle = mask_util.merge(mask_util.frPyObjects([polygon], HEIGHT, WIDTH))
        flat = mask_util.decode(rle).ravel(order="F")
        changes = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *changes, flat.size]).tolist()
        forms = [
            [polygon],
            {"size": [HEIGHT, WIDTH], "counts": counts},
            {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
            rle,
        ]
        rows = [
            {"image_id": 1, "category_id": 1, "score": 1, "segmentation": form} for form in forms
        ]
        read = parse_detections(rows, {1: (HEIGHT, WIDTH)})
        assert read.masks.tolist() == [rle["counts"].decode()] * 4
        assert read.mask_sizes.tolist() == [[HEIGHT, WIDTH]] * 4


class TestCommandLine:
    @pytest.fixture
    def run(self, tmp_path, monkeypatch, capsys):
        data, results = odd_set(5)
        for result in results:
            result["score"] = min(max(result["score"], 0), 1)
        for annotation in data["annotations"]:
            annotation["area"] = min(annotation["area"], 2e10)

        def run(*options, results=results):
            (tmp_path / "gt.json").write_text(json.dumps(data))
            (tmp_path / "results.json").write_text(json.dumps(results))
            arguments = [
                "--json-file",
                tmp_path / "gt.json",
                "--results",
                tmp_path / "results.json",
            ]
            monkeypatch.setattr(
                sys, "argv", ["evaluate_results.py", *map(str, arguments), *options]
            )
            runpy.run_path(f"{REPOSITORY}/tools/evaluate_results.py", run_name="__main__")
            return capsys.readouterr().out

        yield run, data, results
        for name in ("tde_det", "detectron2", "fvcore"):
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True

    def test_everything(self, run, lvis_api_result, tmp_path):
        run, data, results = run
        out = tmp_path / "new/folder"
        options = ("--ap-fixed", "--ap-pool", "--calibration", "--boundary")
        options += ("--output", f"{out}/m.json")
        printed = run("--tasks", "bbox", "segm", *options)
        metrics = json.loads((out / "m.json").read_text())
        tasks = ("bbox", "segm", "boundary")
        kinds = ("", "_fixed", "_pool")
        assert [*metrics] == [task + kind for task in tasks for kind in kinds]
        assert (out / "reliability.csv").exists() and "ECEr" in printed
        with open(out / "per_category_ap.csv") as f:
            rows = list(csv.DictReader(f))
        for task in tasks:
            precision = lvis_api_result(data, results, task)[0][..., 0]
            assert metrics[task]["AP"] == pytest.approx(100 * precision[precision > -1].mean())
            assert f"{metrics[task]['AP']:.2f}" in printed
            for i, row in enumerate(rows):
                value = 100 * precision[:, :, i].mean()
                expected = f"{value:.6f}" if value >= 0 else ""
                assert row[f"AP_{task}"] == expected
        for row in rows:
            mine = [a for a in data["annotations"] if a["category_id"] == int(row["category_id"])]
            assert int(row["instances"]) == len(mine)
            assert int(row["images"]) == len({a["image_id"] for a in mine})
        again = run("--tasks", "bbox", "segm", *options, "--backend", "lvis")
        table, other = ([s for s in t.splitlines() if s[0] == "|"] for t in (printed, again))
        assert table == other and len(table) == 11

    def test_prints_only(self, run, tmp_path):
        run, _, results = run
        before = {*tmp_path.iterdir()}
        assert "segm" in run()
        boxes = [{k: v for k, v in r.items() if k != "segmentation"} for r in results]
        assert "segm" not in run(results=boxes)  # nothing to evaluate
        assert {*tmp_path.iterdir()} - before == {tmp_path / "gt.json", tmp_path / "results.json"}

    @pytest.mark.parametrize(
        "options, change, message",
        [
            (("--tasks", "segm"), {"segmentation": None}, "no 'segmentation'"),
            (("--output", "/"), {}, "cannot be written: Is a directory"),
            (("--output", "new/per_category_ap.csv"), {}, "name another"),
        ],
    )
    def test_errors(self, run, options, change, message):
        run, _, results = run
        with pytest.raises(SystemExit, match=message):
            run(*options, results=[{**results[0], **change}, *results[1:]])


def test_unknown_backend(load_config):
    cfg = load_config("mini_lvis_cascade_tde.yaml", "TEST.LVIS_BACKEND", "cocoapi")
    with pytest.raises(InputError, match="LVIS_BACKEND is 'cocoapi'; known are hotcoco and lvis"):
        Trainer.build_evaluator(cfg, "lvis_v1_val")
