"""Numbers of a report, against loops that do the same one by one."""

import copy

import numpy as np
import pytest

from tde_det.evaluation import Detections, evaluate_lvis
from tde_det.evaluation.lvis_eval import lvis_matches
from tde_det.evaluation.tide import (
    CORRECT,
    ERRORS,
    IGNORED,
    count_errors,
    find_errors,
    mended_ap,
)
from tde_det.report.bootstrap import count_objects, image_weights, interval, sample_aps

CLASSES = 6
FREQUENCIES = "rrccff"


def random_set(seed, num_images=8, exhaustive=False):
    """Annotations, and detections near and far of their objects; scores differ."""
    rng = np.random.default_rng(seed)
    categories = [
        {"id": 10 * i + 3, "name": f"class {i}", "frequency": f, "image_count": 4}
        for i, f in enumerate(FREQUENCIES)
    ]
    ids = [c["id"] for c in categories]
    images, annotations, rows = [], [], []
    for number in range(num_images):
        absent, partly = [], []
        if not exhaustive:
            absent, partly = (rng.choice(ids, 2, replace=False).tolist() for _ in range(2))
        sizes = {"id": 7 * number + 1, "height": 100, "width": 100}
        lists = {"neg_category_ids": absent, "not_exhaustive_category_ids": partly}
        images.append({**sizes, **lists})
        for _ in range(rng.integers(0, 6)):
            box = [*rng.uniform(0, 70, 2), *rng.uniform(8, 30, 2)]
            annotation = {"id": len(annotations) + 1, "image_id": sizes["id"], "bbox": box}
            annotation.update(category_id=int(rng.choice(ids)), area=box[2] * box[3])
            annotation["ignore"] = int(not exhaustive and rng.random() < 0.1)
            annotations.append(annotation)
            for _ in range(rng.integers(0, 4)):
                class_id = annotation["category_id"] if rng.random() < 0.6 else rng.choice(ids)
                near = np.array(box) + rng.normal(0, rng.choice([0.5, 3, 9]), 4)
                rows.append((sizes["id"], class_id, [*near[:2], *np.maximum(near[2:], 2)]))
        for _ in range(3):
            rows.append((sizes["id"], rng.choice(ids), [*rng.uniform(0, 80, 2), 12, 9]))
    if exhaustive:  # as LVIS has it: all classes that an image lacks are listed
        for image in images:
            there = {a["category_id"] for a in annotations if a["image_id"] == image["id"]}
            image["neg_category_ids"] = [i for i in ids if i not in there]
    data = {"images": images, "annotations": annotations, "categories": categories}
    image_ids, category_ids, boxes = zip(*rows)
    scores = rng.permutation(len(rows)) / len(rows)
    return data, Detections(np.array(image_ids), np.array(category_ids), scores, np.array(boxes))


def rebuilt(data, detections, weights):
    """A data set in which every image is there as often as it is drawn, its copies in a row."""
    copies, rows = {**data, "images": [], "annotations": []}, []
    for image, weight in zip(data["images"], weights.astype(int)):
        for _ in range(weight):
            new = len(copies["images"]) + 1
            copies["images"].append({**image, "id": new})
            for a in data["annotations"]:
                if a["image_id"] == image["id"]:
                    number = len(copies["annotations"]) + 1
                    copies["annotations"].append({**a, "id": number, "image_id": new})
            rows += [
                {**row, "image_id": new}
                for row in detections.to_dicts()
                if row["image_id"] == image["id"]
            ]
    return copies, rows


@pytest.mark.parametrize("seed", range(3))
def test_resamples_are_those_of_rebuilt_data_sets(seed):
    data, detections = random_set(seed)
    weights = image_weights(len(data["images"]), 6, seed)
    assert (weights.sum(axis=1) == len(data["images"])).all() and (weights[0] == 1).all()
    assert weights.max() > 1 and weights.min() == 0
    matches = lvis_matches(data, detections, "bbox")
    samples = sample_aps(matches, count_objects(data), weights, FREQUENCIES)
    for r, row in enumerate(weights):
        copies, rows = rebuilt(data, detections, row)
        expected, per_class = evaluate_lvis(copies, data["categories"], rows, "bbox")
        np.testing.assert_allclose(samples.classes[r], per_class, atol=1e-9)
        for metric, values in samples.metrics.items():
            np.testing.assert_allclose(values[r], expected[metric], atol=1e-9, err_msg=metric)


def test_a_class_may_have_no_objects_in_a_resample():
    data, detections = random_set(0)
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] != 3]
    lone = dict(data["annotations"][0], id=999, image_id=1, category_id=3, ignore=0)
    data["annotations"].append(lone)
    weights = np.ones((2, 8))
    weights[1, 0] = 0
    matches = lvis_matches(data, detections, "bbox")
    samples = sample_aps(matches, count_objects(data), weights, FREQUENCIES)
    assert not np.isnan(samples.classes[0, 0]) and np.isnan(samples.classes[1, 0])
    left = np.nanmean(samples.classes[1, :2])
    np.testing.assert_allclose(samples.metrics["APr"][1], left)


