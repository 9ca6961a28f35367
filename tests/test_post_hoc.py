"""τ-normalisation, NCM, NorCal and post-hoc TDE against loops, and inside whole detectors."""

import math

import pytest
import torch
from conftest import scripted
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from test_box_predictor import CLASSES, DIM, make_inputs, make_predictor, tiny_model

from tde_det import CausalNormClassifier
from tde_det.box_predictor import LongTailOutputLayers
from tde_det.errors import InputError
from tde_det.post_hoc import (
    Calibration,
    ForegroundStatistics,
    box_predictors,
    calibrate,
    fill_feature_mean,
    ncm,
    norcal,
    tau_norm,
)

N, C, D = 11, 6, 8
LINEAR = ("MODEL.TDE.CLASSIFIER", "linear")


def softmax(values):
    top = max(values)
    total = sum(math.exp(v - top) for v in values)
    return [math.exp(v - top) / total for v in values]


def exempted(y, t):
    """Scores of one box: factual for the background, the rest shared out by softmax(t)."""
    p, q = softmax(y), softmax(t)
    return [(1 - p[-1]) * q_i for q_i in q] + [p[-1]]


@pytest.fixture
def head():
    torch.manual_seed(3)
    x = torch.randn(N, D).double()
    weight = torch.randn(C + 1, D).double() * torch.rand(C + 1, 1).double() * 3
    bias = torch.randn(C + 1).double()
    return x, weight, bias, x @ weight.t() + bias


def scores(calibration, x, logits):
    return calibration.double()(x, logits).softmax(dim=1)


def check(actual, expected):
    torch.testing.assert_close(
        actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0])
def test_tau_norm(head, tau):
    x, weight, bias, y = head
    expected = []
    for n in range(N):
        t = []
        for i in range(C):
            norm = math.sqrt(sum(float(v) ** 2 for v in weight[i]))
            product = sum(float(a) * float(b) / norm**tau for a, b in zip(weight[i], x[n]))
            t.append(product + float(bias[i]))
        expected.append(exempted(y[n].tolist(), t))
    check(scores(tau_norm(weight[:-1], bias[:-1], tau), x, y), expected)


@pytest.mark.parametrize("background", ["exempt", "paper"])
def test_norcal(head, background):
    x, _, _, y = head
    counts = torch.tensor([0, 3, 900, 20, 7, 1])  # a class never seen counts as one seen once
    expected = []
    for n in range(N):
        p = softmax(y[n].tolist())
        divided = [p[i] / max(float(counts[i]), 1.0) ** 0.7 for i in range(C)]
        if background == "paper":
            total = sum(divided) + p[-1]
            expected.append([v / total for v in divided] + [p[-1] / total])
        else:
            expected.append([(1 - p[-1]) * v / sum(divided) for v in divided] + [p[-1]])
    calibration = norcal(counts, 0.7, background)
    torch.testing.assert_close(calibration.offset, -0.7 * counts.clamp(min=1).float().log())
    calibration.offset = -0.7 * counts.clamp(min=1).double().log()  # as float64
    check(scores(calibration, x, y), expected)


def test_ncm(head):
    x, _, _, y = head
    seen = torch.rand(200, D).double()
    labels = torch.randint(0, C + 1, (200,))
    labels[labels == 2] = C  # class 2 has no box
    statistics = ForegroundStatistics(C, D)
    for part in (slice(0, 90), slice(90, 200)):
        statistics.add(seen[part], labels[part])
    center = [float(seen[labels < C][:, d].mean()) for d in range(D)]
    expected = []
    for n in range(N):
        t = []
        for i in range(C):
            if i == 2:
                t.append(-math.inf)
                continue
            mean = [float(seen[labels == i][:, d].mean()) - center[d] for d in range(D)]
            box = [float(x[n, d]) - center[d] for d in range(D)]
            dot = sum(a * b for a, b in zip(mean, box))
            t.append(5 * dot / math.hypot(*mean) / math.hypot(*box))
        expected.append(exempted(y[n].tolist(), t))
    calibration = ncm(statistics, 5.0)
    calibration.center = statistics.mean()
    calibration.class_means = (
        statistics.sums / statistics.counts.clamp(min=1).unsqueeze(1) - statistics.mean()
    )
    actual = scores(calibration, x, y)
    check(actual, expected)
    assert actual[:, 2].max() == 0
    torch.testing.assert_close(scores(ncm(statistics, 5.0), x, y), actual, rtol=1e-5, atol=1e-7)


