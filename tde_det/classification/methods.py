"""What can be done for the tail once a classifier is trained: adjustments, cRT and LWS.

    cRT   a new classifier on the frozen features, trained with class-balanced sampling
    LWS   scales f_i of the class weights, f_i · w_i, trained in the same way

Source of both: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
ICLR 2020. For adjustments see :mod:`tde_det.adjustments`.
"""

import copy
from types import SimpleNamespace
from typing import Dict, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activations import DISTRIBUTIONS
from ..adjustments import ADJUSTMENTS, Adjustment, Adjustments, Step, make_adjustment
from ..foreground_statistics import ForegroundStatistics
from .accuracy import Accuracy, accuracy_by_split
from .images import Benchmark, Images, batches
from .model import LINEAR, Classifier, ImageClassifier, build_classifier
from .settings import RunSettings
from .training import class_balanced, optimise

RETRAINING = {"crt": "cRT", "lws": "LWS"}
# Top-1 accuracy asks for the order of the classes alone, which these change in any kind of scores.
_FOR_ALL_SCORES = ("tau_norm", "ncm")


def chain_name(chain: Sequence[Step]) -> str:
    """A chain in the words that a user asks for it in."""
    return " + ".join(map(str, chain))


def find_conflict(chain: Sequence[Step], classifier: str, activation: str) -> Optional[str]:
    """Why a chain cannot follow a classifier (by name) and a loss (by activation), or None."""
    for name, options in chain:
        if name == "tde" and classifier == LINEAR:
            return "TDE needs a normalised classifier, which linear is not"
        if name == "tau_norm" and classifier != LINEAR:
            return f"{classifier} divides by the norms of its class weights already"
        if name not in _FOR_ALL_SCORES and activation not in DISTRIBUTIONS:
            return f"{name} needs softmax scores, but the loss trains {activation} scores"
        if name == "fracal":
            return f"{name} needs the boxes of a detection data set"
        if options.get("exempt"):
            return "exempt=true keeps the background's score, but images have no background"
    return None


def build_adjustments(
    chain: Sequence[Step],
    model: ImageClassifier,
    train_counts: Tensor,
    features: Optional[ForegroundStatistics],
) -> Adjustments:
    """Make the adjustments of a chain for a trained model.

    Args:
        chain: one without a conflict, see :func:`find_conflict`.
        train_counts: ``int64[C]``, training images of each class.
        features: of the training split, for NCM and prototypes.
    """
    data = SimpleNamespace(images=train_counts, instances=train_counts)
    if features is not None:
        data.center, data.class_means = features.mean(), features.centered_class_means()
    modules: Dict[str, Adjustment] = {}
    for name, options in chain:
        if name == "tde" and model.tde is not None:
            modules[name] = model.tde.with_options(**options)
        else:
            modules[name] = make_adjustment(Step(name, {"exempt": False, **options}), data)
    return Adjustments(modules)


@torch.no_grad()
def extract_features(
    model: ImageClassifier, images: Images, settings: RunSettings
) -> Tuple[Tensor, Tensor]:
    """Features ``Tensor[N, D]`` and labels ``int64[N]`` of a split, without augmentation."""
    model.eval()
    loader = batches(images, settings.retrain_schedule.batch_size, settings.machine)
    parts = [(model.features(x), labels) for x, labels in loader]
    return torch.cat([x for x, _ in parts]), torch.cat([labels for _, labels in parts])


def retrain(
    method: str, model: ImageClassifier, images: Images, settings: RunSettings, title: str
) -> Classifier:
    """Train a classifier on a model's frozen features; the model stays as it is.

    Both methods of ``RETRAINING`` minimise cross entropy, whatever the model was trained with: a
    loss for the long tail would balance a second time, and favour rare classes.
    """
    num_classes, feature_dim = model.classifier.weight.shape
    if method == "crt":
        classifier = build_classifier(model.name, feature_dim, num_classes, settings)
        classifier.to(settings.machine.device)
        parameters = list(classifier.parameters())
    else:
        classifier = copy.deepcopy(model.classifier)
        classifier.learn_class_scale()
        parameters = [p for key, p in classifier.named_parameters() if key == "class_scale"]
    model.eval()
    classifier.train()

    def loss_of(pixels: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            features = model.features(pixels)
        return F.cross_entropy(classifier(features), labels)

    sampler, schedule = class_balanced(images.labels), settings.retrain_schedule
    optimise(loss_of, parameters, schedule, images, sampler, settings.machine, title)
    return classifier.eval()


def predict(
    model: ImageClassifier, activation: str, benchmark: Benchmark, settings: RunSettings, title: str
) -> Tuple[Dict[str, Tensor], Dict[str, str], Dict[str, Classifier]]:
    """What a trained model predicts as it is, after each chain of adjustments, and retrained.

    Returns:
        classes of the test images, ``int64[N]`` by row; the reason for each chain left out; and
        the retrained classifiers.
    """
    name, counts, device = model.name, benchmark.train_counts, settings.machine.device
    x, _ = extract_features(model, benchmark.test, settings)
    skipped: Dict[str, str] = {}
    retrained: Dict[str, Classifier] = {}
    features = None
    steps = [step for chain in settings.adjustments for step in chain]
    if any("class_means" in ADJUSTMENTS[step.name].statistics for step in steps):
        features = ForegroundStatistics(len(counts), x.shape[1], device=device)
        features.add(*extract_features(model, benchmark.train, settings))
    with torch.no_grad():
        weight = model.classifier.class_weight()
        logits = {name: model.classifier(x)}
        for chain in settings.adjustments:
            row = chain_name(chain)
            conflict = find_conflict(chain, name, activation)
            if conflict:
                skipped[row] = conflict
                continue
            adjust = build_adjustments(chain, model, counts, features).to(device)
            logits[f"{name} + {row}"] = adjust(x, logits[name], weight)
    for method in settings.retrain:
        row = f" + {RETRAINING[method]}"
        retrained[method] = retrain(method, model, benchmark.train, settings, title + row)
        logits[name + row] = retrained[method](x).detach()
    return {row: y.argmax(dim=1).cpu() for row, y in logits.items()}, skipped, retrained


def evaluate(
    model: ImageClassifier, activation: str, benchmark: Benchmark, settings: RunSettings, title: str
) -> Tuple[Dict[str, Accuracy], Dict[str, str], Dict[str, Classifier]]:
    """Accuracies by row of what :func:`predict` gives, and the rest of that."""
    predicted, skipped, retrained = predict(model, activation, benchmark, settings, title)
    labels, counts = benchmark.test.labels, benchmark.train_counts
    rows = {row: accuracy_by_split(y, labels, counts) for row, y in predicted.items()}
    return rows, skipped, retrained
