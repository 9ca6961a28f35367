"""Image classification: data, accuracy and methods against naive versions; runs on tiny data."""

import importlib.util
import json
import math
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image

from tde_det.causal_norm import CausalNormClassifier
from tde_det.classification.accuracy import accuracy_by_split, split_classes
from tde_det.classification.cutout_images import cutout_benchmark
from tde_det.classification.experiment import Settings, build, run, summarise
from tde_det.classification.images import Benchmark, ImageTensors, batches, random_crop_flip
from tde_det.classification.long_tail import long_tail_counts, long_tail_subset
from tde_det.classification.methods import MethodSettings, check_methods, retrain, tde
from tde_det.classification.model import CLASSIFIER_NAMES, build_backbone, build_classifier
from tde_det.classification.sources import cifar_benchmark, folder_benchmark, list_benchmark
from tde_det.classification.training import Schedule, build_criterion, class_balanced, train
from tde_det.errors import InputError
from tde_det.losses import LOSSES

CPU = torch.device("cpu")
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
    device="cpu",
    workers=0,
    threads=1,
    output="",
)


def colours(counts, size=16, test_per_class=6, seed=0):
    """A benchmark that is easy to learn: noisy images of one colour per class."""
    generator = torch.Generator().manual_seed(seed)
    hues = torch.randint(0, 256, (len(counts), 3, 1, 1), generator=generator).float()

    def split(numbers):
        labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(numbers))
        noise = 25 * torch.randn(len(labels), 3, size, size, generator=generator)
        return ImageTensors((hues[labels] + noise).clamp(0, 255).to(torch.uint8), labels)

    names = [f"colour {i}" for i in range(len(counts))]
    return Benchmark(split(counts), split([test_per_class] * len(counts)), names, "Colours.")


# The long tail


@pytest.mark.parametrize("seed", range(5))
def test_long_tail_counts(seed):
    rng = np.random.default_rng(seed)
    classes, factor = int(rng.integers(2, 200)), float(rng.uniform(1, 200))
    largest = int(rng.integers(200, 6000))
    naive = [int(largest * (1 / factor) ** (i / (classes - 1.0))) for i in range(classes)]
    counts = long_tail_counts(classes, largest, factor)
    assert np.abs(np.subtract(counts, naive)).max() <= 1  # n_i may be whole but for rounding
    assert np.mean(np.equal(counts, naive)) > 0.95
    assert counts[0] == largest and counts == sorted(counts, reverse=True)


def test_long_tail_counts_of_cifar():
    counts = long_tail_counts(100, 500, 100)  # CIFAR-100-LT has 10,847 images
    assert sum(counts) == 10847 and (counts[0], counts[-1]) == (500, 5)
    assert long_tail_counts(3, 7, 1) == [7, 7, 7] and long_tail_counts(1, 7, 10) == [7]
    with pytest.raises(InputError, match="at least 1, got 0.5"):
        long_tail_counts(10, 500, 0.5)
    with pytest.raises(InputError, match="class 9 without an image"):
        long_tail_counts(10, 50, 100)


def test_long_tail_subset():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(4), [40, 50, 60, 45]))
    kept = long_tail_subset(labels, "abcd", 8, None, 3)
    assert np.bincount(labels[kept]).tolist() == long_tail_counts(4, 40, 8)
    assert len(set(kept)) == len(kept) and (np.diff(kept) > 0).all()
    assert np.array_equal(kept, long_tail_subset(labels, "abcd", 8, None, 3))
    assert not np.array_equal(kept, long_tail_subset(labels, "abcd", 8, None, 4))
    with pytest.raises(InputError, match="class 'a' has 40 training images and would need 45"):
        long_tail_subset(labels, "abcd", 8, 45, 3)


# Accuracy


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


# Data


def test_crops_and_flips():
    images = torch.arange(3 * 8 * 8).view(1, 3, 8, 8).repeat(200, 1, 1, 1) + 1
    padded = torch.nn.functional.pad(images[0], (1, 1, 1, 1))
    variants = {}
    for top in range(3):
        for left in range(3):
            crop = padded[:, top : top + 8, left : left + 8]
            variants[crop.numpy().tobytes()] = (top, left, 0)
            variants[crop.flip(2).contiguous().numpy().tobytes()] = (top, left, 1)
    made = random_crop_flip(images)
    seen = {variants[image.contiguous().numpy().tobytes()] for image in made}  # KeyError: no crop
    assert made.dtype == images.dtype and len(seen) == 18


