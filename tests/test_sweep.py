"""Many chains of adjustments from one forward pass against plain runs with each of them."""

import copy
import csv
import importlib.util
import json
import math
import os
import re

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from conftest import REPOSITORY
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from test_tools import OPTS

from tde_det.adjustments import NCM, Adjustments, parse_chains
from tde_det.data import register_custom_sets
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.engine import Trainer
from tde_det.errors import InputError
from tde_det.evaluation import METRICS, LongTailEvaluator
from tde_det.evaluation.sweep import chain_of, sweep, title_of
from tde_det.evaluation.sweep_forward import SweepForward
from tde_det.evaluation.sweep_table import best, curves, plot
from tde_det.inference.run_length_masks import RunLengthMasks
from tde_det.modeling import box_predictors
from tde_det.modeling.build import TrainingSet, build_adjustments

DATA = Settings(num_classes=12, image_size=96, train_images=6, val_images=2, seed=2)
SMALL = (
    *OPTS,
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.RPN.POST_NMS_TOPK_TEST", "40"),
    *("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3"),
)
STANDARD = ("MODEL.ROI_HEADS.NAME", "TDEStandardROIHeads")
SPECIFIC = ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "False")
SPECIFIC_BOXES = (*STANDARD, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False")
LINEAR = ("MODEL.TDE.CLASSIFIER", "linear")
SIGMOID = (*LINEAR, "MODEL.LONG_TAIL.LOSS", "sigmoid_focal")
FACTUAL = ("MODEL.TDE.ALPHA", "0.0")
TDE = ("tde alpha=0,1.3,4", "tde alpha=1.5 exempt=true,false")
CONFIG = "mini_lvis_cascade_tde.yaml"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    build_mini_lvis(str(root / "mini_lvis"), DATA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield root
    for name in ("mini_lvis_train", "mini_lvis_val"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def make(root, load_config):
    """A config and a model with random weights, which detects different things at every α."""

    def make(*opts):
        torch.manual_seed(0)
        cfg = load_config(CONFIG, *SMALL, *opts)
        register_custom_sets(cfg)
        model = build_model(cfg).eval()
        for predictor in box_predictors(model):
            torch.nn.init.normal_(predictor.cls_score.weight)
            torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.1)
            if predictor.is_normalized:
                predictor.adjustments["tde"].feature_mean.normal_()
        if cfg.MODEL.MASK_ON and hasattr(model, "roi_heads"):
            torch.nn.init.normal_(model.roi_heads.mask_head.predictor.weight)
        return cfg, model

    return make


def chains_of(*texts):
    return [chain for text in texts for chain in parse_chains(text)]


def shared(cfg, model, chains):
    predictors = box_predictors(model)
    data = TrainingSet(cfg)
    made = [[chain_of(predictor, chain, data) for predictor in predictors] for chain in chains]
    return SweepForward(model, made).eval()


def keys_of(chain):
    """The config of a plain run with a chain, in which TDE comes first if it is there at all."""
    names = [step.name for step in chain]
    assert "tde" not in names[1:]
    opts = {"MODEL.ADJUSTMENTS": [str(step) for step in chain if step.name != "tde"]}
    tde = {"alpha": 1.5, **chain[0].options} if "tde" in names else {"alpha": 0.0}
    opts["MODEL.TDE.ALPHA"] = tde["alpha"]
    opts["MODEL.TDE.BACKGROUND_EXEMPT"] = tde.get("exempt", True)
    return [word for pair in opts.items() for word in pair]


def configured(cfg, model, chain):
    """A model whose adjustments are those of a config that says the chain."""
    cfg = cfg.clone()
    cfg.merge_from_list(keys_of(chain))
    for predictor in box_predictors(model):
        adjustments = Adjustments(build_adjustments(cfg, 32))
        if predictor.is_normalized:
            mean = predictor.adjustments["tde"].state_dict()
            adjustments["tde"].load_state_dict(mean)
        predictor.adjustments = adjustments.eval()
    return model


def numbers(output):
    """Boxes, scores and classes, with all their bits."""
    instances = output["instances"]
    fields = [instances.pred_boxes.tensor, instances.scores, instances.pred_classes]
    return [field.numpy().tobytes() for field in fields], instances.image_size


def assert_same_masks(output, expected):
    """Up to single pixels: the mask head computes other boxes in the same batch."""
    pairs = [
        [mask_util.decode(rle) for rle in o["instances"].pred_masks_rle] for o in (output, expected)
    ]
    different = [int((a != b).sum()) for a, b in zip(*pairs, strict=True)]
    assert max(different, default=0) <= 1 and np.mean([*different, 0]) < 0.1
    assert not different or sum(mask.sum() for mask in pairs[0]) > 0


def assert_same(cfg, model, chains, configured=configured):
    """All detections of all images; returns the scores by image and chain."""
    many, scores = shared(cfg, model, chains), []
    other = copy.deepcopy(model)
    plain = RunLengthMasks(other) if cfg.MODEL.MASK_ON else other
    with torch.no_grad():
        for inputs in Trainer.build_test_loader(cfg, "mini_lvis_val"):
            for chain, (output,) in zip(chains, many(inputs), strict=True):
                configured(cfg, other, chain)
                (expected,) = plain(inputs)
                assert numbers(output) == numbers(expected)
                if cfg.MODEL.MASK_ON:
                    assert_same_masks(output, expected)
                scores.append(output["instances"].scores.tolist())
    return scores


def assert_all_differ(scores, chains):
    assert len(set(map(tuple, scores[: len(chains)]))) == len(chains)


@pytest.mark.parametrize(
    "opts",
    [
        (),
        SPECIFIC,
        (*SPECIFIC_BOXES, *SPECIFIC),
        (*STANDARD, "MODEL.MASK_ON", "False"),
    ],
)
def test_tde(make, opts):
    lengths = list(map(len, assert_same(*make(*opts), chains_of(*TDE))))
    assert len(set(lengths)) > 2 and max(lengths) > 16, lengths


@pytest.mark.parametrize("heads", [(), STANDARD])
def test_every_adjustment_of_a_linear_classifier(make, heads):
    chains = chains_of(
        *("tau_norm tau=0.5,2", "norcal gamma=0.3,1", "norcal gamma=0.3 count_instances=true"),
        *("norcal gamma=1 exempt=false", "fracal strength=0,2", "logit_adjustment tau=0.5,1"),
        "tau_norm tau=0.5 + norcal gamma=0.3",
    )
    assert_all_differ(assert_same(*make(*heads, *LINEAR), chains), chains)


@pytest.mark.parametrize("heads", [(), STANDARD])
def test_a_grid_of_tde_and_others(make, heads):
    chains = chains_of("tde alpha=0.5,1.5 + norcal gamma=0.1,0.6", "fracal", "tde + fracal")
    assert len(chains) == 6
    assert_all_differ(assert_same(*make(*heads), chains), chains)


def test_sigmoid_scores(make):
    opts = (*SIGMOID, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.1")
    chains = chains_of("fracal strength=0,1,2", "norcal gamma=1 + tau_norm", "logit_adjustment")
    assert_all_differ(assert_same(*make(*opts), chains), chains)


def test_adjustments_that_the_model_carries(make):
    """Their statistics are its own; a chain that does not name them goes without."""
    cfg, model = make(*FACTUAL, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.1")
    for predictor in box_predictors(model):
        ncm = NCM(torch.rand(32), torch.randn(12, 32), temperature=3.0)
        predictor.adjustments["ncm"] = ncm
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def configured(cfg, other, chain):
        for predictor, own in zip(box_predictors(other), box_predictors(model), strict=True):
            predictor.adjustments = Adjustments(
                {name: own.adjustments[name].with_options(**options) for name, options in chain}
            )

    chains = chains_of("tde alpha=0", "ncm", "ncm temperature=9", "ncm + tde alpha=2")
    assert_all_differ(assert_same(cfg, model, chains, configured), chains)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)


def test_options_that_a_chain_does_not_name(make):
    """They are the model's own."""
    cfg, model = make("MODEL.ADJUSTMENTS", ["norcal gamma=0.9"], "MODEL.TDE.ALPHA", "2.0")
    many = shared(cfg, model, chains_of("tde", "tde exempt=false", "norcal exempt=false", "fracal"))
    for stage in range(3):
        tde, other, norcal, fracal = (
            next(iter(adjustments[stage].values())) for adjustments in many.chains
        )
        assert (tde.alpha, tde.exempt) == (2.0, True)
        assert (other.alpha, other.exempt) == (2.0, False)
        assert (norcal.gamma, norcal.exempt) == (0.9, False)
        assert (fracal.strength, fracal.exempt) == (2.0, True)


def test_no_detections(make):
    chains = chains_of(*TDE)
    cfg, model = make("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    assert not any(assert_same(cfg, model, chains))
    # With some chains alone.
    cfg, model = make("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.6")
    scores = assert_same(cfg, model, chains)
    assert [] in scores and any(scores)


@pytest.mark.parametrize("opts", [(), SPECIFIC])
def test_one_forward_pass(make, opts):
    """And one batch of masks an image, of the distinct boxes of all chains."""
    cfg, model = make(*opts)
    calls, masks = [], []
    model.train()
    before = {name: id(module) for name, module in model.named_modules()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for part in (model.backbone, model.proposal_generator, *model.roi_heads.box_head):
        part.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    model.roi_heads.mask_head.register_forward_pre_hook(lambda m, args: masks.append(len(args[0])))
    many = shared(cfg, model, chains_of(*TDE))
    assert many.training is False and model.training is False
    distinct = []
    with torch.no_grad():
        for inputs in Trainer.build_test_loader(cfg, "mini_lvis_val"):
            found = [output["instances"] for (output,) in many(inputs)]
            rows = {
                (*box, class_id if opts else 0)
                for instances in found
                for box, class_id in zip(
                    instances.pred_boxes.tensor.tolist(), instances.pred_classes.tolist()
                )
            }
            distinct.append(len(rows))
            assert len(rows) < sum(map(len, found))
    assert len(calls) == 5 * 2 and masks == distinct
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def rows_of(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def numbers_of(row, task):
    return {m: float(row[f"{task}/{m}"]) if row[f"{task}/{m}"] else None for m in METRICS}


@pytest.fixture
def tool(monkeypatch, capsys):
    """Run a command line tool in this process; its standard output, or its error."""

    def call(name, flags, *opts):
        path = os.path.join(REPOSITORY, "tools", f"{name}.py")
        spec = importlib.util.spec_from_file_location(f"{name}_tool", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = os.path.join(REPOSITORY, "configs", CONFIG)
        argv = [name, "--config-file", config, *flags, *SMALL, *opts]
        monkeypatch.setattr("sys.argv", list(map(str, argv)))
        try:
            module.main(module.parse_args())
        except SystemExit as error:
            return str(error)
        return capsys.readouterr().out

    return call


@pytest.fixture
def checkpoint(make, tmp_path):
    def save(*opts):
        cfg, model = make(*opts)
        DetectionCheckpointer(model, str(tmp_path)).save("x")
        return tmp_path / "x.pth"

    return save


def test_tool(tool, checkpoint, tmp_path):
    weights = ("MODEL.WEIGHTS", checkpoint(), "OUTPUT_DIR", tmp_path / "out")
    weights += ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-9, "TEST.DETECTIONS_PER_IMAGE", 1000)
    texts = ("tde alpha=0.5,2 + norcal gamma=0.3", "tde exempt=true,false")
    out = tool("sweep", ("--output", tmp_path / "sweep", "--adjust", *texts), *weights)
    rows, chains = rows_of(tmp_path / "sweep/sweep.csv"), chains_of(*texts)
    assert [row["adjustments"] for row in rows] == [
        *("tde alpha=0.5 + norcal gamma=0.3", "tde alpha=2 + norcal gamma=0.3"),
        *("tde exempt=True", "tde exempt=False"),
    ]
    options = ["tde.alpha", "norcal.gamma", "tde.exempt"]
    assert list(rows[0])[1:4] == options
    assert [[row[name] for name in options] for row in rows] == [
        *(["0.5", "0.3", ""], ["2.0", "0.3", ""]),
        *(["", "", "True"], ["", "", "False"]),
    ]
    for row, chain in list(zip(rows, chains))[1:]:  # three runs are enough
        tool("train_net", ["--eval-only"], *weights, *keys_of(chain))
        metrics = json.loads((tmp_path / "out/inference/metrics.json").read_text())
        assert metrics["bbox"] == numbers_of(row, "bbox")
        expected = numbers_of(row, "segm")
        assert metrics["segm"].keys() == expected.keys()
        for metric, value in expected.items():
            assert metrics["segm"][metric] == (value and pytest.approx(value, rel=0, abs=1e-6))
    assert len({row["bbox/AP"] for row in rows}) >= 3 and float(rows[0]["segm/AP"]) > 0
    for task in ("bbox", "segm"):
        top = max(rows, key=lambda row: float(row[f"{task}/AP"]))
        assert f"{task}:" in out and f"The highest AP has: {top['adjustments']}\n" in out
    assert (tmp_path / "sweep/sweep.png").read_bytes().startswith(b"\x89PNG")


def test_what_recommend_prints(tool, checkpoint, tmp_path):
    """Each change is that of the table's rows; what is recommended is no loss."""
    weights = ("MODEL.WEIGHTS", checkpoint(), "OUTPUT_DIR", tmp_path, "MODEL.TDE.ALPHA", 4)
    weights += ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-9, "TEST.DETECTIONS_PER_IMAGE", 1000)
    out = tool("sweep", ["--recommend"], *weights)
    rows = rows_of(tmp_path / "recommend.csv")
    halves = {
        half: {row["adjustments"]: row for row in rows if row["images"] == half}
        for half in ("choose", "report")
    }
    current = "tde alpha=4 exempt=True"
    assert f"{current} (as it is)" in out and f"the model as it is: {current}\n" in out
    (chosen,) = re.findall(r"The best by segm AP .*: (.*)\n", out)
    aps = {title: float(row["segm/AP"]) for title, row in halves["choose"].items()}
    assert aps[chosen] == max(aps.values())
    before, after = (halves["report"][title] for title in (current, chosen))
    for task in ("bbox", "segm"):
        change = float(after[f"{task}/AP"]) - float(before[f"{task}/AP"])
        assert f"\n  {task}  AP {change:+.2f}  AP" in out
    (use,) = re.findall(r"Recommended: (.*?)(?: \(what .*)?\n", out)
    others = {title: float(row["segm/AP"]) for title, row in halves["report"].items()}
    assert others[use] == max(others[title] for title in (current, "none", chosen))
    assert "images are few to choose on" in out and "To use it: " in out


@pytest.mark.parametrize(
    "opts, chain, message",
    [
        ((), "platt", "--adjust: 'platt' is no adjustment"),
        ((), "norcal + norcal gamma=1", "--adjust: .* more than once"),
        ((), "tde alpha=-1", "--adjust: .*alpha must be at least 0"),
        ((), "norcal gamma=nan", "must be at least 0"),
        ((), "tau_norm tau=0.5", "adjustment 'tau_norm tau=0.5': TauNorm divides class weights"),
        ((), "ncm", "no class means that can be used: tools/calibrate.py"),
        (LINEAR, "tde alpha=0.5", "'tde alpha=0.5': TDE needs a normalised classifier"),
        (SIGMOID, "ncm", "'ncm': NCM changes softmax .*trains sigmoid scores"),
        (("MODEL.META_ARCHITECTURE", "ProposalNetwork"), "fracal", "no box predictor that can be"),
    ],
)
def test_impossible_chains(tool, checkpoint, tmp_path, monkeypatch, opts, chain, message):
    """They are one-line errors before the forward pass."""
    monkeypatch.setattr("tde_det.evaluation.sweep.inference_on_dataset", None)
    weights = ("MODEL.WEIGHTS", checkpoint(*opts), "OUTPUT_DIR", tmp_path)
    error = tool("sweep", ["--adjust", "fracal strength=1", chain], *weights, *opts)
    assert re.match(f"error: .*{message}", error) and "\n" not in error, error
    assert not (tmp_path / "sweep.csv").exists()


def test_a_sweep_that_fails_leaves_the_last_one(make, monkeypatch, tmp_path):
    cfg, model = make()
    loader = Trainer.build_test_loader(cfg, "mini_lvis_val")
    sweep(cfg, model, loader, "mini_lvis_val", chains_of("tde alpha=1"), str(tmp_path))
    before = (tmp_path / "sweep.csv").read_bytes()
    monkeypatch.setattr("tde_det.evaluation.sweep.inference_on_dataset", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sweep(cfg, model, loader, "mini_lvis_val", chains_of("tde alpha=2"), str(tmp_path))
    assert (tmp_path / "sweep.csv").read_bytes() == before
    monkeypatch.undo()
    sweep(cfg, model, loader, "mini_lvis_val", chains_of("tde alpha=2"), str(tmp_path))
    assert (tmp_path / "sweep_1.csv").read_bytes() == before
    assert [row["adjustments"] for row in rows_of(tmp_path / "sweep.csv")] == ["tde alpha=2"]


def test_failure_keeps_what_is_done(make, monkeypatch, tmp_path):
    cfg, model = make()
    evaluate, calls = LongTailEvaluator.evaluate, []

    def fail_second(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no more memory")
        return evaluate(self, *args)

    monkeypatch.setattr(LongTailEvaluator, "evaluate", fail_second)
    loader = Trainer.build_test_loader(cfg, "mini_lvis_val")
    with pytest.raises(RuntimeError, match="no more memory"):
        sweep(cfg, model, loader, "mini_lvis_val", chains_of("tde alpha=0,1,2"), str(tmp_path))
    rows = rows_of(tmp_path / "sweep.csv")
    assert [row["adjustments"] for row in rows] == ["tde alpha=0", "tde alpha=2"]


def test_table_that_cannot_be_written(make, tmp_path):
    cfg, model = make()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        folder = str(tmp_path / "file")
        sweep(cfg, model, None, "mini_lvis_val", chains_of("tde alpha=0"), folder)


def by_title(*texts):
    return {title_of(chain): chain for chain in chains_of(*texts)}


def test_curves():
    """A plot for each combination of adjustments, and a curve for each set of other options."""
    grid = by_title("tde alpha=0,1,2 exempt=true,false", "tde exempt=true", "tde")
    assert curves(grid) == {
        ("tde", "tde.alpha"): {
            "exempt = True": [f"tde alpha={a} exempt=True" for a in (0, 1, 2)],
            "exempt = False": [f"tde alpha={a} exempt=False" for a in (0, 1, 2)],
            "tde exempt=True": ["tde exempt=True"],
            "tde": ["tde"],
        }
    }
    grid = by_title("tde alpha=1 + norcal gamma=0.1,0.3", "fracal", "norcal")
    assert curves(grid) == {
        ("tde + norcal", "norcal.gamma"): {
            "alpha = 1.0": [f"tde alpha=1 + norcal gamma={g}" for g in (0.1, 0.3)]
        },
        ("fracal", ""): {"fracal": ["fracal"]},
        ("norcal", ""): {"norcal": ["norcal"]},
    }


def test_nothing_to_measure(tmp_path):
    def metrics(ap):
        return {"bbox": {metric: ap for metric in METRICS}}

    chains = by_title("tde alpha=0,1,2", "tde")
    nan, one, two, unnamed = chains
    results = {nan: metrics(math.nan), one: metrics(7.0), two: metrics(7.0)}
    assert best(results, "bbox") == one and best({nan: results[nan]}, "bbox") is None
    plot({nan: results[nan]}, chains, str(tmp_path / "x.png"))
    plot({**results, unnamed: metrics(1.0)}, chains, str(tmp_path / "y.png"))
    assert (tmp_path / "y.png").read_bytes() != (tmp_path / "x.png").read_bytes()
