"""Image classification: accuracy, training and methods against naive versions."""

import math

import pytest
import torch
from test_image_data import colours

from tde_det.causal_norm import CausalNormClassifier
from tde_det.classification.accuracy import accuracy_by_split, split_classes
from tde_det.classification.experiment import Settings, build, run, summarise
from tde_det.classification.images import (
    Machine,
)
from tde_det.classification.methods import MethodSettings, check_methods, retrain, tde
from tde_det.classification.model import CLASSIFIER_NAMES, build_backbone, build_classifier
from tde_det.classification.training import Schedule, build_criterion, class_balanced, train
from tde_det.errors import InputError
from tde_det.losses import LOSSES

CPU = Machine(torch.device("cpu"))
SCHEDULE = Schedule(epochs=1, batch_size=16, lr=0.1)
SETTINGS = Settings(
    arch="resnet8",
    stem_stride=2,
    num_heads=2,
    tau=16.0,
    gamma=1 / 32,
    mu=0.99,
    loss="cross_entropy",
    loss_options={},
    schedule=SCHEDULE,
    methods=MethodSettings(("ncm",), (1.5,), (0.5,), SCHEDULE),
    machine=CPU,
    threads=1,
    output="",
)


def test_splits_have_the_papers_thresholds():
    splits = split_classes(torch.tensor([101, 100, 20, 19, 5000, 1]))
    assert {k: v.nonzero().flatten().tolist() for k, v in splits.items()} == {
        "many": [0, 4],
        "medium": [1, 2],
        "few": [3, 5],
    }


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_against_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([300, 101, 100, 50, 20, 19, 3])
    labels = torch.randint(0, 7, (40,), generator=generator)
    predicted = torch.where(
        torch.rand(40, generator=generator) < 0.5,
        labels,
        torch.randint(0, 7, (40,), generator=generator),
    )
    accuracy = accuracy_by_split(predicted, labels, counts)
    hits = [int(p == y) for p, y in zip(predicted, labels)]
    assert accuracy["all"] == pytest.approx(100 * sum(hits) / 40)
    for split, members in (("many", [0, 1]), ("medium", [2, 3, 4]), ("few", [5, 6])):
        per_class = []
        for i in members:
            own = [h for h, y in zip(hits, labels) if y == i]
            per_class += [sum(own) / len(own)] if own else []
        assert accuracy[split] == pytest.approx(100 * sum(per_class) / len(per_class))
    balanced = accuracy_by_split(labels, labels, torch.full((7,), 50))
    assert balanced["all"] == balanced["medium"] == 100 and math.isnan(balanced["few"])


# Model and training


@pytest.mark.parametrize(
    ("arch", "stride", "size", "channels", "cells"),
    [
        ("resnet8", 1, 32, 64, 8),
        ("resnet20x2", 2, 32, 128, 4),
        ("resnet18", 4, 64, 512, 2),
        ("resnet18", 1, 16, 512, 2),
    ],
)
def test_backbones(arch, stride, size, channels, cells):
    net, feature_dim = build_backbone(arch, stride)
    maps = []
    pool = next(m for m in net.modules() if isinstance(m, torch.nn.AdaptiveAvgPool2d))
    pool.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0].shape))
    features = net(torch.randn(2, 3, size, size))
    assert features.shape == (2, channels) and feature_dim == channels
    assert maps == [(2, channels, cells, cells)]
    if arch == "resnet8":  # He et al.: 6n+2 layers with weights, the last being the classifier
        weighted = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
        assert len([m for m in weighted if m.kernel_size == (3, 3)]) == 8 - 1
        net, _ = build_backbone("resnet32", 1)
        weighted = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
        assert len([m for m in weighted if m.kernel_size == (3, 3)]) == 32 - 1


@pytest.mark.parametrize("arch", ["resnet9", "resnet2", "resnet8x0", "vgg11", ""])
def test_unknown_backbones(arch):
    with pytest.raises(InputError, match="--arch must be one of"):
        build_backbone(arch, 1)


