"""Many settings from one forward pass against plain runs with each of them."""

import csv
import importlib.util
import json
import math
import os

import pytest
import torch
from conftest import REPOSITORY
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from test_tools import OPTS

from tde_det import CausalNormClassifier
from tde_det.data import register_custom_sets
from tde_det.data.class_counts import class_counts
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.engine import Trainer
from tde_det.errors import InputError
from tde_det.evaluation import METRICS, LongTailEvaluator
from tde_det.evaluation.sweep import best, plot, sweep
from tde_det.inference.run_length_masks import RunLengthMasks
from tde_det.inference.settings import Setting, list_settings, predictor_with
from tde_det.inference.shared_forward import BatchSizes, Replay, SharedForward
from tde_det.post_hoc import box_predictors, calibrate

DATA = Settings(num_classes=12, image_size=96, train_images=6, val_images=2, seed=1)
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
TDE = list_settings([0, 1.5, 4], auto_alpha=True, not_exempt=True)
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
            if isinstance(predictor.cls_score, CausalNormClassifier):
                predictor.cls_score.feature_mean.normal_()
                predictor.cls_score.foreground_cosine.copy_(torch.tensor([3.0, 4.0]))
        if cfg.MODEL.MASK_ON and hasattr(model, "roi_heads"):
            torch.nn.init.normal_(model.roi_heads.mask_head.predictor.weight)
        return cfg, model

    return make


def configure(model, setting, counts=None):
    """The setting by the model's own means; undone by another call."""
    calibrate(model, None)
    if setting.method == "tau_norm":
        calibrate(model, "tau_norm", tau=setting.value)
    elif setting.method == "norcal":
        calibrate(model, "norcal", gamma=setting.value, counts=counts)
    for predictor in box_predictors(model):
        predictor.cls_score.auto_alpha = setting.method == "auto_alpha"
        predictor.cls_score.alpha = setting.value if setting.method == "alpha" else 1.5
        predictor.cls_score.background_exempt = setting.exempt is not False


def shared(model, settings, counts=None):
    predictor = model.roi_heads.box_predictor
    return SharedForward(model, [predictor_with(predictor, s, counts) for s in settings]).eval()


def exact(output, masks):
    instances = output["instances"]
    fields = [instances.pred_boxes.tensor, instances.scores, instances.pred_classes]
    rles = [r["counts"] for r in instances.pred_masks_rle] if masks else []
    rles = [rle if isinstance(rle, bytes) else rle.encode() for rle in rles]
    return [field.numpy().tobytes() for field in fields], rles, instances.image_size


def assert_same(cfg, model, settings, counts=None):
    """All detections of all images, bit for bit; returns the scores by image and setting."""
    many = shared(model, settings, counts)
    masks = cfg.MODEL.MASK_ON
    scores = []
    with torch.no_grad():
        for inputs in Trainer.build_test_loader(cfg, "mini_lvis_val"):
            outputs = many(inputs)
            assert len(outputs) == len(settings)
            for setting, (output,) in zip(settings, outputs):
                configure(model, setting, counts)
                (plain,) = (RunLengthMasks(model) if masks else model)(inputs)
                assert exact(output, masks) == exact(plain, masks)
                scores.append(output["instances"].scores.tolist())
    return scores