def test_batches_cover_a_split_in_order():
    split = colours([5, 4]).train
    got = list(batches(split, 4, CPU))
    assert [len(y) for _, y in got] == [4, 4, 1]
    assert torch.equal(torch.cat([x for x, _ in got]), split.images)
    assert torch.equal(torch.cat([y for _, y in got]), split.labels)


def test_cutouts():
    benchmark = cutout_benchmark(5, 12, 4, 3, 24, seed=7)
    assert benchmark.train_counts.tolist() == long_tail_counts(5, 12, 4)
    assert torch.bincount(benchmark.test.labels).tolist() == [3] * 5
    images = benchmark.train.images
    assert images.shape[1:] == (3, 24, 24) and images.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in images}) == len(images)
    again, other = cutout_benchmark(5, 12, 4, 3, 24, 7), cutout_benchmark(5, 12, 4, 3, 24, 8)
    assert torch.equal(images, again.train.images)
    assert torch.equal(benchmark.test.images, again.test.images)
    assert not torch.equal(images, other.train.images) and len(set(benchmark.class_names)) == 5
    with pytest.raises(InputError, match="--classes must be in"):
        cutout_benchmark(1)
    with pytest.raises(InputError, match="--image-size must be at least 16"):
        cutout_benchmark(image_size=8)


def write_cifar(root, classes, per_class=6):
    """CIFAR's files, as its authors' Python wrote them, of random images."""
    rng = np.random.default_rng(0)
    key = "labels" if classes == 10 else "fine_labels"
    folder = root / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    folder.mkdir(parents=True)

    def write(name, labels):
        data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        content = {"data": data, key: list(labels), "filenames": ["x.png"] * len(labels)}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return data, labels

    labels = rng.permutation(np.repeat(np.arange(classes), per_class)).tolist()
    test = write("test_batch" if classes == 10 else "test", list(range(classes)))
    if classes == 10:
        parts = [write(f"data_batch_{i + 1}", labels[i::5]) for i in range(5)]
    else:
        parts = [write("train", labels)]
    names = [f"class{i}" for i in range(classes)]
    meta = {"label_names" if classes == 10 else "fine_label_names": names}
    (folder / ("batches.meta" if classes == 10 else "meta")).write_bytes(pickle.dumps(meta, 2))
    return folder, np.vstack([p[0] for p in parts]), sum((p[1] for p in parts), []), test


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(tmp_path, classes):
    folder, data, labels, test = write_cifar(tmp_path / "made", classes)
    kind = f"cifar{classes}"
    full = cifar_benchmark(kind, str(tmp_path / "made"), 1)
    assert np.array_equal(full.train.images.numpy().reshape(-1, 3072), data)
    assert full.train.labels.tolist() == labels and full.class_names[1] == "class1"
    assert np.array_equal(full.test.images.numpy().reshape(-1, 3072), test[0])
    tail = cifar_benchmark(kind, str(folder), 3, seed=1)  # the folder itself will do
    assert tail.train_counts.tolist() == long_tail_counts(classes, 6, 3)
    assert len(tail.test) == classes

    with pytest.raises(InputError, match=r"does not exist: --root must be the unpacked cifar-10"):
        cifar_benchmark(kind, str(tmp_path), 100)
    name = folder / ("test_batch" if classes == 10 else "test")
    content = pickle.loads(name.read_bytes())
    content["labels" if classes == 10 else "fine_labels"][0] = classes
    name.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=f"label {classes} is out of range"):
        cifar_benchmark(kind, str(folder), 1)
    name.write_bytes(b"no pickle")
    with pytest.raises(InputError, match="not in CIFAR's format"):
        cifar_benchmark(kind, str(folder), 1)


def write_images(folder, number, colour=(200, 30, 30), size=(20, 28)):
    folder.mkdir(parents=True)
    for i in range(number):
        Image.new("RGB", size, colour).save(folder / f"{i}.png")


