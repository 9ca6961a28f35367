"""Whether the mean direction is that of one class, and the warning of it."""

import logging
import math

import pytest
import torch
from detectron2.data import MetadataCatalog

from tde_det.adjustments import TDE, Adjustments
from tde_det.adjustments.dominance import DOMINANT, class_alignment
from tde_det.classifiers import CausalNormClassifier
from tde_det.modeling.dominant_class import warn_of_dominant_class

C, D, K = 4, 6, 2
NAMES = ["coat", "hat", "shoe", "tie"]


def naive_alignment(weight, mean, num_heads):
    found = []
    for w in weight.tolist():
        size, total = len(w) // num_heads, 0.0
        for k in range(num_heads):
            a, b = w[k * size : (k + 1) * size], mean.tolist()[k * size : (k + 1) * size]
            norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
            total += sum(x * y for x, y in zip(a, b)) / norms
        found.append(total / num_heads)
    return found


@pytest.mark.parametrize("num_heads", [1, 2, 3])
def test_alignment_is_the_mean_cosine_of_the_heads(num_heads):
    generator = torch.Generator().manual_seed(0)
    weight, mean = torch.randn(C + 1, D, generator=generator).double(), torch.rand(D).double()
    actual = class_alignment(weight, mean, num_heads)
    assert actual.tolist() == pytest.approx(naive_alignment(weight, mean, num_heads), abs=1e-12)
    assert class_alignment(mean[None], 3 * mean, num_heads).item() == pytest.approx(1)
    # Half precision is enough for weights, not for sums.
    assert class_alignment(weight.half(), mean.half(), num_heads).dtype == torch.float32


class Predictor:
    """A box predictor whose weights are orthogonal, with a given mean feature."""

    num_classes = C

    def __init__(self, mean, alpha=1.0):
        self.cls_score = CausalNormClassifier(2 * (C + 1), C, num_heads=K)
        with torch.no_grad():
            self.cls_score.weight.copy_(torch.eye(C + 1).repeat(1, K))
        tde = TDE(2 * (C + 1), K, alpha=alpha)
        tde.feature_mean.copy_(torch.tensor(mean).repeat(K))
        self.adjustments = Adjustments({"tde": tde})


def is_dominated(*predictors):
    MetadataCatalog.get("wardrobe").set(thing_classes=NAMES)
    return warn_of_dominant_class(predictors, [p.adjustments for p in predictors], "wardrobe")


# Of each class and the background. The last one has the largest cosine, but is no class.
ONE, ALL, BACKGROUND = [0.1, 2.0, 0.1, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0, 0.5], [0.0] * 4 + [1.0]


def test_the_warning_names_the_class_and_a_way_out(caplog):
    with caplog.at_level(logging.WARNING):
        assert is_dominated(Predictor(ONE))
    cosine = 2 / math.sqrt(0.01 + 4 + 0.01 + 1)
    assert f"class hat (cosine {cosine:.2f}" in caplog.text and cosine > DOMINANT
    assert "the next class has 0.04" in caplog.text and "sweep.py --recommend" in caplog.text


@pytest.mark.parametrize(
    "predictor",
    [Predictor(ALL), Predictor(BACKGROUND), Predictor([0.0] * 5), Predictor(ONE, alpha=0.0)],
    ids=["all classes", "background", "untrained", "TDE off"],
)
def test_no_warning(predictor, caplog):
    assert not is_dominated(predictor) and not caplog.text


@pytest.mark.parametrize(
    "first, second, warns",
    [(0.41, 0.02, True), (0.53, 0.22, True), (0.39, 0.23, False), (0.27, 0.15, False)],
)
def test_what_counts_is_how_far_a_class_stands_out(first, second, warns):
    """Cosines where TDE lost AP, and where it did not: docs/when_tde_hurts.md."""
    rest = math.sqrt(1 - first**2 - second**2)
    assert is_dominated(Predictor([0.0, second, first, 0.0, rest])) == warns


def test_the_stages_of_a_cascade_count_together():
    assert is_dominated(Predictor(ONE), Predictor(ONE), Predictor(ALL))
    assert not is_dominated(Predictor(ONE), *[Predictor(BACKGROUND)] * 3)
    linear = Predictor(ONE)
    linear.adjustments = Adjustments()
    assert not is_dominated(linear)