def test_schedule():
    schedule = Schedule(epochs=10, batch_size=8, lr=1.0, warmup_epochs=2)
    factors = [schedule.factor(i, 5) for i in range(50)]
    for i, factor in enumerate(factors):
        cosine = (1 + math.cos(math.pi * i / 50)) / 2
        assert factor == pytest.approx(cosine * ((i + 1) / 10 if i < 10 else 1))
    assert Schedule(1, 8, 1.0, warmup_epochs=0).factor(0, 5) == 1


def test_class_balanced_sampling():
    torch.manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([3000, 300, 30]))
    drawn = torch.bincount(labels[list(class_balanced(labels))])
    assert drawn.sum() == 3330 and (drawn - 1110).abs().max() < 150


def test_feature_mean_is_that_of_all_features():
    benchmark = colours([10, 6])
    torch.manual_seed(0)
    model, criterion = build("causal_norm", benchmark, SETTINGS)
    seen = []
    model.backbone.register_forward_hook(lambda *a: seen.append(a[2].detach()))
    train(model, criterion, benchmark.train, SCHEDULE._replace(batch_size=5), CPU)
    mean = torch.zeros(64)
    for features in seen:
        if len(features) > 1:
            mean = 0.99 * mean + features.mean(dim=0)
    assert len(seen) == 3  # the last batch, of one image, is left out
    torch.testing.assert_close(model.classifier.feature_mean, mean)


@pytest.mark.parametrize("name", CLASSIFIER_NAMES)
def test_every_classifier_learns(name, tmp_path):
    benchmark = colours([40, 30, 20, 10])
    methods = MethodSettings(
        ("tde", "tau_norm", "ncm", "crt", "lws"), (0.0, 0.5, "auto"), (0.0, 0.5), SCHEDULE
    )
    settings = SETTINGS._replace(
        schedule=Schedule(10, 16, 0.1), methods=methods, output=str(tmp_path)
    )
    result = run(name, 0, benchmark, settings)
    rows = {k.removeprefix(name): v for k, v in result["accuracy"].items()}
    assert rows[""]["all"] > 60  # chance: 25
    state = torch.load(tmp_path / f"model_{name}_seed0.pth", weights_only=True)
    assert set(state["retrained"]) == {"crt", "lws"}
    if name == "linear":
        assert set(result["skipped"]) == {"tde"}
        assert rows[" + τ-norm (τ=0.0)"] == rows[""]
    else:
        assert set(result["skipped"]) == {"tau_norm"}
        assert rows[" + TDE (α=0.0)"] == rows[""] and " + TDE (α=auto)" in rows
    assert {" + NCM", " + cRT", " + LWS"} < set(rows)
    again = run(name, 0, benchmark, settings)
    assert again["accuracy"] == result["accuracy"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["linear", "causal_norm"])
def test_every_loss_takes_a_step(loss, name):
    benchmark = colours([12, 4, 3], size=8)
    torch.manual_seed(0)
    settings = SETTINGS._replace(loss=loss, schedule=SCHEDULE._replace(batch_size=19))
    model, criterion = build(name, benchmark, settings)
    before = model.classifier.weight.detach().clone()
    train(model, criterion, benchmark.train, settings.schedule, CPU)
    assert torch.isfinite(model.classifier.weight).all()
    assert not torch.equal(model.classifier.weight, before)


def test_loss_options():
    counts = torch.tensor([9, 3, 1])
    assert build_criterion("seesaw", counts, 10, {"p": 0.3, "q": 1}).p == 0.3
    assert build_criterion("ldam", counts, 10).drw_start == 8
    assert build_criterion("ldam", counts, 10, {"drw_start": 1.0}).drw_start == -1
    assert build_criterion("cb_focal", counts, 10, {"beta": 0.9}).counts.tolist() == [9, 3, 1]
    for loss, options, message in (
        ("nonsense", {}, "--loss must be one of cross_entropy"),
        ("seesaw", {"gamma": 1}, "seesaw has no option 'gamma'; it has: objectness, p, q"),
        ("seesaw", {"p": "x"}, "p must be a number"),
        ("seesaw", {"p": -1}, "p must be in"),
        ("federated", {"num_sampled": 2.5}, "num_sampled must be a whole number, got 2.5"),
        ("balanced_softmax", {"tau": 2}, "balanced_softmax fixes one of tau"),
        ("ldam", {"drw_start": 7}, "part of the training"),
    ):
        with pytest.raises(InputError, match=message):
            build_criterion(loss, counts, 10, options)