def test_folder_with_splits(tmp_path):
    for split, numbers in (("train", (9, 6)), ("test", (2, 3))):
        for name, number in zip(("cat", "dog"), numbers):
            write_images(tmp_path / split / name, number)
    benchmark = folder_benchmark(str(tmp_path), 16)
    assert benchmark.class_names == ["cat", "dog"] and "test/" in benchmark.origin
    assert benchmark.train_counts.tolist() == [9, 6] and len(benchmark.test) == 5
    for augment in (False, True):
        pixels, labels = next(batches(benchmark.train, 4, CPU, augment=augment, workers=1))
        assert pixels.shape == (4, 3, 16, 16) and pixels.dtype == torch.uint8
        assert labels.tolist() == [0] * 4
        assert augment or (pixels[0, :, 0, 0].tolist() == [200, 30, 30])
    tail = folder_benchmark(str(tmp_path), 16, imbalance_factor=3)
    assert tail.train_counts.tolist() == [6, 2]

    (tmp_path / "train/cat/0.png").write_text("no image")
    with pytest.raises(InputError, match=r"train/cat/0\.png cannot be read as an image"):
        folder_benchmark(str(tmp_path), 16)
    whole = (tmp_path / "train/cat/1.png").read_bytes()
    (tmp_path / "train/cat/0.png").write_bytes(whole[:-30])  # its header is fine
    truncated = folder_benchmark(str(tmp_path), 16).train
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"train/cat/0\.png cannot be read") as error:
            list(batches(truncated, 4, CPU, workers=workers))
        assert "Traceback" not in str(error.value)
    write_images(tmp_path / "test/cow", 1)
    with pytest.raises(InputError, match="'cow' is in one of them only"):
        folder_benchmark(str(tmp_path), 16)


def test_folder_without_splits(tmp_path):
    write_images(tmp_path / "a", 10)
    write_images(tmp_path / "b", 2)
    benchmark = folder_benchmark(str(tmp_path), 16, test_fraction=0.3, seed=2)
    assert benchmark.train_counts.tolist() == [7, 1]
    assert torch.bincount(benchmark.test.labels).tolist() == [3, 1]
    assert not set(benchmark.train.paths) & set(benchmark.test.paths)
    again = folder_benchmark(str(tmp_path), 16, test_fraction=0.3, seed=2)
    assert again.test.paths == benchmark.test.paths
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="no valid file for the classes c"):
        folder_benchmark(str(tmp_path), 16)
    write_images(tmp_path / "train" / "a", 1)
    with pytest.raises(InputError, match="neither val/ nor test/"):
        folder_benchmark(str(tmp_path), 16)
    with pytest.raises(InputError, match="missing is no folder"):
        folder_benchmark(str(tmp_path / "missing"), 16)


def test_lists(tmp_path):
    write_images(tmp_path / "images/some where", 3)
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("some where/0.png 0\nsome where/1.png\t1\n\nsome where/2.png 0\n")
    test.write_text("some where/2.png 1\nsome where/1.png 0\n")
    arguments = (str(train), str(test), str(tmp_path / "images"), 16)
    benchmark = list_benchmark(*arguments)
    assert benchmark.train_counts.tolist() == [2, 1] and benchmark.test.labels.tolist() == [1, 0]
    assert benchmark.test.paths[0].endswith("images/some where/2.png")
    good = test.read_text()
    for line, message in (
        ("some where/2.png", r"test\.txt, line 3: expected"),
        ("2", r"test\.txt, line 3: expected"),
        ("some where/2.png x", r"test\.txt, line 3: expected"),
        ("some where/2.png -1", r"test\.txt, line 3: expected"),
        ("some where/9.png 1", r"test\.txt, line 3: .*9\.png does not exist"),
        ("some where/2.png 2", r"test split: label 2 is out of range"),
    ):
        test.write_text(good + line)
        with pytest.raises(InputError, match=message):
            list_benchmark(*arguments)
    test.write_text(good.splitlines()[0])
    with pytest.raises(InputError, match="test split: 1 classes have no image, such as '0'"):
        list_benchmark(*arguments)
    train.write_text("some where/0.png 0\nsome where/1.png 2\nsome where/2.png 2\n")
    with pytest.raises(InputError, match="training split: 1 classes have no image, such as '1'"):
        list_benchmark(*arguments)
    train.write_text("\n")
    with pytest.raises(InputError, match="lists no image"):
        list_benchmark(*arguments)
    with pytest.raises(InputError, match=r"none\.txt cannot be read"):
        list_benchmark(str(tmp_path / "none.txt"), *arguments[1:])


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
        ("balanced_softmax", {"tau": 2}, "does not fit balanced_softmax"),
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


