"""Image classification's data: the long tail, CIFAR, folders, lists, batches."""

import pickle
from os.path import exists

import numpy as np
import pytest
import torch
from PIL import Image

from tde_det.classification.cutout_images import cutout_benchmark
from tde_det.classification.images import (
    Benchmark,
    ImageTensors,
    batches,
    random_crop_flip,
)
from tde_det.classification.long_tail import long_tail_counts, long_tail_subset
from tde_det.classification.settings import Machine
from tde_det.classification.sources import cifar_benchmark, folder_benchmark, list_benchmark
from tde_det.errors import InputError

CPU = Machine()


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
    with pytest.raises(InputError, match="classes must be in"):
        cutout_benchmark(1)
    with pytest.raises(InputError, match="image_size must be at least 16"):
        cutout_benchmark(image_size=8)


def test_cutouts_of_the_test_split_show_every_drawing(monkeypatch):
    module = "tde_det.classification.cutout_images"
    cutouts = [[np.full((64, 64, 4), (i, d, 0, 255), np.uint8) for d in range(4)] for i in range(9)]
    names = list("abcdefghi")
    shown = []

    def draw(rng, cutout, covers, size):
        shown.append((names[cutout[0, 0, 0]], int(cutout[0, 0, 1])))
        labels = {names[cover[0, 0, 0]] for cover in covers}
        assert len(covers) == 4 * 4 and len(labels) == 4  # every drawing of the other classes
        assert shown[-1][0] not in labels
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(f"{module}.load_cutouts", lambda: (names, cutouts))
    monkeypatch.setattr(f"{module}.draw_cutout", draw)
    benchmark = cutout_benchmark(5, 40, 40, 8, 16, seed=0)
    labels = benchmark.train.labels.tolist() + benchmark.test.labels.tolist()
    assert [benchmark.class_names[i] for i in labels] == [name for name, _ in shown]
    train, test = shown[: len(benchmark.train)], shown[len(benchmark.train) :]
    for name in benchmark.class_names:
        assert sorted(d for label, d in test if label == name) == [0, 0, 1, 1, 2, 2, 3, 3]
    counts = np.bincount([d for label, d in train if label == benchmark.class_names[0]])
    assert len(counts) == 4 and counts.min() > 0 and counts.min() < counts.max()  # 40 at random


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


@pytest.fixture
def _any_checksum(monkeypatch):
    """torchvision knows the checksums of the real files, which random ones do not have."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, *_: exists(path))


@pytest.mark.usefixtures("_any_checksum")
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(tmp_path, classes):
    folder, data, labels, test = write_cifar(tmp_path / "made", classes)
    kind = f"cifar{classes}"
    full = cifar_benchmark(kind, str(tmp_path / "made"), 1, None, 0)
    assert np.array_equal(full.train.images.numpy().reshape(-1, 3072), data)
    assert full.train.labels.tolist() == labels and full.class_names[1] == "class1"
    assert np.array_equal(full.test.images.numpy().reshape(-1, 3072), test[0])
    tail = cifar_benchmark(kind, str(folder), 3, None, 1)  # the folder itself will do
    assert tail.train_counts.tolist() == long_tail_counts(classes, 6, 3)
    assert len(tail.test) == classes


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_files_that_are_missing_or_damaged(tmp_path, classes):
    message = r"is missing or damaged: root must be the unpacked cifar-10"
    with pytest.raises(InputError, match=message):
        cifar_benchmark(f"cifar{classes}", str(tmp_path), 100, None, 0)
    write_cifar(tmp_path, classes)  # with other checksums than the real files
    with pytest.raises(InputError, match=message):
        cifar_benchmark(f"cifar{classes}", str(tmp_path), 1, None, 0)


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
    for sampler in (None, range(9)):
        pixels, labels = next(batches(benchmark.train, 4, CPU._replace(workers=1), sampler))
        assert pixels.shape == (4, 3, 16, 16) and pixels.dtype == torch.uint8
        assert labels.tolist() == [0] * 4
        assert sampler or (pixels[0, :, 0, 0].tolist() == [200, 30, 30])
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
            list(batches(truncated, 4, CPU._replace(workers=workers)))
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
        ("some where/9.png 1", r"9\.png cannot be read as an image: .*No such file"),
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
