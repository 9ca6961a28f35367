"""Image classification: accuracy, training and methods against naive versions."""

import math

import pytest
import torch
from test_image_data import colours

from tde_det.adjustments import parse_chains
from tde_det.classification.accuracy import accuracy_by_split, split_classes, summarise
from tde_det.classification.experiment import build, choose_chains, run
from tde_det.classification.methods import build_adjustments, retrain
from tde_det.classification.model import CLASSIFIER_NAMES, build_backbone
from tde_det.classification.settings import Machine, RunSettings, Schedule
from tde_det.classification.training import build_criterion, class_balanced, train
from tde_det.errors import InputError
from tde_det.foreground_statistics import ForegroundStatistics
from tde_det.losses import LOSSES

CPU = Machine()
SCHEDULE = Schedule(epochs=1, batch_size=16, lr=0.1)
SETTINGS = RunSettings(
    arch="resnet8",
    stem_stride=2,
    normalized={"num_heads": 2, "tau": 16.0, "gamma": 1 / 32},
    mu=0.99,
    loss="cross_entropy",
    loss_options={},
    schedule=SCHEDULE,
    adjustments=parse_chains("ncm"),
    retrain=(),
    retrain_schedule=SCHEDULE,
    machine=CPU,
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
    assert balanced["all"] == balanced["medium"] == 100 and balanced["few"] is None


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
    with pytest.raises(InputError, match="arch must be one of"):
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
    settings = SETTINGS._replace(schedule=SCHEDULE._replace(batch_size=5))
    train(model, criterion, benchmark.train, settings, "")
    mean = torch.zeros(64)
    for features in seen:
        if len(features) > 1:
            mean = 0.99 * mean + features.mean(dim=0)
    assert len(seen) == 3  # the last batch, of one image, is left out
    torch.testing.assert_close(model.tde.feature_mean, mean)


@pytest.mark.parametrize("name", CLASSIFIER_NAMES)
def test_every_classifier_learns(name, tmp_path):
    benchmark = colours([40, 30, 20, 10])
    texts = ("tde alpha=0,0.5", "tau_norm tau=0,0.5", "ncm + norcal")
    settings = SETTINGS._replace(
        schedule=Schedule(10, 16, 0.1),
        adjustments=[chain for text in texts for chain in parse_chains(text)],
        retrain=("crt", "lws"),
    )
    result = run(name, 0, benchmark, settings, str(tmp_path))
    rows = {k.removeprefix(name): v for k, v in result["accuracy"].items()}
    assert rows[""]["all"] > 60  # chance: 25
    state = torch.load(tmp_path / f"model_{name}_seed0.pth", weights_only=True)
    assert set(state["retrained"]) == {"crt", "lws"}
    if name == "linear":
        assert set(result["skipped"]) == {"tde alpha=0", "tde alpha=0.5"}
        assert rows[" + tau_norm tau=0"] == rows[""] and " + tau_norm tau=0.5" in rows
    else:
        assert set(result["skipped"]) == {"tau_norm tau=0", "tau_norm tau=0.5"}
        assert rows[" + tde alpha=0"] == rows[""] and " + tde alpha=0.5" in rows
    assert {" + ncm + norcal", " + cRT", " + LWS"} < set(rows)
    again = run(name, 0, benchmark, settings, str(tmp_path))
    assert again["accuracy"] == result["accuracy"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["linear", "causal_norm"])
def test_every_loss_takes_a_step(loss, name):
    benchmark = colours([12, 4, 3], size=8)
    torch.manual_seed(0)
    settings = SETTINGS._replace(loss=loss, schedule=SCHEDULE._replace(batch_size=19))
    model, criterion = build(name, benchmark, settings)
    before = model.classifier.weight.detach().clone()
    train(model, criterion, benchmark.train, settings, "")
    assert torch.isfinite(model.classifier.weight).all()
    assert not torch.equal(model.classifier.weight, before)


def test_loss_options():
    counts = torch.tensor([9, 3, 1])
    assert build_criterion("seesaw", counts, 10, {"p": 0.3, "q": 1}).p == 0.3
    assert build_criterion("ldam", counts, 10).drw_start == 8
    assert build_criterion("ldam", counts, 10, {"drw_start": 1.0}).drw_start == -1
    assert build_criterion("cb_focal", counts, 10, {"beta": 0.9}).counts.tolist() == [9, 3, 1]
    for loss, options, message in (
        ("seesaw", {"gamma": 1}, "loss seesaw: .*'gamma'.*tde_det.losses.seesaw"),
        ("seesaw", {"p": -1}, "p must be in"),
        ("federated", {"num_sampled": 2.5}, "num_sampled must be a whole number, got 2.5"),
        ("balanced_softmax", {"tau": 2}, "balanced_softmax: .*'tau'"),
        ("ldam", {"drw_start": 7}, "fraction of the training"),
    ):
        with pytest.raises(InputError, match=message):
            build_criterion(loss, counts, 10, options)


def test_divergence_is_an_error():
    settings = SETTINGS._replace(schedule=Schedule(20, 16, 1e30, warmup_epochs=0))
    benchmark = colours([12, 12])
    with pytest.raises(InputError, match="lower lr"):
        model, criterion = build("linear", benchmark, settings)
        train(model, criterion, benchmark.train, settings, "")


# Methods


def naive_tde(x, weight, mean, alpha):
    expected = torch.zeros(len(x), len(weight), dtype=x.dtype)
    half = x.shape[1] // 2
    for n in range(len(x)):
        for i in range(len(weight)):
            for k in (slice(0, half), slice(half, 2 * half)):
                d = mean[k] / mean[k].norm()
                wk = 8 * weight[i, k] / (weight[i, k].norm() + 1 / 32)
                xk = x[n, k] / x[n, k].norm()
                expected[n, i] += wk @ xk - alpha * (xk @ d) * (wk @ d)
    return expected


def test_chains_against_loops():
    benchmark = colours([9, 4, 2])
    torch.manual_seed(0)
    model = build("causal_norm", benchmark, SETTINGS)[0].double().eval()
    model.tde.update_mean(torch.rand(30, 64).double(), torch.ones(30, dtype=torch.bool))
    x, weight, mean = torch.rand(5, 64).double(), model.classifier.weight, model.tde.feature_mean
    counts = benchmark.train_counts

    def adjusted(text, features=None):
        chain = parse_chains(text)[0]
        adjust = build_adjustments(chain, model, counts, features).double()
        return adjust(x, model.classifier(x), model.classifier.class_weight()).detach()

    expected = naive_tde(x, weight.detach(), mean, 1.3)
    torch.testing.assert_close(adjusted("tde alpha=1.3"), expected)
    torch.testing.assert_close(
        adjusted("tde alpha=1.3 + norcal gamma=0.4"), expected - 0.4 * counts.double().log()
    )
    assert torch.equal(adjusted("tde alpha=0"), model.classifier(x).detach())

    features, labels = torch.rand(20, 64).double(), torch.arange(20) % 3
    statistics = ForegroundStatistics(3, 64)
    statistics.add(features, labels)
    center = features.mean(dim=0)
    means = [features[labels == i].mean(dim=0) - center for i in range(3)]
    cosines = [[torch.cosine_similarity(a - center, m, dim=0) for m in means] for a in x]
    ncm = torch.tensor([[16 * c for c in row] for row in cosines], dtype=torch.float64)
    torch.testing.assert_close(adjusted("ncm", statistics), ncm, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "causal_norm"])