def test_interval_of_a_difference():
    rng = np.random.default_rng(0)
    before, after = rng.random((201, 3)), rng.random((201, 3))
    after[:, 2] = np.nan
    after[5, 1] = np.nan
    low, high = interval(before, after)
    first = np.sort((after - before)[1:, 0])
    np.testing.assert_allclose([low[0], high[0]], np.percentile(first, [2.5, 97.5]))
    second = (after - before)[1:, 1]
    expected = np.percentile(second[~np.isnan(second)], [2.5, 97.5])
    np.testing.assert_allclose([low[1], high[1]], expected)
    assert np.isnan([low[2], high[2]]).all()


def iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def naive_errors(data, detections):
    """By row of the detections and id of the annotation, the words of the paper."""
    verdicts, missed, called = {}, set(), {}
    for image in data["images"]:
        objects = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        rows = np.flatnonzero(detections.image_ids == image["id"])
        rows = sorted(rows, key=lambda r: -detections.scores[r])
        taken, about = set(), set()
        for row in rows:
            class_id, box = detections.category_ids[row], detections.boxes[row]
            classes = {a["category_id"] for a in objects}
            known = class_id in classes or class_id in image["neg_category_ids"]
            best = None
            for a in objects:
                if iou(box, a["bbox"]) >= 0.5 and a["id"] not in called:
                    called[a["id"]] = class_id
            for a in objects:  # objects that count come before those to be ignored
                fits = a["category_id"] == class_id and a["id"] not in taken
                if not fits or iou(box, a["bbox"]) < 0.5:
                    continue
                key = not a["ignore"], iou(box, a["bbox"])
                if best is None or key > best[0]:
                    best = key, a
            if best is not None:
                taken.add(best[1]["id"])
                verdicts[row] = "ignored" if best[1]["ignore"] else "correct"
            elif not known or class_id in image["not_exhaustive_category_ids"]:
                verdicts[row] = "ignored"
            else:
                verdicts[row] = None
        real = [a for a in objects if not a["ignore"]]
        for row in rows:
            if verdicts[row] is not None:
                continue
            box, class_id = detections.boxes[row], detections.category_ids[row]
            same = [(iou(box, a["bbox"]), a["id"]) for a in real if a["category_id"] == class_id]
            other = [(iou(box, a["bbox"]), a["id"]) for a in real if a["category_id"] != class_id]
            if 0.1 <= max(same, default=(0,))[0] <= 0.5:
                verdicts[row] = "localisation"
                about.add(max(same)[1])
            elif max(other, default=(0,))[0] >= 0.5:
                verdicts[row] = "classification"
                about.add(max(other)[1])
            elif any(overlap >= 0.5 and i in taken for overlap, i in same):
                verdicts[row] = "duplicate"
            elif max([*same, *other], default=(0,))[0] <= 0.1:
                verdicts[row] = "background"
            else:
                verdicts[row] = "both"
        missed |= {a["id"] for a in real if a["id"] not in taken | about}
    return verdicts, missed, called


@pytest.mark.parametrize("seed", range(4))
def test_errors_are_those_of_the_definitions(seed):
    data, detections = random_set(seed, num_images=60)
    verdicts = find_errors(data, detections)
    expected, missed, called = naive_errors(data, detections)
    names = dict(enumerate(ERRORS[:-1])) | {CORRECT: "correct", IGNORED: "ignored"}
    found = dict(zip(verdicts.rows, (names[v] for v in verdicts.verdicts)))
    assert found == expected and len(set(found.values())) == 7
    ids = [data["annotations"][i]["id"] for i in verdicts.objects]
    assert {i for i, is_missed in zip(ids, verdicts.missed) if is_missed} == missed
    class_ids = [c["id"] for c in data["categories"]]
    names_of = {i: class_ids[c] for i, c in zip(ids, verdicts.called) if c >= 0}
    assert names_of == called
    everything = count_errors(verdicts, range(CLASSES))
    for kind, name in enumerate(ERRORS[:-1]):
        assert everything[kind] == [*expected.values()].count(name)
    assert everything[-1] == len(missed) > 0
    some = count_errors(verdicts, [0, 1])
    rest = count_errors(verdicts, [2, 3, 4, 5])
    assert np.add(some, rest).tolist() == everything
    # What is correct is what LVIS's AP counts as such.
    matches = lvis_matches(data, detections, "bbox")
    assert (matches.outcome[0] == 1).sum() == (verdicts.verdicts == CORRECT).sum()
    ap50 = evaluate_lvis(data, data["categories"], detections, "bbox")[0]["AP50"]
    np.testing.assert_allclose(np.nanmean(mended_ap(verdicts, CLASSES)[""]), ap50, atol=1e-9)


