"""A report of models and of files: what is measured, and what is refused."""

import importlib.util
import json
import os
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from test_report import random_set
from test_sweep import LINEAR, make, root  # noqa: F401  (fixtures)

from tde_det.engine import Trainer
from tde_det.engine.feature_statistics import labelled_stages
from tde_det.errors import InputError
from tde_det.evaluation import write_detections
from tde_det.modeling import box_predictors
from tde_det.report import Options, build_report
from tde_det.report.dataset import read_dataset
from tde_det.report.gallery import outline
from tde_det.report.model_pass import has_direction, with_and_without_tde
from tde_det.report.runs import find_runs
from tde_det.report.why import cosines, raised_logits, weight_norms

VAL = "mini_lvis_val"


@pytest.fixture
def data(root):  # noqa: F811
    return read_dataset(VAL) if VAL in DatasetCatalog.list() else None


def report_of(folder):
    """What the page is made of."""
    text = (folder / "data" / "report.js").read_text()
    return json.loads(text.removeprefix("const REPORT = ").removesuffix(";\n"))


def save_run(folder, cfg, model):
    """A folder as training leaves it."""
    folder.mkdir()
    DetectionCheckpointer(model, str(folder)).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def test_both_detections_are_those_of_plain_runs(make):  # noqa: F811
    cfg, model = make()
    assert has_direction(model)
    data = read_dataset(VAL)
    loader = Trainer.build_test_loader(cfg, VAL)
    found = with_and_without_tde(model, loader, data)
    assert list(found) == ["α = 0", "TDE, α = 1.5"]
    ids = [c["id"] for c in data.ground_truth["categories"]]
    for alpha, detections in zip((0.0, 1.5), found.values()):
        for predictor in box_predictors(model):
            predictor.adjustments["tde"].set_options(alpha=alpha)
        assert len(detections) > 0
        for (entry,) in loader:
            with torch.no_grad():
                instances = model([entry])[0]["instances"]
            rows = np.flatnonzero(detections.image_ids == entry["image_id"])
            np.testing.assert_allclose(detections.scores[rows], instances.scores, atol=1e-5)
            expected = [ids[c] for c in instances.pred_classes.tolist()]
            assert detections.category_ids[rows].tolist() == expected
    assert not np.array_equal(*(d.scores for d in found.values()))


def test_without_a_direction(make):  # noqa: F811
    assert not has_direction(make(*LINEAR)[1])
    model = make()[1]
    box_predictors(model)[1].adjustments["tde"].feature_mean.zero_()
    assert not has_direction(model)


def test_cosines_and_raised_logits(make):  # noqa: F811
    cfg, model = make("MODEL.TDE.NUM_HEADS", "4")
    frequencies = ["r", "c", "f"] * 4
    measured = cosines(cfg, model, VAL, frequencies, 2)
    changed = cfg.clone()
    changed.DATASETS.TRAIN = (VAL,)
    expected = [{letter: [] for letter in "rcfb"} for _ in range(3)]
    for stages in labelled_stages(changed, model, 2):
        for number, stage in enumerate(stages):
            mean = stage.predictor.adjustments["tde"].feature_mean.double().numpy()
            labels = torch.cat([p.gt_classes for p in stage.proposals]).tolist()
            for x, label in zip(stage.predictions[2].double().numpy(), labels):
                heads = [
                    a @ b / np.linalg.norm(a) / np.linalg.norm(b) if a.any() else 0.0
                    for a, b in zip(np.split(x, 4), np.split(mean, 4))
                ]
                letter = "b" if label == 12 else frequencies[label]
                expected[number][letter].append(heads)
    assert all(len(stage["b"]) and len(stage["r"]) for stage in expected)
    for stage, wanted in zip(measured, expected):
        for letter, heads in wanted.items():
            np.testing.assert_allclose(stage[letter], np.reshape(heads, (-1, 4)), atol=1e-5)
    node = cfg.MODEL.TDE
    for predictor, wanted, raised in zip(
        box_predictors(model), expected, raised_logits(model, measured)
    ):
        weight = predictor.cls_score.weight.detach().double().numpy()
        mean = predictor.adjustments["tde"].feature_mean.double().numpy()
        average = np.mean([h for letter in "rcf" for h in wanted[letter]], axis=0)
        for i in range(12):
            value = 0.0
            for k, (w, m) in enumerate(zip(np.split(weight[i], 4), np.split(mean, 4))):
                part = w @ m / np.linalg.norm(m) / (np.linalg.norm(w) + node.GAMMA)
                value += average[k] * node.TAU / 4 * part
            np.testing.assert_allclose(raised[i], value, atol=1e-4)
    for norms, predictor in zip(weight_norms(model), box_predictors(model)):
        weight = predictor.cls_score.weight.detach().double().numpy()
        expected_norms = [np.sqrt((w**2).sum()) for w in weight[:12]]
        np.testing.assert_allclose(norms, expected_norms, rtol=1e-5)


