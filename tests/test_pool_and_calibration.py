"""AP-pool and calibration errors against plain loops, from the matching on."""

import copy
import csv
import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
from odd_lvis_sets import HEIGHT, WIDTH, odd_set

from tde_det.data.categories import complete_categories
from tde_det.data.lvis_json import read_lvis_json
from tde_det.data.rle import encode_mask
from tde_det.errors import InputError
from tde_det.evaluation import (
    BACKENDS,
    LongTailEvaluator,
    format_table,
    lvis_eval,
    parse_detections,
    report_lvis,
)
from tde_det.evaluation.calibration_error import BINS, calibration_error, reliability
from tde_det.evaluation.lvis_eval import lvis_matches
from tde_det.evaluation.matches import Matches
from tde_det.evaluation.pooled import pooled_ap

THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
RECALLS = np.linspace(0, 1, 101).tolist()
GROUPS = {"": "rcf", "r": "r", "c": "c", "f": "f"}


def naive_iou(a, b):
    """Of two boxes, or of two masks as arrays of bool."""
    if not isinstance(a, list):
        return (a & b).sum() / (a | b).sum() if a.shape == b.shape else 0
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def best(results, key, count):
    """The results with the highest scores of each image or class; of equals, the first."""
    kept = []
    for value in {r[key] for r in results}:
        mine = [i for i, r in enumerate(results) if r[key] == value]
        kept += sorted(mine, key=lambda i: -results[i]["score"])[:count]
    return [results[i] for i in sorted(kept)]


def naive_match(truth, found, threshold):
    """For each detection, by falling score: the annotation it is matched to, or None."""
    free, chosen = list(truth), []
    for detection in found:
        match, most = None, min(threshold, 1 - 1e-10)
        for annotation in free:
            if match is not None and annotation["skip"] and not match["skip"]:
                break
            iou = naive_iou(detection["shape"], annotation["shape"])
            if iou >= most:
                match, most = annotation, iou
        if match is not None:
            free = [a for a in free if a is not match]
        chosen.append(match)
    return chosen


def naive_matches(data, results, task):
    """Detections that are evaluated, as (score, image, class, outcomes), and objects per class.

    An outcome is True, False, or None for what does not count.
    """
    truth, objects, rows = {}, {}, []
    for a in data["annotations"]:
        if not 0 < a["area"] < math.inf:
            continue
        shape = a["bbox"]
        if task == "segm":
            rle = encode_mask(a["segmentation"], HEIGHT, WIDTH)
            if rle is None:
                continue
            shape = mask_util.decode(rle).astype(bool)
        skip = bool(a.get("ignore")) or a["area"] > 1e10
        objects[a["category_id"]] = objects.get(a["category_id"], 0) + (not skip)
        key = a["image_id"], a["category_id"]
        truth.setdefault(key, []).append({"shape": shape, "skip": skip})
    for image in sorted(data["images"], key=lambda image: image["id"]):
        for category in sorted(c["id"] for c in data["categories"]):
            mine = truth.get((image["id"], category), [])
            if not mine and category not in image["neg_category_ids"]:
                continue
            mine = sorted(mine, key=lambda a: a["skip"])
            found = []
            for r in results:
                if (r["image_id"], r["category_id"]) != (image["id"], category):
                    continue
                if task == "segm" or "bbox" not in r:
                    mask = mask_util.decode(r["segmentation"]).astype(bool)
                    shape, area = mask, mask.sum()
                    if task == "bbox":
                        shape = mask_util.toBbox(r["segmentation"]).tolist()
                else:
                    shape, area = list(map(float, r["bbox"])), r["bbox"][2] * r["bbox"][3]
                if area > 0:
                    found.append({"shape": shape, "score": r["score"]})
            found.sort(key=lambda d: -d["score"])
            by_threshold = []
            for threshold in THRESHOLDS:
                outcomes = []
                for match in naive_match(mine, found, threshold):
                    if match is None:
                        partly = category in image["not_exhaustive_category_ids"]
                        outcomes.append(None if partly else False)
                    else:
                        outcomes.append(None if match["skip"] else True)
                by_threshold.append(outcomes)
            for detection, *outcomes in zip(found, *by_threshold):
                rows.append((detection["score"], image["id"], category, outcomes))
    return rows, objects


