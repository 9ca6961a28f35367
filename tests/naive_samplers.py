"""What class samplers are compared with, and how: probabilities and draws by the definition."""

import itertools

import numpy as np
import torch

from tde_det.data.objects import Objects


def long_tailed(seed, num_images=60, num_classes=9):
    """The classes of images, some repeated, some images without any, one class missing."""
    rng = np.random.default_rng(seed)
    p = 0.6 ** np.arange(num_classes)
    p[3] = 0
    n = rng.integers(0, 5, num_images)
    return [rng.choice(num_classes, k, p=p / p.sum()).tolist() for k in n]


def naive_probabilities(classes, power):
    """Of every image, by the definition."""
    present = sorted(set().union(*classes))
    images_of = {c: [i for i, labels in enumerate(classes) if c in labels] for c in present}
    total = sum(len(images_of[c]) ** power for c in present)
    p = np.zeros(len(classes))
    for c in present:
        for i in images_of[c]:
            p[i] += len(images_of[c]) ** power / total / len(images_of[c])
    return p


def naive_draws(classes, power, seed, blocks):
    """One draw at a time from the same random numbers; also if it would be class-balanced at T."""
    generator = torch.Generator().manual_seed(seed)
    present = sorted(set().union(*classes))
    images_of = [[i for i, labels in enumerate(classes) if c in labels] for c in present]
    weights = np.cumsum([len(images) ** power for images in images_of])
    for _ in range(blocks):
        for u, v, w in torch.rand(3, 4096, generator=generator, dtype=torch.float64).T.tolist():
            images = images_of[next(i for i, s in enumerate(weights) if u * weights[-1] < s)]
            yield images[int(v * len(images))], int(v * len(classes)), w


def objects(classes):
    """What samplers take."""
    image_index = np.repeat(np.arange(len(classes)), [len(of_image) for of_image in classes])
    flat = np.array(sum(map(list, classes), []), np.int64)
    return Objects(image_index, flat, np.zeros(len(flat), bool), len(classes))


def take(sampler, n):
    return list(itertools.islice(sampler, n))


def assert_frequencies(draws, p):
    counts = np.bincount(draws, minlength=len(p))
    assert (counts[p == 0] == 0).all()
    expected = (p * len(draws))[p > 0]
    chi2 = ((counts[p > 0] - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)