# The command line


@pytest.fixture
def command_line(monkeypatch):
    path = os.path.join(REPOSITORY, "tools/train_classifier.py")
    spec = importlib.util.spec_from_file_location("train_classifier", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_classifier.py", *map(str, arguments)])
        tool.main()

    return call


TINY = (
    *("--classes", 4, "--largest-class", 24, "--imbalance-factor", 8, "--test-per-class", 3),
    *("--arch", "resnet8", "--epochs", 1, "--retrain-epochs", 1, "--batch-size", 16),
)


def test_command_line(command_line, tmp_path, capsys):
    command_line(*TINY, "--seeds", 0, 5, "--alpha", 1, "auto", "--output", tmp_path, "--jobs", 2)
    printed = capsys.readouterr().out
    assert "4 classes: 0 many (> 100 training images), 1 medium, 3 few (< 20)" in printed
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    rows = list(metrics["summary"])
    assert rows[0] == "linear" and rows[-1] == "causal_norm + LWS" and len(rows) == 11
    assert sorted((r["seed"], r["classifier"]) for r in metrics["runs"]) == [
        (seed, name) for seed in (0, 5) for name in ("causal_norm", "linear")
    ]
    for row, values in metrics["summary"].items():
        both = [r["accuracy"][row]["all"] for r in metrics["runs"] if row in r["accuracy"]]
        assert values["all"]["mean"] == pytest.approx(sum(both) / 2) and len(both) == 2
        assert values["many"]["mean"] is None
    assert (tmp_path / "table.md").read_text().strip() in printed
    assert len((tmp_path / "accuracy.csv").read_text().splitlines()) == 1 + 2 * 11
    assert {p.name for p in tmp_path.glob("*.pth")} == {
        f"model_{name}_seed{seed}.pth" for seed in (0, 5) for name in ("causal_norm", "linear")
    }


def test_command_line_on_files(command_line, tmp_path, capsys):
    for split in ("train", "val"):
        for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
            write_images(tmp_path / split / name, 6, colour)
    options = ("--image-size", 16, "--arch", "resnet8", "--epochs", 1, "--seeds", 0, "--jobs", 1)
    out = ("--output", tmp_path / "out")
    loss = ("--loss", "seesaw", "--loss-options", "p=0.5", "q=1", "--post", "tde", "tau_norm")
    command_line("--data", "folder", "--root", tmp_path, *options, *loss, *out)
    printed = capsys.readouterr().out
    assert "tested on val/" in printed and "causal_norm + TDE (α=1.5)" in printed
    assert "left out for causal_norm: tau_norm" in printed and "NCM" not in printed
    write_cifar(tmp_path, 10)
    command_line(
        *("--data", "cifar10", "--root", tmp_path, "--imbalance-factor", 3, "--stem-stride", 2),
        *("--classifier", "capsule", "--loss", "gol", "--post", "ncm", *options[2:], *out),
    )
    assert "capsule + NCM" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--imbalance-factor", 0.5], "--imbalance-factor must be at least 1"),
        (["--classifier", "quadratic"], "--classifier must be of linear"),
        (["--loss", "hinge"], "--loss must be one of"),
        (["--loss-options", "p"], "expected NAME=NUMBER, got 'p'"),
        (["--loss", "seesaw", "--loss-options", "z=1"], "seesaw has no option 'z'"),
        (["--loss", "sigmoid_focal", "--post", "tde"], "trains sigmoid scores"),
        (["--classifier", "linear", "--post", "tde"], "linear is none"),
        (["--arch", "resnet7"], "--arch must be one of"),
        (["--num-heads", 3], "NUM_HEADS"),
        (["--epochs", 0], "--epochs must be at least 1"),
        (["--alpha", -1], "--alpha must be at least 0"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--data", "cifar10"], "--data cifar10 needs --root"),
        (["--data", "cifar100", "--root", "nowhere"], "nowhere/cifar-100-python/train does not"),
        (["--data", "list", "--root", "."], "needs --train-list and --test-list"),
        (["--output", __file__], "cannot be made"),
    ],
)
def test_command_line_errors(command_line, arguments, message):
    with pytest.raises(SystemExit) as stop:
        command_line(*TINY, *arguments)
    assert str(stop.value).startswith("error: ") and message in str(stop.value)