@pytest.mark.parametrize(
    "opts, threads",
    [
        ((), 1),
        ((), 2),
        (SPECIFIC, 1),
        ((*SPECIFIC_BOXES, *SPECIFIC), 1),
        ((*STANDARD, "MODEL.MASK_ON", "False"), 1),
    ],
)
def test_every_bit(make, opts, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        numbers = list(map(len, assert_same(*make(*opts), TDE)))
    finally:
        torch.set_num_threads(before)
    assert len(set(numbers)) > 2 and max(numbers) > 16, numbers


@pytest.mark.parametrize("heads", [(), STANDARD])
def test_calibrated(make, heads):
    cfg, model = make(*heads, *LINEAR)
    counts = class_counts(["mini_lvis_train"], 12).images
    settings = list_settings(tau_norm=[0, 0.5, 2], norcal=[0.3, 1])
    scores = assert_same(cfg, model, settings, counts)
    assert len(set(map(tuple, scores[: len(settings)]))) == len(settings)
    cfg, model = make(*heads)
    scores = assert_same(cfg, model, list_settings([0, 1.5], norcal=[0.6]), counts)
    assert len(set(map(tuple, scores[:3]))) == 3


def test_no_detections(make):
    cfg, model = make("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    assert not any(assert_same(cfg, model, TDE))
    # In some settings alone.
    cfg, model = make("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.6")
    scores = assert_same(cfg, model, TDE)
    assert [] in scores and any(scores)


class Rounding(torch.nn.Module):
    """Mask layers whose last bits depend on how many boxes there are."""

    def __init__(self, layers, sizes):
        super().__init__()
        self.layers, self.sizes = layers, sizes

    def forward(self, x):
        self.sizes.append(len(x))
        return self.layers(x) * (1 + 3e-7 * (len(x) % 3))


def test_where_the_number_of_boxes_changes_the_masks(make):
    cfg, model = make()
    head, sizes = model.roi_heads.mask_head, []
    layers = head.layers
    object.__setattr__(head, "layers", Rounding(layers, sizes))
    assert_same(cfg, model, TDE)
    assert {size % 3 for size in sizes} == {0, 1, 2}
    # All that can be shared is: a size that has been compared needs no batch of its own.
    sizes.clear()
    object.__setattr__(head, "layers", lambda x: (sizes.append(len(x)), layers(x))[1])
    many, inputs = shared(model, TDE), next(iter(Trainer.build_test_loader(cfg, "mini_lvis_val")))
    with torch.no_grad():
        many(inputs)
        first = len(sizes)
        many(inputs)
    assert first > 3 and len(sizes) - first <= 2


def test_batch_sizes():
    sizes = BatchSizes()
    assert not sizes.are_equal(3, 8) and not sizes.are_equal(8, 8)
    sizes.learn(3, 8)
    assert sizes.are_equal(3, 8) and sizes.are_equal(8, 3) and sizes.are_equal(8, 8)
    sizes.learn(5, 16)
    assert not sizes.are_equal(3, 5)
    sizes.learn(3, 16)
    assert all(sizes.are_equal(a, b) for a in (3, 5, 8, 16) for b in (3, 5, 8, 16))
    assert not sizes.are_equal(4, 8)


def test_one_forward_pass(make, monkeypatch):
    cfg, model = make()
    calls = []
    model.train()
    before = {name: id(module) for name, module in model.named_modules()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for part in (model.backbone, model.proposal_generator, *model.roi_heads.box_head):
        part.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    many = shared(model, TDE)
    with torch.no_grad():
        for inputs in Trainer.build_test_loader(cfg, "mini_lvis_val"):
            many(inputs)
    assert len(calls) == 5 * 2
    many.train(many.training)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert not any(isinstance(module, Replay) for module in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [p.cls_score.alpha for p in box_predictors(model)] == [1.5] * 3


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
        parse = getattr(module, "parse_args", None)
        try:
            module.main(parse() if parse else module.default_argument_parser().parse_args())
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
    weights += ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.02)
    flags = ("--output", tmp_path / "sweep", "--auto-alpha", "--not-exempt", "--alpha", 0.5, "2")
    out = tool("sweep", flags, *weights)
    rows = rows_of(tmp_path / "sweep/sweep.csv")
    assert [row["setting"] for row in rows] == [
        *("alpha 0.5", "alpha 2", "auto_alpha", "alpha 0.5, background not exempt"),
        *("alpha 2, background not exempt", "auto_alpha, background not exempt"),
    ]
    for row in rows:
        exempt = row["background"] != "not exempt"
        if row["method"] == "alpha" and (row["value"] == "2.0") == exempt:
            continue  # three runs are enough
        options = ("MODEL.TDE.BACKGROUND_EXEMPT", exempt)
        options += ("MODEL.TDE.AUTO_ALPHA", row["method"] == "auto_alpha")
        options += ("MODEL.TDE.ALPHA", row["value"] or 1.5)
        tool("train_net", ["--eval-only"], *weights, *options)
        metrics = json.loads((tmp_path / "out/inference/metrics.json").read_text())
        assert metrics == {task: numbers_of(row, task) for task in ("bbox", "segm")}
    assert len({row["bbox/AR@300"] + row["bbox/AP"] for row in rows}) > 1
    for task in ("bbox", "segm"):
        top = max(rows, key=lambda row: float(row[f"{task}/AP"]))
        assert f"{task}:" in out and f"The highest AP: {top['setting']}\n" in out
    assert (tmp_path / "sweep/sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "opts, args, message",
    [
        ((), [], "no setting"),
        ((), ["--not-exempt"], "--not-exempt goes with"),
        ((), ["--alpha", -1], "must be at least 0"),
        ((), ["--norcal", "nan"], "must be at least 0"),
        ((), ["--tau-norm", 0.5], "tau_norm rescales the weights of a linear classifier"),
        (LINEAR, ["--alpha", 0.5], "alpha 0.5: TDE needs normalised logits"),
        (LINEAR, ["--auto-alpha"], "auto_alpha: TDE needs normalised logits"),
        (("MODEL.META_ARCHITECTURE", "ProposalNetwork"), ["--alpha", 1], "ProposalNetwork"),
    ],
)
def test_impossible_settings(tool, checkpoint, tmp_path, monkeypatch, opts, args, message):
    monkeypatch.setattr("tde_det.evaluation.sweep.inference_on_dataset", None)
    weights = ("MODEL.WEIGHTS", checkpoint(*opts), "OUTPUT_DIR", tmp_path)
    error = tool("sweep", args, *weights, *opts)
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize("mean", [True, False])
def test_auto_alpha_of_an_untracked_checkpoint(make, mean):
    _, model = make()
    for predictor in box_predictors(model):
        predictor.cls_score.foreground_cosine.zero_()
        if not mean:
            predictor.cls_score.feature_mean.zero_()
    with pytest.raises(InputError, match="foreground_cosine" if mean else "no feature mean"):
        shared(model, [Setting("auto_alpha")])


def test_auto_alpha_beside_alpha_0(make):
    _, model = make("MODEL.TDE.ALPHA", "0.0")
    predictor = predictor_with(model.roi_heads.box_predictor, Setting("auto_alpha"), None)
    assert [p.cls_score.effective_alpha() for p in predictor] == [pytest.approx(4 / 3)] * 3


def test_a_sweep_that_fails_leaves_the_last_one(make, monkeypatch, tmp_path):
    cfg, model = make()
    loader = Trainer.build_test_loader(cfg, "mini_lvis_val")
    sweep(model, loader, "mini_lvis_val", list_settings([1]), str(tmp_path))
    before = (tmp_path / "sweep.csv").read_bytes()
    monkeypatch.setattr("tde_det.evaluation.sweep.inference_on_dataset", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sweep(model, loader, "mini_lvis_val", list_settings([2]), str(tmp_path))
    assert (tmp_path / "sweep.csv").read_bytes() == before


def test_calibrated_checkpoints(make):
    _, model = make(*LINEAR)
    for predictor in box_predictors(model):
        calibrate(predictor, "norcal", counts=torch.ones(12))
    with pytest.raises(InputError, match="tau_norm 0.5: this checkpoint is calibrated already"):
        predictor_with(model.roi_heads.box_predictor, Setting("tau_norm", 0.5), None)


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
        sweep(model, loader, "mini_lvis_val", list_settings([0, 1, 2]), str(tmp_path))
    assert [row["value"] for row in rows_of(tmp_path / "sweep.csv")] == ["0", "2"]


def test_table_that_cannot_be_written(make, tmp_path):
    cfg, model = make()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        sweep(model, None, "mini_lvis_val", list_settings([0]), str(tmp_path / "file"))


def test_list_of_settings():
    settings = list_settings([1, 0, 1.0], True, True, [0.5], [0.3])
    assert [str(s) for s in settings] == [
        *("alpha 1", "alpha 0", "auto_alpha", "alpha 1, background not exempt"),
        *("alpha 0, background not exempt", "auto_alpha, background not exempt"),
        *("tau_norm 0.5", "norcal 0.3"),
    ]


def test_nothing_to_measure(tmp_path):
    def metrics(ap):
        return {"bbox": {metric: ap for metric in METRICS}}

    nan, one, two = (Setting("alpha", value) for value in (0.0, 1.0, 2.0))
    results = {nan: metrics(math.nan), one: metrics(7.0), two: metrics(7.0)}
    assert best(results, "bbox") is one and best({nan: results[nan]}, "bbox") is None
    plot({nan: results[nan]}, str(tmp_path / "x.png"))
    plot({Setting("auto_alpha"): metrics(1.0)}, str(tmp_path / "y.png"))