def naive_pool(rows, objects, frequency_of):
    rows = sorted(rows, key=lambda row: (-row[0], row[1], row[2]))  # stable
    result = {}
    for name, group in GROUPS.items():
        total = sum(n for category, n in objects.items() if frequency_of[category] in group)
        aps = []
        for i in range(10):
            points, right, wrong = [], 0, 0
            for _, _, category, outcomes in rows:
                if frequency_of[category] in group and outcomes[i] is not None:
                    right, wrong = right + outcomes[i], wrong + (not outcomes[i])
                    points.append((right / total if total else 0, right / (right + wrong)))
            reached = [max([p for r, p in points if r >= recall] + [0]) for recall in RECALLS]
            aps.append(100 * sum(reached) / 101)
        result[f"AP{name}"] = sum(aps) / 10 if total else math.nan
        if name == "":
            result["AP50"], result["AP75"] = (aps[0], aps[5]) if total else (math.nan,) * 2
    return result


def naive_ece(rows, frequency_of):
    result = {}
    for name, group in GROUPS.items():
        bins = {}
        for score, _, category, outcomes in rows:
            if frequency_of[category] in group and outcomes[0] is not None:
                b = next(b for b in range(15) if b == 14 or score * 15 < b + 1)
                bins.setdefault(b, []).append((score, outcomes[0]))
        total = sum(map(len, bins.values()))
        error = 0
        for rows_of_bin in bins.values():
            count = len(rows_of_bin)
            confidence = sum(score for score, _ in rows_of_bin) / count
            accuracy = sum(correct for _, correct in rows_of_bin) / count
            error += count / total * abs(accuracy - confidence)
        result[f"ECE{name}"] = 100 * error if total else math.nan
    return result


def a_set(seed, **options):
    """An odd set with probabilities for scores, of which many are equal."""
    data, results = odd_set(seed, **options)
    rng = np.random.default_rng(seed)
    for result in results:
        result["score"] = float(rng.choice([0, 1, *(rng.random(20).round(2)), 1 / 15, 0.2, 0.4]))
    return data, results


def report(data, results, tasks, backend="hotcoco", **options):
    detections = parse_detections(results, lvis_eval.image_sizes(data))
    return report_lvis(data, data["categories"], detections, tasks, None, backend, **options)


def assert_equal(actual, expected):
    assert {*expected} <= {*actual}
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_plain_loops(monkeypatch, backend, task):
    measured = []
    for seed in range(24):
        # Limits that are reached: 20 detections of a class, 30 of an image.
        monkeypatch.setattr(lvis_eval, "MAX_DETECTIONS_FIXED", 20 if seed % 2 else 10_000)
        monkeypatch.setattr(lvis_eval, "MAX_DETECTIONS", 30 if seed % 2 else 300)
        data, results = a_set(seed, with_boxes=seed % 4 > 0, most=40 if seed % 2 else 12)
        if not results:
            continue
        before = copy.deepcopy((data, results))
        actual = report(data, results, [task], backend, pool=True, calibration=True)
        assert (data, results) == before, "inputs were changed"
        frequency_of = {c["id"]: c["frequency"] for c in data["categories"]}
        if task == "segm":
            results = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
        kept = best(results, "category_id", lvis_eval.MAX_DETECTIONS_FIXED)
        expected = naive_pool(*naive_matches(data, kept, task), frequency_of)
        assert_equal(actual[f"{task}_pool"], expected)
        kept = best(results, "image_id", lvis_eval.MAX_DETECTIONS)
        assert_equal(actual[task], naive_ece(naive_matches(data, kept, task)[0], frequency_of))
        measured.append(actual)
    assert 10 < np.nanmean([m[f"{task}_pool"]["AP"] for m in measured]) < 90
    assert any(math.isnan(m[f"{task}_pool"]["APr"]) for m in measured)  # nothing to measure