def test_nothing_changes_at_0(head):
    x, weight, bias, y = (tensor.float() for tensor in head)
    for calibration in (
        tau_norm(weight[:-1], bias[:-1], 0.0),
        norcal(torch.arange(1, C + 1), 0.0),
        norcal(torch.arange(1, C + 1), 0.0, "paper"),
    ):
        assert torch.equal(calibration(x, y), y)


def test_without_background(head):
    """Image classification: C logits in, C logits out."""
    x, weight, bias, y = head
    t = tau_norm(weight[:-1], bias[:-1], 0.5, "none")(x, y[:, :-1])
    norm = weight[:-1].norm(dim=1)
    torch.testing.assert_close(t, x @ (weight[:-1] / norm.sqrt().unsqueeze(1)).t() + bias[:-1])
    t = norcal(torch.full((C,), 10), 1.0, "none")(x, y[:, :-1])
    torch.testing.assert_close(t, y[:, :-1] - math.log(10), rtol=1e-6, atol=1e-6)


def test_statistics_of_one_pass():
    """The mean and the mean cosine to its direction, box by box; and what inference makes of it."""
    torch.manual_seed(1)
    x, labels = torch.rand(300, D), torch.randint(0, C + 1, (300,))
    x[5] = math.inf
    statistics = ForegroundStatistics(C, D, num_heads=2)
    for part in torch.arange(300).split(64):
        statistics.add(x[part], labels[part])
    kept = [n for n in range(300) if labels[n] < C and n != 5]
    mean = sum(x[n].double() for n in kept) / len(kept)
    cosine = 0.0
    for n in kept:
        for half in (slice(0, 4), slice(4, 8)):
            a, b = x[n, half].double(), mean[half]
            cosine += float(a @ b / a.norm() / b.norm()) / 2 / len(kept)
    torch.testing.assert_close(statistics.mean(), mean, rtol=0, atol=1e-10)
    assert statistics.mean_cosine() == pytest.approx(cosine, abs=1e-10)

    classifier = CausalNormClassifier(D, C, auto_alpha=True).eval()
    assert fill_feature_mean(classifier, statistics) == pytest.approx(1 / cosine)
    assert classifier.effective_alpha() == pytest.approx(1 / cosine)
    direction = classifier.feature_mean.double()
    torch.testing.assert_close(direction / direction.norm(), mean / mean.norm(), rtol=0, atol=1e-6)

    with pytest.raises(InputError, match="no foreground box"):
        ForegroundStatistics(C, D).mean()


def predict(model, inputs):
    """Logits of every stage on fixed proposals, and the model's detections."""
    logits = []
    hooks = [
        p.register_forward_hook(lambda m, i, o: logits.append(o[0])) for p in box_predictors(model)
    ]
    with torch.no_grad():
        detections = model.inference(inputs, do_postprocess=False)
    for hook in hooks:
        hook.remove()
    return logits, detections


def options(model, method):
    torch.manual_seed(5)
    if method == "norcal":
        return {"counts": torch.randint(1, 1000, (CLASSES,)), "gamma": 0.8}
    if method == "tau_norm":
        return {"tau": 0.9}
    statistics = []
    for predictor in box_predictors(model):
        statistics.append(ForegroundStatistics(CLASSES, predictor.bbox_pred.in_features))
        features = torch.rand(50, predictor.bbox_pred.in_features)
        statistics[-1].add(features, torch.randint(0, CLASSES, (50,)))
    return {"statistics": statistics}


def detector(load_config, heads, opts):
    opts = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, *opts)
    model = tiny_model(load_config, heads, *opts).eval()
    for k, predictor in enumerate(box_predictors(model)):  # so that classes and boxes differ
        predictor.cls_score.weight.data.normal_()
        if opts and "linear" in opts:
            predictor.cls_score.weight.data /= predict(model, make_inputs(1))[0][k].std()
    return model


@pytest.mark.parametrize(
    "heads, method, opts",
    [
        ("TDECascadeROIHeads", "tau_norm", LINEAR),
        ("TDECascadeROIHeads", "norcal", ()),
        ("TDECascadeROIHeads", "ncm", LINEAR),
        ("TDEStandardROIHeads", "tau_norm", LINEAR),
    ],
)
def test_in_a_detector(load_config, tmp_path, heads, method, opts):
    model, inputs = detector(load_config, heads, opts), make_inputs(1)
    factual_logits, factual = predict(model, inputs)
    calibrate(model, method, **options(model, method))
    logits, detections = predict(model, inputs)
    assert len(logits) == (3 if "Cascade" in heads else 1)
    for own, other in zip(logits, factual_logits):
        p, q = other.softmax(1), own.softmax(1)
        torch.testing.assert_close(q[:, -1], p[:, -1], rtol=0, atol=1e-6)
        assert (q - p).abs().max() > 1e-2
        assert not hasattr(own, "probabilities")  # the classifier's, of other logits
    assert not torch.equal(detections[0].scores, factual[0].scores)

    # A checkpoint, loaded as training and demo load it, is calibrated, and another one is not.
    DetectionCheckpointer(model, str(tmp_path)).save("calibrated")
    calibrate(model, None)
    DetectionCheckpointer(model, str(tmp_path)).save("plain")
    other = tiny_model(load_config, heads, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, *opts).eval()
    checkpointer = DetectionCheckpointer(other)
    problems = []
    checkpointer._log_incompatible_keys = problems.append
    for name, expected in (("calibrated", logits), ("plain", factual_logits)):
        checkpointer.load(str(tmp_path / f"{name}.pth"))
        for own, wanted in zip(predict(other, inputs)[0], expected):
            assert torch.equal(own, wanted)
    assert len(problems) == 2 and not any(any(kinds) for kinds in problems)