def test_divergence_is_told():
    settings = SETTINGS._replace(schedule=Schedule(20, 16, 1e30, warmup_epochs=0))
    benchmark = colours([12, 12])
    with pytest.raises(InputError, match="lower --lr"):
        model, criterion = build("linear", benchmark, settings)
        train(model, criterion, benchmark.train, settings.schedule, CPU)


# Methods


def test_tde_against_a_loop():
    torch.manual_seed(0)
    classifier = build_classifier("causal_norm", 8, 5).eval()
    assert isinstance(classifier, CausalNormClassifier)
    classifier.update_mean(torch.rand(30, 8), torch.ones(30, dtype=torch.bool))
    x, w, mean = torch.rand(7, 8), classifier.weight.detach(), classifier.feature_mean
    expected = torch.zeros(7, 5)
    for n in range(7):
        for i in range(5):
            for k in (slice(0, 4), slice(4, 8)):
                d = mean[k] / mean[k].norm()
                wk = 8 * w[i, k] / (w[i, k].norm() + 1 / 32)
                xk = x[n, k] / x[n, k].norm()
                expected[n, i] += wk @ xk - 1.3 * (xk @ d) * (wk @ d)
    torch.testing.assert_close(tde(classifier, x, 1.3), expected)
    factual = classifier(x).detach()
    assert torch.equal(tde(classifier, x, 0.0), factual)
    classifier.update_mean(torch.rand(30, 8), torch.ones(30, dtype=torch.bool))
    ratio = classifier.foreground_cosine[1] / classifier.foreground_cosine[0]
    torch.testing.assert_close(tde(classifier, x, "auto"), tde(classifier, x, float(ratio)))
    assert torch.equal(classifier(x).detach(), factual)  # left as it was


@pytest.mark.parametrize("name", ["linear", "causal_norm"])
@pytest.mark.parametrize("method", ["crt", "lws"])
def test_retraining_leaves_the_model_alone(name, method):
    benchmark = colours([20, 5])
    torch.manual_seed(0)
    model, _ = build(name, benchmark, SETTINGS)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    classifier = retrain(method, model, benchmark.train, SCHEDULE, CPU)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items()) and set(after) == set(before)
    old = before["classifier.weight"]
    if method == "lws":
        assert torch.equal(classifier.weight, old)
        assert not torch.equal(classifier.class_scale, torch.ones(2))
    else:
        assert (classifier.weight - old).abs().max() > 0.01 and classifier.weight.shape == old.shape


def test_methods_that_do_not_fit():
    check_methods(("tde", "tau_norm"), ("linear", "cosine"), "softmax")
    for arguments, message in (
        ((("tde",), ("linear",), "softmax"), "--post tde does not fit: .* linear is none"),
        ((("tde",), ("cosine",), "sigmoid"), "trains sigmoid scores"),
        ((("tau_norm",), ("capsule",), "softmax"), "capsule divides by the norms"),
        ((("magic",), ("linear",), "softmax"), "--post must be of tde"),
    ):
        with pytest.raises(InputError, match=message):
            check_methods(*arguments)


def test_summary():
    nothing = {"many": math.nan, "medium": 1.0, "few": 2.0}
    runs = [
        {"classifier": "linear", "seed": seed, "accuracy": {"linear": {"all": value, **nothing}}}
        for seed, value in ((1, 4.0), (0, 1.0), (2, 1.0))
    ]
    row = summarise(runs, ["linear"])["linear"]
    assert row["all"] == {"mean": 2.0, "std": pytest.approx(3**0.5)}
    assert row["many"] == {"mean": None, "std": None}