def test_boundary_of_both_backends():
    for seed in range(6):
        data, results = a_set(seed)
        one, other = (
            report(data, results, ["boundary"], b, pool=True, calibration=True) for b in BACKENDS
        )
        for name in ("boundary", "boundary_pool"):
            assert_equal(one[name], other[name])
        assert (
            one["boundary_pool"]["AP"]
            <= report(data, results, ["segm"], pool=True)["segm_pool"]["AP"] + 1e-9
        )


def two_classes(second):
    """Two classes whose detections are ranked right within each; ``second`` moves one's scores."""
    images = [
        {"id": i, "height": 100, "width": 100, "file_name": f"{i}.jpg"}
        | {"neg_category_ids": [1, 2], "not_exhaustive_category_ids": []}
        for i in (1, 2)
    ]
    box = [10.0, 10.0, 50.0, 50.0]
    annotations = [
        {"id": c, "image_id": 1, "category_id": c, "bbox": box, "area": 2500.0, "segmentation": []}
        for c in (1, 2)
    ]
    categories = [
        {"id": 1, "name": "a", "frequency": "r", "image_count": 1},
        {"id": 2, "name": "b", "frequency": "f", "image_count": 1},
    ]
    results = [
        {"image_id": image, "category_id": c, "score": score * (second if c == 2 else 1)}
        | {"bbox": box}
        for c in (1, 2)
        for image, score in ((1, 0.8), (2, 0.4))  # the one in image 2 is wrong
    ]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def test_what_ap_does_not_see():
    equal = report(*two_classes(1), ["bbox"], pool=True)
    assert [equal[name]["AP"] for name in ("bbox", "bbox_pool")] == pytest.approx([100, 100])
    lower = report(*two_classes(0.25), ["bbox"], pool=True)  # 0.8, 0.4 and 0.2, 0.1
    assert [lower["bbox"]["AP"], lower["bbox_pool"]["APf"]] == pytest.approx([100, 100])
    # Right, wrong, right, wrong: precision 1 up to recall 1/2, 2/3 beyond it.
    assert lower["bbox_pool"]["AP"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert math.isnan(lower["bbox_pool"]["APc"])


def test_nothing_detected():
    data, _ = two_classes(1)
    actual = report(data, [], ["bbox"], pool=True, calibration=True)
    assert actual["bbox_pool"]["AP"] == actual["bbox_pool"]["APr"] == 0
    assert math.isnan(actual["bbox"]["ECE"]) and math.isnan(actual["bbox_pool"]["APc"])


def matches_with(scores, correct):
    """Detections of one frequent class, with outcomes at all thresholds."""
    count = len(scores)
    outcome = np.tile(np.array(correct, np.int8), (10, 1))
    where = np.zeros(count, int)
    return Matches(where, where, np.array(scores, float), outcome, np.array([count]))


def test_limits_of_calibration():
    def ece(scores, correct):
        return calibration_error(reliability(matches_with(scores, correct), ["f"])["ECE"])

    assert ece([0.5, 0.5], [1, 0]) == pytest.approx(0)
    assert ece([1.0, 1.0], [1, 1]) == pytest.approx(0)
    assert ece([1.0, 0.0], [0, 1]) == pytest.approx(100)
    assert ece([0.5, 0.5, 0.5], [1, 0, -1]) == pytest.approx(0)  # the third does not count
    bins = reliability(matches_with([1.0, 14 / 15, 0.0, 0.0666], [1, 1, 0, 0]), ["f"])
    assert bins["ECE"][:, 1].tolist() == [2, *[0] * (BINS - 2), 2]
    assert bins["ECEf"][-1, 2:].tolist() == pytest.approx([29 / 30, 1])
    assert math.isnan(calibration_error(bins["ECEr"]))


def test_equal_scores_in_order_of_images():
    """Of equal scores, image by image, as in the authors' code."""
    right, wrong = (0, 1), (1, 0)  # (image, outcome)
    for order in ((right, wrong), (wrong, right)):
        images, outcomes = np.array(order).T
        matches = Matches(
            images,
            np.zeros(2, int),
            np.full(2, 0.5),
            np.tile(outcomes.astype(np.int8), (10, 1)),
            np.array([1]),
        )
        assert pooled_ap(matches, ["r"])["APr"] == pytest.approx(100)


@pytest.mark.parametrize("score", [1.5, -0.1, math.nan])
def test_scores_that_are_no_probabilities(score):
    data, results = two_classes(1)
    results[1]["score"] = score
    with pytest.raises(InputError, match="calibration error: a score is .*in \\[0, 1\\]"):
        report(data, results, ["bbox"], calibration=True)
    assert "ECE" not in report(data, results, ["bbox"])["bbox"]


def test_files(tmp_path):
    data, results = a_set(5)
    (tmp_path / "gt.json").write_text(json.dumps(data, default=float))
    detections = parse_detections(results, lvis_eval.image_sizes(data))
    arguments = (data, data["categories"], detections, ["bbox", "segm"])
    path = tmp_path / "m.json"
    actual = report_lvis(*arguments, str(path), fixed=True, pool=True, calibration=True)
    saved = json.loads(path.read_text())
    names = [task + kind for task in ("bbox", "segm") for kind in ("", "_fixed", "_pool")]
    assert [*saved] == names
    table = format_table(actual)
    for name in names:
        for metric, value in actual[name].items():
            assert saved[name][metric] == (None if math.isnan(value) else value)
            assert math.isnan(value) or f"{value:.2f}" in table
    assert "ECEr" in table and "ECE" not in format_table(report(data, results, ["bbox"]))
    with open(tmp_path / "reliability.csv") as f:
        rows = [*csv.DictReader(f)]
    assert len(rows) == 2 * 4 * BINS
    for task in ("bbox", "segm"):
        mine = [r for r in rows if (r["task"], r["metric"]) == (task, "ECEr") and r["mean_score"]]
        counts = [int(r["detections"]) for r in mine]
        gaps = [abs(float(r["mean_score"]) - float(r["correct"])) for r in mine]
        error = 100 * np.dot(counts, gaps) / sum(counts)
        assert actual[task]["ECEr"] == pytest.approx(error, abs=1e-3)
    with pytest.raises(InputError, match="reliability.csv is what goes beside .*name another"):
        report_lvis(*arguments, str(tmp_path / "reliability.csv"), calibration=True)
    report_lvis(*arguments, str(tmp_path / "reliability.csv"))  # it is free then


def test_order_of_categories():
    """Categories need not be sorted by id."""
    data, results = a_set(3)
    sorted_result = report(data, results, ["bbox"], pool=True, calibration=True)
    turned = {**data, "categories": data["categories"][::-1]}
    again = report(turned, results, ["bbox"], pool=True, calibration=True)
    for name in sorted_result:
        assert_equal(again[name], sorted_result[name])
    assert len({c["frequency"] for c in data["categories"]}) > 1


@pytest.mark.parametrize("extra", [["ap"], "pool", None, [["pool"]]])
def test_unknown_extra(extra):
    with pytest.raises(InputError, match="TEST.LVIS_EXTRA is .*'fixed', 'pool', 'calibration'"):
        LongTailEvaluator("lvis_v1_val", ("bbox",), extra=extra)


def test_matches_need_no_detections():
    data, _ = two_classes(1)
    for backend in BACKENDS:
        assert lvis_matches(data, [], "bbox", backend).outcome.shape == (10, 0)


def test_json_without_frequencies(tmp_path):
    """Groups are counted, as for AP_r."""
    data, results = two_classes(1)
    for category in data["categories"]:
        del category["frequency"], category["image_count"]
    (tmp_path / "gt.json").write_text(json.dumps(data))
    read = read_lvis_json(str(tmp_path / "gt.json"))
    detections = parse_detections(results, lvis_eval.image_sizes(read))
    actual = report_lvis(read, complete_categories(read), detections, ["bbox"], pool=True)
    assert actual["bbox_pool"]["APr"] == actual["bbox_pool"]["AP"] == pytest.approx(100)