@pytest.mark.parametrize("method, opts", [("norcal", ()), ("ncm", LINEAR)])
def test_scripting_and_tracing(load_config, method, opts):
    model, inputs = detector(load_config, "TDEStandardROIHeads", opts), make_inputs(1)
    calibrate(model, method, **options(model, method))
    _, (expected,) = predict(model, inputs)
    with torch.no_grad():
        (actual,) = scripted(model).inference([{"image": inputs[0]["image"]}], do_postprocess=False)
    torch.testing.assert_close(actual.scores, expected.scores)
    assert torch.equal(actual.pred_classes, expected.pred_classes)

    predictor, x = box_predictors(model)[0], torch.rand(4, 32)
    with torch.no_grad():
        traced = torch.jit.trace(predictor, torch.rand(7, 32), check_trace=False)
        torch.testing.assert_close(traced(x), predictor(x))


def linear_predictor(**kwargs):
    transform = Box2BoxTransform((10, 10, 5, 5))
    options = {"box2box_transform": transform, "num_classes": CLASSES, **kwargs}
    return LongTailOutputLayers(ShapeSpec(channels=DIM), **options)


def test_a_calibrated_model_does_not_train():
    predictor = make_predictor()
    calibrate(predictor, "norcal", counts=torch.ones(CLASSES))
    with pytest.raises(InputError, match="train the one it was made from"):
        predictor.train().losses((None, None), [])


@pytest.mark.parametrize(
    "method, predictor, arguments, message",
    [
        ("tau_norm", make_predictor(), {}, "MODEL.TDE.CLASSIFIER is.*causal_norm"),
        ("tau_norm", linear_predictor(), {"tau": -1.0}, "tau must be at least 0, got -1"),
        ("norcal", make_predictor(), {"counts": torch.ones(5), "gamma": -0.1}, "gamma must be at"),
        ("norcal", make_predictor(), {"counts": torch.zeros(5)}, "there are none"),
        ("norcal", make_predictor(), {"counts": torch.ones(6)}, "count of every class"),
        ("norcal", make_predictor(), {"counts": torch.ones(5), "background": "x"}, "background mu"),
        ("ncm", make_predictor(), {}, "NCM needs the statistics"),
        ("platt", make_predictor(), {}, "must be one of .*'platt'"),
        ("norcal", linear_predictor(use_sigmoid_ce=True), {}, "this model sigmoid"),
    ],
)
def test_refusals_leave_the_model_alone(method, predictor, arguments, message):
    with pytest.raises(InputError, match=message):
        calibrate(predictor, method, **arguments)
    assert predictor.calibration is None


def test_learned_class_scales_count():
    """LWS: the norm is that of the scaled weight."""
    predictor = linear_predictor().eval()
    torch.nn.init.normal_(predictor.cls_score.weight)
    predictor.learn_class_scale()
    predictor.cls_score.class_scale.data.uniform_(0.5, 2)
    x = torch.randn(N, DIM)
    factual = predictor(x)[0]
    calibrate(predictor, "tau_norm", tau=1.0)
    weight = predictor.cls_score.weight[:-1] * predictor.cls_score.class_scale.unsqueeze(1)
    t = x @ (weight / weight.norm(dim=1, keepdim=True)).t()
    p_bg = factual.softmax(1)[:, -1:]
    expected = torch.cat([t.softmax(1) * (1 - p_bg), p_bg], dim=1)
    torch.testing.assert_close(predictor(x)[0].softmax(1), expected)


def test_state_of_another_module_is_no_calibration():
    assert Calibration.from_state_dict({"weight": torch.ones(1)}, "calibration.") is None


def test_ncm_temperature():
    with pytest.raises(InputError, match="temperature must be positive, got 0"):
        ncm(ForegroundStatistics(C, D), 0.0)
