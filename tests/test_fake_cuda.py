"""No tensor stays on the CPU where a model is on a GPU: all parts run on fake CUDA tensors."""

import copy

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from fake_cuda import FakeCudaTensor, MixedDevices, fake_cuda
from test_adjustments import make
from test_box_predictor import (
    CLASSES,
    DIM,
    TINY,
    make_inputs,
    make_predictor,
    make_proposals,
    make_tde,
    tiny_model,
)
from test_classification import SETTINGS
from test_image_data import colours
from torch import nn
from torch.utils._pytree import tree_flatten

from tde_det.activations import ACTIVATIONS, scores_from_logits
from tde_det.adjustments import ADJUSTMENTS, Adjustments, LogitAdjustment, parse_chains
from tde_det.class_counts import ClassCounts
from tde_det.classification.experiment import build
from tde_det.classification.methods import evaluate
from tde_det.classifiers import KINDS, CausalNormClassifier, LinearClassifier
from tde_det.data import register_custom_sets
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.data.rle import encode_masks
from tde_det.engine import Trainer
from tde_det.engine.calibration import calibrate
from tde_det.evaluation.sweep_forward import SweepForward
from tde_det.foreground_statistics import ForegroundStatistics
from tde_det.inference.box_inference import box_inference
from tde_det.inference.run_length_masks import RunLengthMasks
from tde_det.losses import LOSSES
from tde_det.modeling import box_predictors, build_detector

N, C, D = 11, 6, 8  # those of test_adjustments
AUTOCAST = pytest.mark.parametrize(
    "autocast", [None, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"]
)
COUNTS = torch.tensor([0, 3, 900, 20, 7, 1])
LABELS = torch.arange(N) % (C + 1)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensors(result):
    """All tensors of a result, with those of Instances."""
    leaves = [
        [*i.get_fields().values()] if isinstance(i, Instances) else [i]
        for i in tree_flatten(result)[0]
    ]
    flat = [leaf for part in leaves for leaf in part]
    flat = [leaf.tensor if isinstance(leaf, Boxes) else leaf for leaf in flat]
    return [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]


def check(function, autocast=None, same=True):
    """``function("cuda")`` gives what ``function("cpu")`` does, on the GPU.

    Args:
        same: False for results that half precision may change in their sizes.
    """
    with torch.no_grad():
        expected = tensors(function("cpu"))
    with fake_cuda(autocast):
        found = tensors(function("cuda"))
        assert found and all(isinstance(t, FakeCudaTensor) for t in found)
        found = [t.cpu() for t in found]
    if autocast is None:
        torch.testing.assert_close(found, expected, equal_nan=True)
    elif same:
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=0.05, atol=0.1)


# The fake itself


class Forgetful(nn.Module):
    """Its buffer is none: ``to`` leaves it where it is."""

    def __init__(self):
        super().__init__()
        self.shift = torch.ones(D)

    def forward(self, x):
        return x + self.shift


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(D),
        lambda x: torch.cat([x, torch.zeros(1, D)]),
        lambda x: torch.stack([x.sum(), torch.zeros(())]),
        lambda x: x.index_select(0, torch.tensor([1])),
        lambda x: torch.zeros(N, D)[x[:, 0] > 0],
        lambda x: x[:, 0].scatter_add(0, LABELS, x[:, 1]),
        lambda x: torch.where(torch.ones(N, 1) > 0, x, 0.0),
        lambda x: nn.Linear(D, 2)(x),
        lambda x: Forgetful().to(x.device)(x),
        lambda x: x.add_(torch.ones(D)),
    ],
)
def test_mixed_devices_raise(mistake):
    mistake(random(N, D))
    with fake_cuda(), pytest.raises(MixedDevices):
        mistake(random(N, D).to("cuda"))


def test_a_fake_gives_no_numpy_array():
    with fake_cuda():
        x = random(N, D).to("cuda")
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()
        assert x.cpu().numpy().shape == (N, D)


def test_what_cuda_allows():
    def allowed(device):
        x = random(N, D).to(device)
        x[:, 0] = 1.0
        x[torch.tensor([1, 2])] += torch.tensor(0.5)
        y = torch.zeros(N, D, device=device).copy_(random(N, D, seed=1))
        return x, y + x[LABELS], x.new_zeros(3), torch.tensor([1.0], device=device)

    check(allowed)


