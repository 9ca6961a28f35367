"""tools/calibrate.py and its pass over training data, on a tiny mini_lvis."""

import importlib.util
import os
import re
import zlib

import pytest
import torch
from conftest import REPOSITORY
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from test_tools import OPTS, run

from tde_det.data import register_custom_sets
from tde_det.data.class_counts import class_counts
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.engine.single_pass import foreground_statistics
from tde_det.post_hoc import box_predictors, calibrate

SETTINGS = Settings(num_classes=12, image_size=96, train_images=10, val_images=3, seed=1)
SMALL = (
    *OPTS,
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32"),
)
CONFIG = {"tde": "mini_lvis_cascade_tde.yaml", "linear": "mini_lvis_cascade_baseline.yaml"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    build_mini_lvis(str(root / "mini_lvis"), SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield root


@pytest.fixture
def make(root, load_config, tmp_path):
    """A config, a model with random weights, and a checkpoint of it."""

    def make(kind, name="model"):
        torch.manual_seed(0)
        cfg = load_config(CONFIG[kind], *SMALL)
        register_custom_sets(cfg)
        model = build_model(cfg).eval()
        for predictor in box_predictors(model):
            torch.nn.init.normal_(predictor.cls_score.weight)
        DetectionCheckpointer(model, str(tmp_path)).save(name)
        return cfg, model, tmp_path / f"{name}.pth"

    return make


@pytest.fixture
def tool(monkeypatch, capsys):
    """Run tools/calibrate.py in this process; its standard output, or its error."""
    path = os.path.join(REPOSITORY, "tools/calibrate.py")
    spec = importlib.util.spec_from_file_location("calibrate_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(kind, *args):
        config = os.path.join(REPOSITORY, "configs", CONFIG[kind])
        argv = ["calibrate.py", *map(str, args), "--config-file", config, *SMALL]
        monkeypatch.setattr("sys.argv", [*argv, "MODEL.DEVICE", "cpu"])
        try:
            module.main(module.parse_args())
        except SystemExit as error:
            return str(error)
        return capsys.readouterr().out

    return call


def naive_pass(cfg, model, monkeypatch):
    """Per predictor the features and labels of all training RoIs, image by image."""
    seen = [([], []) for _ in box_predictors(model)]
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    mapper = DatasetMapper(cfg, is_train=True, augmentations=[resize])
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    hooks = []
    with monkeypatch.context() as patch, torch.no_grad(), EventStorage():
        for predictor, (features, labels) in zip(box_predictors(model), seen):
            hooks.append(
                predictor.register_forward_pre_hook(lambda m, x, own=features: own.append(x[0]))
            )

            def losses(predictions, proposals, own=labels):
                own.append(torch.cat([p.gt_classes for p in proposals]))
                return {}

            patch.setattr(predictor, "losses", losses)
        for record in DatasetCatalog.get("mini_lvis_train"):
            torch.manual_seed(zlib.crc32(str(record["image_id"]).encode()))
            model([mapper(record)])
    for hook in hooks:
        hook.remove()
    model.eval()
    return [(torch.cat(features).double(), torch.cat(labels)) for features, labels in seen]


def test_single_pass(make, monkeypatch):
    cfg, model, _ = make("tde")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    statistics = foreground_statistics(cfg, model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(p.observer is None and p._features is None for p in box_predictors(model))

    for own, (x, labels) in zip(statistics, naive_pass(cfg, model, monkeypatch), strict=True):
        keep = labels < 12
        assert keep.any() and not keep.all()
        torch.testing.assert_close(own.mean(), x[keep].mean(dim=0), rtol=0, atol=1e-6)
        for i in range(12):
            assert own.counts[i] == (labels == i).sum()
            torch.testing.assert_close(own.sums[i], x[labels == i].sum(dim=0), rtol=1e-6, atol=1e-4)
        heads, mean = x[keep].unflatten(1, (2, -1)), own.mean().unflatten(0, (2, -1))
        cosine = torch.cosine_similarity(heads, mean, dim=2).mean()
        assert own.mean_cosine() == pytest.approx(float(cosine), abs=1e-6)


def test_tde(make, tool, tmp_path):
    cfg, model, path = make("tde")
    out = tool("tde", path, "--method", "tde")
    statistics = foreground_statistics(cfg, model)
    state = torch.load(tmp_path / "model_tde.pth")["model"]
    for k, own in enumerate(statistics):
        mean = state[f"roi_heads.box_predictor.{k}.cls_score.feature_mean"].double()
        torch.testing.assert_close(
            mean / mean.norm(), own.mean() / own.mean().norm(), atol=1e-6, rtol=0
        )
        assert f"stage {k}: {int(own.counts.sum()):,} foreground boxes" in out
        assert f"α·cos = 1 at α = {1 / own.mean_cosine():.4f}" in out
    DetectionCheckpointer(model).load(str(tmp_path / "model_tde.pth"))
    for predictor, own in zip(box_predictors(model), statistics):
        predictor.cls_score.auto_alpha = True
        assert predictor.cls_score.effective_alpha() == pytest.approx(1 / own.mean_cosine())

    # A checkpoint that never had an average; then one whose average is replaced.
    state = {k: v for k, v in state.items() if "feature_mean" not in k and "_cosine" not in k}
    torch.save({"model": state}, tmp_path / "bare.pth")
    assert "is calibrated by tde" in tool("tde", tmp_path / "bare.pth", "--method", "tde")
    assert "lacks roi_heads" in tool("tde", tmp_path / "bare.pth", "--method", "norcal")
    args = (tmp_path / "model_tde.pth", "--method", "tde", "--max-images", 2)
    assert re.search("stage 2: cosine of this mean and .* checkpoint 0.9", tool("tde", *args))


@pytest.mark.parametrize("count", ["images", "instances"])
def test_norcal(make, tool, tmp_path, count):
    _, _, path = make("tde")
    out = tool("tde", path, "--method", "norcal", "--gamma", 0.9, "--count", count)
    assert "model_norcal.pth is calibrated by norcal" in out
    counts = getattr(class_counts(("mini_lvis_train",), 12), count)
    state = torch.load(tmp_path / "model_norcal.pth")["model"]
    for k in range(3):
        offset = state[f"roi_heads.box_predictor.{k}.calibration.offset"]
        torch.testing.assert_close(offset, -0.9 * counts.float().log())


def test_evaluation_of_a_calibrated_checkpoint(root, make, tool, tmp_path):
    _, model, _ = make("tde")
    calibrate(model, "norcal", counts=torch.arange(1, 13), gamma=0.9)
    DetectionCheckpointer(model, str(tmp_path)).save("calibrated")
    command = ("tools/train_net.py", "--config-file", "configs/" + CONFIG["tde"], "--eval-only")
    weights = ("OUTPUT_DIR", tmp_path / "out", "MODEL.WEIGHTS", tmp_path / "calibrated.pth")
    result = run(root, *command, *weights, *SMALL, "MODEL.DEVICE", "cpu")
    log = result.stdout + result.stderr
    assert result.returncode == 0 and "APr" in log, log[-3000:]
    assert "not found in the checkpoint" not in log and "not used by the model" not in log
    assert "calibrated already" in tool("tde", tmp_path / "calibrated.pth", "--method", "tde")


def test_tau_norm_and_ncm(make, tool, tmp_path):
    cfg, model, path = make("linear")
    assert "model_tau_norm.pth is calibrated" in tool("linear", path, "--method", "tau_norm")
    assert "model_ncm.pth is calibrated" in tool("linear", path, "--method", "ncm")
    images = [torch.rand(3, 96, 96) * 255]
    inputs = [{"image": image, "height": 96, "width": 96} for image in images]
    for name, arguments in (
        ("tau_norm", {"tau": 0.5}),
        ("ncm", {"statistics": foreground_statistics(cfg, model)}),
    ):
        calibrate(model, name, **arguments)
        _, other, _ = make("linear", "unused")
        DetectionCheckpointer(other).load(str(tmp_path / f"model_{name}.pth"))
        with torch.no_grad():
            own, wanted = other(inputs)[0]["instances"], model(inputs)[0]["instances"]
        torch.testing.assert_close(own.scores, wanted.scores)


def test_two_processes(root, make, tmp_path):
    cfg, model, path = make("tde")
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    args = (path, "--method", "tde", "--config-file", "configs/" + CONFIG["tde"])
    result = run(root, *command, "tools/calibrate.py", *args, *SMALL, "MODEL.DEVICE", "cpu")
    assert result.returncode == 0, result.stderr[-3000:]
    state = torch.load(tmp_path / "model_tde.pth")["model"]
    for k, own in enumerate(foreground_statistics(cfg, model)):
        mean = state[f"roi_heads.box_predictor.{k}.cls_score.feature_mean"]
        torch.testing.assert_close(mean, (own.mean() / (1 - cfg.MODEL.TDE.MU)).float())


def test_refusals(make, tool, tmp_path):
    _, _, tde = make("tde")
    _, _, linear = make("linear", "linear")
    for kind, args, message in (
        ("tde", (tde, "--method", "tau_norm"), "CLASSIFIER is.*causal_norm"),
        ("linear", (linear, "--method", "tde"), 'CLASSIFIER is "linear"'),
        ("linear", (linear, "--method", "tau_norm", "--tau", -1), "tau must be at least 0"),
        ("linear", (linear, "--method", "tau_norm", "--gamma", 1), "--gamma has no effect on"),
        ("linear", (linear, "--method", "ncm", "--max-images", 0), "--max-images must be positive"),
        ("linear", (linear, "--method", "ncm", "--temperature", 0), "temperature must be positive"),
        ("linear", (linear, "--method", "tau_norm", "--output", linear), "exists already"),
        ("linear", (tmp_path / "no.pth", "--method", "ncm"), "no.pth is no file"),
        ("linear", (tde, "--method", "tau_norm"), "lacks.*cls_score.bias.*--config-file"),
    ):
        assert re.search(message, tool(kind, *args)), tool(kind, *args)