def test_one_run_is_compared_with_itself(make, tmp_path):  # noqa: F811
    cfg, model = make()
    run = save_run(tmp_path / "run", cfg, model)
    options = Options(model_images=1, resamples=3, opts=["MODEL.TDE.ALPHA", "2.0"])
    page = build_report([str(run)], str(tmp_path / "page"), options)
    assert os.path.isfile(page)
    report = report_of(tmp_path / "page")
    assert report["runs"] == ["α = 0", "TDE, α = 2"] and list(report["why"]) == ["run"]
    assert len(report["why"]["run"]["norms"]) == 3 and len(report["aps"]["segm"][0]) == 12
    assert report["why"]["run"]["alphas"] == [2.0] * 3
    names = {path.name for path in (tmp_path / "page").iterdir()}
    assert {"plotly.min.js", "page.js", "images", "thumbnails"} <= names
    # Without its results it has nothing to show but by its model.
    with pytest.raises(InputError, match=r"run has no inference/lvis_instances_results.json"):
        build_report([str(run)], str(tmp_path / "page"), Options(use_models=False))


def test_a_run_that_holds_a_program(make, tmp_path):  # noqa: F811
    class Program:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    cfg, model = make()
    run = save_run(tmp_path / "run", cfg, model)
    torch.save({"model": Program()}, run / "model_final.pth")
    with pytest.raises(InputError, match=r"model_final.pth.*could run a program"):
        build_report([str(run)], str(tmp_path / "page"), Options(model_images=1))
    assert not (tmp_path / "ran").exists()


def test_runs_of_files_and_linear_models(make, data, tmp_path):  # noqa: F811
    cfg, model = make(*LINEAR)
    run = save_run(tmp_path / "linear", cfg, model)
    (run / "inference").mkdir()
    images = read_dataset(VAL).ground_truth["images"]
    rows = random_set(0)[1][:5]
    rows.image_ids[:], rows.category_ids[:] = images[0]["id"], 1
    write_detections(rows, str(run / "inference" / "lvis_instances_results.json"))
    write_detections(rows[:0], str(tmp_path / "empty.json"))
    texts = [str(run), f"nothing={tmp_path / 'empty.json'}"]
    build_report(texts, str(tmp_path / "page"), Options(resamples=3))
    report = report_of(tmp_path / "page")
    assert report["runs"] == ["linear", "nothing"]
    assert list(report["why"]["linear"]) == ["norms"] and list(report["metrics"]) == ["bbox"]
    assert report["metrics"]["bbox"][1]["AP"] == 0
    assert report["errors"][1]["rcf"]["counts"][:5] == [0] * 5


def test_names_of_runs(tmp_path):
    for name in ("a", "b=c"):
        (tmp_path / name).mkdir()
    runs = find_runs([str(tmp_path / "a"), f"mine={tmp_path / 'a'}", str(tmp_path / "b=c")])
    assert [run.name for run in runs] == ["a", "mine", "b=c"]