@pytest.mark.parametrize("method", ["crt", "lws"])
def test_retraining_leaves_the_model_alone(name, method):
    benchmark = colours([20, 5])
    torch.manual_seed(0)
    model, _ = build(name, benchmark, SETTINGS)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    classifier = retrain(method, model, benchmark.train, SETTINGS, "")
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items()) and set(after) == set(before)
    old = before["classifier.weight"]
    if method == "lws":
        assert torch.equal(classifier.weight, old)
        assert not torch.equal(classifier.class_scale, torch.ones(2))
    else:
        assert (classifier.weight - old).abs().max() > 0.01 and classifier.weight.shape == old.shape


def test_chains_that_do_not_fit():
    both = choose_chains(["tde", "tau_norm"], [], ["linear", "cosine"], "cross_entropy")
    assert [str(step) for chain in both for step in chain] == ["tde", "tau_norm"]
    chosen = choose_chains(None, ["tde", "tau_norm", "ncm"], ["cosine"], "sigmoid_focal")
    assert [chain[0].name for chain in chosen] == ["ncm"]
    for text, classifier, loss, message in (
        ("ncm + tde", "linear", "cross_entropy", r"ncm \+ tde cannot be used: .* linear is not"),
        ("tde", "cosine", "sigmoid_focal", "trains sigmoid scores"),
        ("tau_norm", "capsule", "cross_entropy", "capsule divides by the norms"),
        ("fracal", "linear", "cross_entropy", "needs the boxes"),
        ("ncm exempt=true", "linear", "cross_entropy", "images have no background"),
        ("magic", "linear", "cross_entropy", "'magic' is no adjustment"),
    ):
        with pytest.raises(InputError, match=message):
            choose_chains([text], [], [classifier], loss)


def test_summary():
    nothing = {"many": None, "medium": 1.0, "few": 2.0}
    runs = [
        {"classifier": "linear", "seed": seed, "accuracy": {"linear": {"all": value, **nothing}}}
        for seed, value in ((1, 4.0), (0, 1.0), (2, 1.0))
    ]
    row = summarise(runs, ["linear"])["linear"]
    assert row["all"] == {"mean": 2.0, "std": pytest.approx(3**0.5)}
    assert row["many"] == {"mean": None, "std": None}