# Plain PyTorch


@AUTOCAST
@pytest.mark.parametrize("kind", ["linear", *KINDS])
def test_classifiers(kind, autocast):
    torch.manual_seed(0)
    if kind == "linear":
        classifier = LinearClassifier(nn.Linear(D, C + 1), C, prior_logit=-2.0)
    else:
        classifier = CausalNormClassifier(D, C, kind=kind, prior_logit=-2.0)
    classifier.learn_class_scale()

    def run(device):
        module = classifier.to(device)
        return module(random(N, D).to(device)), module.class_weight()

    check(run, autocast)


@AUTOCAST
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("names", [*([name] for name in ADJUSTMENTS), ["tde", "norcal"]])
def test_adjustments(names, activation, autocast):
    if any(activation not in ADJUSTMENTS[name].activations for name in names):
        return
    weight = random(C + 1, D, seed=1)

    def run(device):
        adjust = Adjustments({name: make(name) for name in names}).float().to(device)
        x, w = random(N, D).to(device), weight.to(device)
        logits = nn.functional.linear(x, w)
        return adjust(x, logits, w, activation).softmax(dim=1)

    check(run, autocast)


@AUTOCAST
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, autocast):
    options = {"drw_start": 0} if name == "ldam" else {}

    def run(device):
        torch.manual_seed(0)
        counts = ClassCounts(COUNTS, COUNTS, 1000)
        loss = LOSSES[name](C, counts=counts, **options).to(device)
        logits = random(N, C + 1).to(device, autocast or torch.float32)
        values = [loss(logits, LABELS.to(device)) for _ in range(2)]
        loss.reset_statistics()
        return values

    check(run, autocast)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    check(lambda device: scores_from_logits(random(N, C + 1).to(device), activation))


def test_feature_mean_and_statistics():
    def run(device):
        torch.manual_seed(0)
        tde = make_tde(D).to(device)
        statistics = ForegroundStatistics(C, D, 2, device)
        for seed in range(2):
            x, labels = random(N, D, seed=seed).to(device), LABELS.to(device)
            tde.update_mean(x, labels < C)
            statistics.add(x, labels)
        statistics.all_reduce()
        means = statistics.mean(), statistics.centered_class_means().nan_to_num()
        return (
            tde.feature_mean,
            *means,
            torch.tensor(statistics.mean_cosine(statistics.mean())).to(device),
        )

    check(run)


# Detections