@pytest.mark.parametrize(
    "runs, options, message",
    [
        (["none"], {}, "the run none does not exist"),
        (["a", "a"], {}, "two runs are called 'a'"),
        (["=a"], {}, "gives a run no name"),
        (["a"], {}, "a has no config.yaml: say what it was evaluated on, by --dataset or by"),
        (["a"], {"annotations": "truth.json"}, "--annotations and --images go together"),
        (["a"], {"dataset": "x", "annotations": "y", "images": "z"}, "give one of them"),
        (["a"], {"dataset": "no_such_set"}, "No data set is called 'no_such_set'"),
        (["a"], {"resamples": 1}, "--resamples must be at least 2"),
        (["a"], {"model_images": -1}, "--model-images must be at least 0"),
        (["a"], {"dataset": VAL}, "a has no inference/lvis_instances_results.json"),
        (["bad.json"], {"dataset": VAL}, "bad.json: bad.json: .* holds dict, no list"),
        (["other.json"], {"dataset": VAL}, "other.json: The results hold detections in 1 images"),
        (["logs"], {"dataset": VAL}, "logs/metrics.json: line 2 is none that a training writes"),
    ],
)
def test_bad_input(runs, options, message, make, tmp_path, monkeypatch):  # noqa: F811
    make()  # registers the data sets
    monkeypatch.chdir(tmp_path)
    for name in ("a", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad.json").write_text("{}")
    row = {"image_id": 987654, "category_id": 1, "score": 0.5, "bbox": [0, 0, 5, 5]}
    (tmp_path / "other.json").write_text(json.dumps([row]))
    (tmp_path / "logs" / "metrics.json").write_text('{"iteration": 1}\nnot json\n')
    with pytest.raises(InputError, match=message) as found:
        build_report(runs, "page", Options(**options))
    assert "\n" not in str(found.value)
    assert not os.path.exists("page/data")


def test_a_name_with_a_dot_is_no_config_key(monkeypatch):
    path = os.path.join(REPOSITORY, "tools", "report.py")
    spec = importlib.util.spec_from_file_location("report_tool", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    words = ["report.py", "b=run", "r50.v2=run", "--output", "page", "MODEL.TDE.ALPHA", "1=2"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="error: r50.v2=run: give the run a name without a dot"):
        tool.main()


def test_nothing_of_others_is_deleted(make, tmp_path):  # noqa: F811
    make()
    (tmp_path / "mine" / "images").mkdir(parents=True)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    write_detections(random_set(0)[1][:0], str(tmp_path / "a.json"))
    for folder, name in (("mine", "images"), ("site", "index.html")):
        with pytest.raises(InputError, match=f"{folder} has {name} of something else"):
            build_report([str(tmp_path / "a.json")], str(tmp_path / folder), Options(dataset=VAL))
    assert (tmp_path / "mine" / "images").is_dir()
    assert (tmp_path / "site" / "index.html").read_text() == "mine"
    for _ in range(2):  # an earlier report is replaced
        page, options = tmp_path / "page", Options(dataset=VAL, resamples=2)
        build_report([str(tmp_path / "a.json")], str(page), options)
        assert not (page / "images" / "old.jpg").exists()
        (page / "images" / "old.jpg").touch()


def test_an_interrupted_report_is_replaced(make, tmp_path, monkeypatch):  # noqa: F811
    make()
    write_detections(random_set(0)[1][:0], str(tmp_path / "a.json"))
    arguments = [str(tmp_path / "a.json")], str(tmp_path / "page"), Options(dataset=VAL)
    for moment in ("_measure", "gallery.write_pictures"):
        with monkeypatch.context() as patch:
            patch.setattr(f"tde_det.report.build.{moment}", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                build_report(*arguments)
    build_report(*arguments)
    assert report_of(tmp_path / "page")["runs"] == ["a.json"]


def test_a_results_file_needs_no_registered_set(tmp_path):
    from test_report_page import write_runs

    write_runs(tmp_path)
    truth, pictures = str(tmp_path / "truth.json"), str(tmp_path / "pictures")
    options = Options(annotations=truth, images=pictures, resamples=2)
    results = tmp_path / "a" / "inference" / "lvis_instances_results.json"
    build_report([f"x={results}"], str(tmp_path / "page"), options)
    report = report_of(tmp_path / "page")
    assert report["runs"] == ["x"] and report["pairs"] == {} and report["images"] == 60
    MetadataCatalog.pop(truth)
    DatasetCatalog.pop(truth)


def test_outlines():
    import pycocotools.mask as mask_util

    mask = np.zeros((20, 30), np.uint8)
    mask[4:14, 5:25] = 1
    mask[7:11, 10:20] = 0
    path = outline(mask_util.encode(np.asfortranarray(mask)), 10.0)
    rings = [
        [tuple(map(int, point.split())) for point in ring.split("L")]
        for ring in path.removesuffix("Z").removeprefix("M").split("ZM")
    ]
    assert len(rings) == 2  # the rim and the hole
    rim = np.array(max(rings, key=lambda r: np.ptp([x for x, _ in r])))
    # Through the centres of the outermost pixels, half a pixel within the mask.
    np.testing.assert_allclose(rim.min(axis=0), [55, 45], atol=6)
    np.testing.assert_allclose(rim.max(axis=0), [245, 135], atol=6)
    assert outline(mask_util.encode(np.zeros((5, 5), np.uint8, order="F")), 1.0) == ""