def naive_ap(rows, num_objects):
    """AP50 in percent of (score, is correct), 101 recalls, by definition."""
    if not num_objects:
        return 0.0
    rows = sorted(rows, key=lambda row: -row[0])
    points = []
    for i in range(1, len(rows) + 1):
        correct = sum(is_correct for _, is_correct in rows[:i])
        points.append((correct / num_objects, correct / i))
    heights = [max((p for r, p in points if r >= k / 100), default=0.0) for k in range(101)]
    return 100 * sum(heights) / 101


@pytest.mark.parametrize("seed", range(2))
def test_mending_errors_one_by_one(seed):
    data, detections = random_set(seed, num_images=40)
    v = find_errors(data, detections)
    aps = mended_ap(v, CLASSES)
    counts = [sum(c == i for c in v.object_classes[v.counts]) for i in range(CLASSES)]
    best: dict = {}  # by object that nothing matches, the best error about it
    for i, (verdict, target) in enumerate(zip(v.verdicts, v.targets)):
        about = ERRORS[verdict] in ("classification", "localisation") if verdict < 5 else False
        is_first = target not in best or v.scores[i] > v.scores[best[target]]
        if about and not v.found[target] and is_first:
            best[target] = i
    for name in ("", *ERRORS):
        rows: dict = {c: [] for c in range(CLASSES)}
        for i, verdict in enumerate(v.verdicts):
            if verdict == CORRECT:
                rows[v.classes[i]].append((v.scores[i], True))
            elif verdict != IGNORED and ERRORS[verdict] != name:
                rows[v.classes[i]].append((v.scores[i], False))
            elif verdict != IGNORED and i in best.values():
                rows[v.object_classes[v.targets[i]]].append((v.scores[i], True))
        left = list(counts)
        for c in v.object_classes[v.missed] if name == "missed" else ():
            left[c] -= 1
        expected = [naive_ap(rows[c], left[c]) for c in range(CLASSES)]
        np.testing.assert_allclose(aps[name], expected, atol=1e-9, err_msg=name)
        assert name == "" or not np.allclose(aps[name], aps[""]), name


@pytest.mark.parametrize("seed", range(3))
def test_errors_are_those_of_tidecv(seed, monkeypatch):
    """On exhaustively annotated images, which are all that it knows."""
    tidecv = pytest.importorskip("tidecv")
    # Its recalls differ from lvis-api's in the last bit, which matters where one is met exactly.
    path = "tde_det.evaluation.precision_recall.RECALLS"
    monkeypatch.setattr(path, np.arange(101) / 100)
    data, detections = random_set(seed, num_images=60, exhaustive=True)
    truth, found = tidecv.Data("truth", 300), tidecv.Data("found", 300)
    for image in data["images"]:
        truth.add_image(image["id"], str(image["id"]))
    for category in data["categories"]:
        truth.add_class(category["id"], category["name"])
    for a in data["annotations"]:
        truth.add_ground_truth(a["image_id"], a["category_id"], a["bbox"])
    for row in detections.to_dicts():
        found.add_detection(row["image_id"], row["category_id"], row["score"], row["bbox"])
    run = tidecv.TIDE().evaluate(truth, found, mode=tidecv.TIDE.BOX)
    verdicts = find_errors(data, detections)
    kinds = tidecv.TIDE._error_types
    assert [kind.short_name for kind in kinds] == ["Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"]
    counts = run.count_errors()
    assert count_errors(verdicts, range(CLASSES)) == [counts[kind] for kind in kinds]
    aps = mended_ap(verdicts, CLASSES)
    gained = run.fix_main_errors()
    base = aps[""].mean()
    np.testing.assert_allclose(base, run.ap, atol=1e-9)
    for name, kind in zip(ERRORS, kinds):
        gain = aps[name].mean() - base
        assert gain > 0
        np.testing.assert_allclose(gain, gained[kind], atol=1e-9, err_msg=name)


def test_errors_without_detections_or_objects():
    data, detections = random_set(0)
    verdicts = find_errors(data, detections[:0])
    assert verdicts.missed.sum() == sum(not a["ignore"] for a in data["annotations"])
    assert (verdicts.called == -1).all()
    empty = {**copy.deepcopy(data), "annotations": []}
    verdicts = find_errors(empty, detections)
    judged = verdicts.verdicts[verdicts.verdicts != IGNORED]
    assert len(judged) and (judged == ERRORS.index("background")).all()
    assert np.isnan(mended_ap(verdicts, CLASSES)["missed"]).all()
