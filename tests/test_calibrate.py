"""tools/calibrate.py and its pass over training data, on a tiny mini_lvis."""

import importlib.util
import os
import re
import zlib

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from test_tools import OPTS, run

from tde_det.adjustments import NCM, parse_chains
from tde_det.adjustments.fracal import box_counting_dimensions
from tde_det.data import register_custom_sets
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.data.objects import Objects, box_centers, class_counts
from tde_det.engine import load_model
from tde_det.engine.calibration import calibrate
from tde_det.engine.feature_statistics import foreground_statistics, some_of_each_class
from tde_det.modeling import box_predictors
from tde_det.modeling.build import TrainingSet

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

    def make(kind, name="model", *opts):
        torch.manual_seed(0)
        cfg = load_config(CONFIG[kind], *SMALL, *opts)
        register_custom_sets(cfg)
        model = build_model(cfg).eval()
        for predictor in box_predictors(model):
            torch.nn.init.normal_(predictor.cls_score.weight)
        DetectionCheckpointer(model, str(tmp_path)).save(name)
        cfg.MODEL.WEIGHTS = str(tmp_path / f"{name}.pth")
        return cfg, model, tmp_path / f"{name}.pth"

    return make


@pytest.fixture
def tool(monkeypatch, capsys):
    """Run tools/calibrate.py in this process; its standard output, or its error."""
    path = os.path.join(REPOSITORY, "tools/calibrate.py")
    spec = importlib.util.spec_from_file_location("calibrate_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(kind, chain, path, output, *args):
        config = os.path.join(REPOSITORY, "configs", CONFIG[kind])
        argv = ["calibrate.py", "--config-file", config, "--adjust", chain, "--output", output]
        argv += ["MODEL.WEIGHTS", path, *args, *SMALL, "MODEL.DEVICE", "cpu"]
        monkeypatch.setattr("sys.argv", list(map(str, argv)))
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


def test_statistics_equal_a_naive_pass(make, monkeypatch):
    cfg, model, _ = make("tde")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    statistics = foreground_statistics(cfg, model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    again = foreground_statistics(cfg, model)
    for one, other in zip(statistics, again, strict=True):
        assert torch.equal(one.sums, other.sums) and torch.equal(one.unit_sum, other.unit_sum)

    for own, (x, labels) in zip(statistics, naive_pass(cfg, model, monkeypatch), strict=True):
        keep = labels < 12
        assert keep.any() and not keep.all()
        torch.testing.assert_close(own.mean(), x[keep].mean(dim=0), rtol=0, atol=1e-6)
        for i in range(12):
            assert own.counts[i] == (labels == i).sum()
            torch.testing.assert_close(own.sums[i], x[labels == i].sum(dim=0), rtol=1e-6, atol=1e-4)
        heads, mean = x[keep].unflatten(1, (2, -1)), own.mean().unflatten(0, (2, -1))
        cosine = torch.cosine_similarity(heads, mean, dim=2).mean()
        assert own.mean_cosine(own.mean()) == pytest.approx(float(cosine), abs=1e-6)


def adjustments_in(path):
    """Of the first stage of a checkpoint: values by adjustment and field."""
    found = {}
    for key, value in torch.load(path, weights_only=False)["model"].items():
        _, is_one, rest = key.partition("box_predictor.0.adjustments.")
        if is_one:
            name, field = rest.split(".")
            found.setdefault(name, {})[field] = value
    return found


def test_tde(make, tool, tmp_path):
    cfg, model, path = make("tde")
    out = tool("tde", "tde", path, tmp_path / "tde.pth")
    assert f"{tmp_path}/tde.pth carries tde; use it with the same config" in out
    statistics = foreground_statistics(cfg, model)
    state = torch.load(tmp_path / "tde.pth")["model"]
    for k, own in enumerate(statistics):
        mean = state[f"roi_heads.box_predictor.{k}.adjustments.tde.feature_mean"].double()
        torch.testing.assert_close(
            mean / mean.norm(), own.mean() / own.mean().norm(), atol=1e-6, rtol=0
        )
        boxes, cosine = (
            f"{int(own.counts.sum()):,} foreground boxes",
            f"{own.mean_cosine(own.mean()):.4f}",
        )
        assert f"stage {k}: {boxes}, mean cosine to the mean direction {cosine}\n" in out

    # A checkpoint that never had an average; then one whose own is replaced.
    bare = {k: v for k, v in state.items() if "adjustments" not in k}
    torch.save({"model": bare}, tmp_path / "bare.pth")
    assert "carries tde" in tool("tde", "tde", tmp_path / "bare.pth", tmp_path / "1.pth")
    one, two = (adjustments_in(tmp_path / name)["tde"] for name in ("1.pth", "tde.pth"))
    assert torch.equal(one["feature_mean"], two["feature_mean"])
    out = tool("tde", "tde", tmp_path / "tde.pth", tmp_path / "2.pth", "--max-images", 2)
    assert re.search("stage 2: .*; cosine of this mean and the one in the checkpoint 0.9", out)


def test_tde_with_every_class_counted_once(make, tool, tmp_path):
    cfg, model, path = make("tde")
    tool("tde", "tde", path, tmp_path / "balanced.pth", "--class-balanced")
    features = foreground_statistics(cfg, model)[0]
    seen = [i for i in range(12) if features.counts[i]]
    expected = sum(features.sums[i] / features.counts[i] for i in seen) / len(seen)
    actual = adjustments_in(tmp_path / "balanced.pth")["tde"]["feature_mean"].double()
    torch.testing.assert_close(
        actual / actual.norm(), expected / expected.norm(), atol=1e-6, rtol=0
    )
    of_all = features.mean() / features.mean().norm()
    assert (expected / expected.norm() - of_all).norm() > 1e-3
    # Unlike the mean of all objects, it can be measured on so many images of every class.
    some = ("--images-per-class", 1)
    assert "--class-balanced" in tool("tde", "tde", path, tmp_path / "1.pth", *some)
    tool("tde", "tde", path, tmp_path / "2.pth", "--class-balanced", *some)


def test_training_goes_on_from_the_mean(make):
    """The scale of the measured mean is that of an endless training, which one step keeps."""
    cfg, model, _ = make("tde")
    calibrate(cfg, model, parse_chains("tde")[0])
    (statistics, *_) = foreground_statistics(cfg, model)
    tde = box_predictors(model)[0].adjustments["tde"]
    before = tde.feature_mean.clone()
    tde.update_mean(statistics.mean().float()[None], torch.tensor([True]))
    torch.testing.assert_close(tde.feature_mean, before)


@pytest.mark.parametrize("chain", ["norcal gamma=0.9", "norcal + logit_adjustment tau=0.5"])
def test_counts(make, tool, tmp_path, chain):
    _, _, path = make("tde")
    assert f"calibrated.pth carries {chain}" in tool(
        "tde", chain, path, tmp_path / "calibrated.pth"
    )
    counts, found = (
        class_counts(("mini_lvis_train",), 12),
        adjustments_in(tmp_path / "calibrated.pth"),
    )
    assert list(found) == ["tde", *(step.name for step in parse_chains(chain)[0])]
    norcal = found["norcal"]
    assert torch.equal(norcal["images"], counts.images.clamp(min=1).float())
    assert torch.equal(norcal["instances"], counts.instances.clamp(min=1).float())
    assert norcal["gamma"] == (0.9 if "0.9" in chain else 0.6) and norcal["exempt"] == 1
    assert "logit_adjustment" not in found or found["logit_adjustment"]["tau"] == 0.5


def test_fracal(make, tool, tmp_path):
    _, _, path = make("linear")
    tool("linear", "fracal strength=1", path, tmp_path / "fracal.pth")
    found = adjustments_in(tmp_path / "fracal.pth")
    assert list(found) == ["fracal"] and found["fracal"]["strength"] == 1
    dimensions = box_counting_dimensions(*box_centers(("mini_lvis_train",), 12), 12)
    assert torch.equal(found["fracal"]["dimensions"], dimensions) and dimensions.max() > 1
    instances = class_counts(("mini_lvis_train",), 12).instances.float()
    assert torch.equal(found["fracal"]["instances"], instances)


@pytest.mark.parametrize(
    "kind, chain",
    [
        *(("tde", chain) for chain in ("tde", "ncm temperature=5", "tde + fracal")),
        *(("linear", chain) for chain in ("tau_norm tau=0.7", "ncm", "norcal + tau_norm")),
    ],
)
def test_a_calibrated_checkpoint_with_the_same_config(make, tool, tmp_path, kind, chain):
    """Detects what the model in memory does, and other things than the one before."""
    cfg, model, path = make(kind)
    assert "carries" in tool(kind, chain, path, tmp_path / "calibrated.pth")
    inputs = [{"image": torch.rand(3, 96, 96) * 255, "height": 96, "width": 96}]
    with torch.no_grad():
        before = model(inputs)[0]["instances"].scores
        calibrate(cfg, model, parse_chains(chain)[0])
        cfg.MODEL.WEIGHTS = str(tmp_path / "calibrated.pth")
        own, wanted = (m(inputs)[0]["instances"] for m in (load_model(cfg), model))
    assert torch.equal(own.scores, wanted.scores) and not torch.equal(own.scores, before)


def test_evaluation_of_a_calibrated_checkpoint(root, make, tmp_path):
    cfg, model, _ = make("tde")
    calibrate(cfg, model, parse_chains("norcal gamma=0.9")[0])
    DetectionCheckpointer(model, str(tmp_path)).save("calibrated")
    command = ("tools/train_net.py", "--config-file", "configs/" + CONFIG["tde"], "--eval-only")
    weights = ("OUTPUT_DIR", tmp_path / "out", "MODEL.WEIGHTS", tmp_path / "calibrated.pth")
    result = run(root, *command, *weights, *SMALL, "MODEL.DEVICE", "cpu")
    log = result.stdout + result.stderr
    assert result.returncode == 0 and "APr" in log, log[-3000:]
    assert "not found in the checkpoint" not in log and "not used by the model" not in log


def test_calibrating_again_replaces(make, tool, tmp_path):
    _, _, path = make("tde")
    tool("tde", "tde + norcal + fracal", path, tmp_path / "first.pth")
    tool("tde", "norcal gamma=0.2", tmp_path / "first.pth", tmp_path / "second.pth")
    first, second = (adjustments_in(tmp_path / name) for name in ("first.pth", "second.pth"))
    assert list(first) == ["tde", "norcal", "fracal"] and list(second) == ["tde", "norcal"]
    assert torch.equal(second["tde"]["feature_mean"], first["tde"]["feature_mean"])
    assert second["norcal"]["gamma"] == 0.2


def test_classes_without_boxes_have_no_mean(make):
    cfg, model, _ = make("linear")
    (statistics, *_) = foreground_statistics(cfg, model, max_images=1)
    calibrate(cfg, model, parse_chains("ncm")[0], max_images=1)
    ncm = box_predictors(model)[0].adjustments["ncm"]
    assert isinstance(ncm, NCM) and (statistics.counts == 0).any()
    assert torch.equal(torch.isnan(ncm.class_means).all(dim=1), statistics.counts == 0)


def test_some_images_of_each_class():
    pairs = [(0, 4), (0, 4), (0, 1), (0, 2), (0, 9), (3, 7), (5, 0), (5, 2)]  # class and image
    classes, images = np.array(pairs).T
    objects = Objects(images, classes, np.zeros(8, bool), 10)
    assert some_of_each_class(objects, 2).tolist() == [0, 1, 2, 7, 9]
    assert some_of_each_class(objects, 99).tolist() == [0, 1, 2, 4, 7, 9]


def test_images_per_class_measures_rare_classes_in_full(make):
    cfg, model, _ = make("linear")
    whole, few = (foreground_statistics(cfg, model, images_per_class=n)[0] for n in (None, 1))
    assert 0 < few.counts.sum() < whole.counts.sum()
    assert torch.equal(few.counts == 0, whole.counts == 0)
    once = TrainingSet(cfg).images == 1
    assert once.any() and torch.equal(few.counts[once], whole.counts[once])


def test_two_processes(root, make, tmp_path):
    cfg, model, path = make("tde")
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    args = ("--adjust", "tde", "--output", tmp_path / "tde.pth", "MODEL.WEIGHTS", path)
    args += ("--config-file", "configs/" + CONFIG["tde"])
    result = run(root, *command, "tools/calibrate.py", *args, *SMALL, "MODEL.DEVICE", "cpu")
    assert result.returncode == 0, result.stderr[:6000]
    state = torch.load(tmp_path / "tde.pth")["model"]
    for k, own in enumerate(foreground_statistics(cfg, model)):
        mean = state[f"roi_heads.box_predictor.{k}.adjustments.tde.feature_mean"]
        torch.testing.assert_close(mean, (own.mean() / (1 - cfg.MODEL.TDE.MU)).float())


def test_refusals(make, tool, tmp_path, monkeypatch):
    """They come before the pass over the training set."""
    monkeypatch.setattr("tde_det.engine.calibration.foreground_statistics", None)
    _, _, tde = make("tde")
    _, _, linear = make("linear", "linear")
    gol = ("MODEL.LONG_TAIL.LOSS", "gol")
    output = tmp_path / "output.pth"
    for kind, chain, path, args, message in (
        ("tde", "tau_norm", tde, (), "adjustments .*tau_norm: TauNorm divides class weights"),
        ("tde", "tde + tau_norm", tde, (), "adjustments .*tau_norm: TauNorm divides class weights"),
        ("tde", "tde alpha=2", tde, (), "options of tde are not saved"),
        ("linear", "tde", linear, (), "adjustments tde: TDE needs a normalised"),
        ("linear", "tau_norm tau=-1", linear, (), "--adjust: .*tau must be at least 0"),
        ("linear", "tau_norm gamma=1", linear, (), "--adjust: 'gamma=1' of .*: unknown option"),
        ("linear", "tau_norm tau=1,2", linear, (), "--adjust 'tau_norm tau=1,2' has several val"),
        ("linear", "platt", linear, (), "--adjust: 'platt' is no adjustment; known are tde"),
        ("linear", "ncm", linear, ("--max-images", 0), "--max-images must be positive, got 0"),
        ("linear", "ncm", linear, ("--images-per-class", 0), "--images-per-class must be positive"),
        ("tde", "tde", tde, ("--images-per-class", 9), "tde's mean is one over all objects"),
        ("linear", "norcal", linear, ("--class-balanced",), "--class-balanced is for the mean of"),
        ("linear", "ncm temperature=0", linear, (), "temperature must be positive, got 0"),
        ("linear", "ncm", linear, gol, "NCM changes softmax .*trains gumbel scores"),
        ("linear", "norcal", linear, gol, "NorCal changes softmax .*trains gumbel scores"),
        ("linear", "ncm", tmp_path / "no.pth", (), "MODEL.WEIGHTS is .*no.pth, which does not ex"),
        ("linear", "tau_norm", "", (), "no checkpoint is named: add MODEL.WEIGHTS"),
        ("linear", "tau_norm", tde, (), "no fitting.*cls_score.bias.*give the config"),
        ("tde", "norcal", linear, (), "unknown roi_heads.box_predictor.0.cls_score.bias"),
    ):
        error = tool(kind, chain, path, output, *args)
        assert re.match(f"error: .*{message}", error) and "\n" not in error, (message, error)
        assert not output.exists(), message
    assert "linear.pth exists already" in tool("linear", "tau_norm", linear, linear)
    folder = tmp_path / "linear.pth/x.pth"
    assert "x.pth cannot be written" in tool("linear", "tau_norm", linear, folder)