@AUTOCAST
@pytest.mark.parametrize("topk", [-1, 5])
@pytest.mark.parametrize("columns", [4, 4 * C])
def test_detections(columns, topk, autocast):
    corner = 60 * random(40, columns // 4, 2).abs()
    boxes = torch.cat([corner, corner + 30], dim=2).flatten(1)
    boxes[3] = torch.nan

    def run(device):
        scores = random(40, C + 1, seed=2).softmax(dim=1).to(device)
        return box_inference([boxes.to(device)], [scores], [(90, 120)], 0.01, 0.5, topk)

    check(run, autocast)


def test_masks():
    masks, boxes = random(3, 28, 28).sigmoid(), torch.tensor([[4.0, 5.0, 40.0, 50.0]]).repeat(3, 1)
    with fake_cuda():
        found = encode_masks(masks.to("cuda"), boxes.to("cuda"), (60, 70))
    assert found == encode_masks(masks, boxes, (60, 70))


# Box predictors and models


@AUTOCAST
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_box_predictor(name, linear, autocast):
    counts = ClassCounts(COUNTS[:CLASSES], COUNTS[:CLASSES], 1000)
    torch.manual_seed(0)
    loss = LOSSES[name](CLASSES, counts=counts)
    options = {"classification_loss": loss, "prior_prob": 0.01}
    if not linear:
        alpha = 1.5 if "softmax" in loss.activation else 0.0
        options["adjustments"] = {"tde": make_tde(alpha=alpha)}
    predictor = make_predictor(linear, **options)
    state = {key: value.clone() for key, value in predictor.state_dict().items()}
    if "softmax" in loss.activation:  # a calibrated checkpoint
        added = LogitAdjustment(COUNTS[:CLASSES]).state_dict()
        state.update({f"adjustments.logit_adjustment.{k}": v for k, v in added.items()})

    def run(device):
        torch.manual_seed(0)
        module = copy.deepcopy(predictor).to(device).train()
        module.load_state_dict(state)
        (proposals,) = (p.to(device) for p in make_proposals([0, 1, 4, CLASSES, CLASSES]))
        predictions = module(random(5, DIM).to(device))
        with EventStorage():
            losses = module.losses(predictions, [proposals])
            nothing = module.losses(module(torch.zeros(0, DIM, device=device)), [])
        return [*losses.values(), *nothing.values()], module.predict_probs(predictions, [proposals])

    check(run, autocast)


def timm_model(load, *opts):
    pytest.importorskip("timm")
    opts += ("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone")
    opts += ("MODEL.TIMM.NAME", "tf_efficientnet_lite0", *TINY[:8], *TINY[12:])
    return build_detector(load("lvis_cascade_tde.yaml", *opts))


def stock_model(load, *opts):
    """Its predictor is Detectron2's own, and becomes ours."""
    opts += ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.TDE.CLASSIFIER", "linear")
    return build_detector(load("lvis_mask_rcnn_tde.yaml", *TINY, *opts))


MODELS = {
    "cascade": lambda load, *opts: tiny_model(load, "TDECascadeROIHeads", *opts),
    "standard": lambda load, *opts: tiny_model(load, "TDEStandardROIHeads", *opts),
    "timm": timm_model,
    "stock": stock_model,
}


@AUTOCAST
@pytest.mark.parametrize("kind", MODELS)
def test_models(kind, autocast, load_config):
    norcal = make("norcal")
    norcal.images = norcal.instances = COUNTS[:CLASSES]

    def run(device):
        torch.manual_seed(0)
        model = MODELS[kind](load_config, "MODEL.DEVICE", device)
        inputs = make_inputs(1)
        with EventStorage():
            losses = model.train()(inputs)
        model.eval()
        chains = [[p.adjustments for p in box_predictors(model)]]
        chains += [[Adjustments({"norcal": norcal}).to(device)] * len(chains[0])]
        found = [model(inputs), RunLengthMasks(model)(inputs), *SweepForward(model, chains)(inputs)]
        return [*losses.values()], [output["instances"] for part in found for output in part]

    check(run, autocast, same=False)


def test_calibration_and_evaluation(load_config, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    build_mini_lvis(str(tmp_path / "mini_lvis"), Settings(CLASSES, 64, 4, 2))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)

    def run(device):
        torch.manual_seed(0)
        cfg = load_config("mini_lvis_cascade_tde.yaml", *TINY, "MODEL.DEVICE", device)
        cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS = str(tmp_path), 0
        register_custom_sets(cfg)
        model = build_detector(cfg)
        calibrate(cfg, model, parse_chains("tde + ncm + logit_adjustment + fracal")[0])
        found = Trainer.test(cfg, model.eval())
        assert found["bbox"]["AP"] >= 0
        return [[*p.adjustments.buffers()] for p in box_predictors(model)]

    check(run)


def test_image_classifiers():
    benchmark = colours([9, 4, 3])
    for name, text in (("linear", "tau_norm + norcal"), ("cosine", "tde + logit_adjustment")):

        def run(device, name=name, text=text):
            torch.manual_seed(0)
            machine = SETTINGS.machine._replace(device=device)
            settings = SETTINGS._replace(machine=machine, adjustments=parse_chains("ncm"))
            settings = settings._replace(adjustments=[*settings.adjustments, *parse_chains(text)])
            model, _ = build(name, benchmark, settings)
            model.to(device)
            rows, skipped, _ = evaluate(model, "softmax", benchmark, settings, "")
            assert not skipped
            values = [row["all"] for row in rows.values()]
            return torch.tensor(values).to(device)

        check(run)


def test_the_fake_ends():
    with fake_cuda(torch.float16):
        pass
    assert not torch.is_autocast_enabled("cuda")
    assert not torch.__future__.get_overwrite_module_params_on_conversion()
    weight = nn.Linear(2, 2).weight
    assert weight.requires_grad and weight.device.type == "cpu"
