"""What can be done for the tail once a classifier is trained: TDE, τ-norm, NCM, cRT, LWS.

    TDE      the mean direction's effect removed from a normalised classifier, for each α
    τ-norm   w_i / ‖w_i‖^τ of a linear classifier
    NCM      the class of the nearest mean feature
    cRT      a new classifier on the frozen features, trained with class-balanced sampling
    LWS      f_i · w_i, the f_i trained so

Sources: Tang et al., NeurIPS 2020; Kang et al., ICLR 2020 (all but TDE).
"""

import copy
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..causal_norm import CausalNormClassifier
from ..errors import InputError
from ..losses import DISTRIBUTIONS
from ..post_hoc import ForegroundStatistics, ncm, tau_norm
from ..scaled_linear import ScaledLinear
from .accuracy import accuracy_by_split
from .images import Benchmark, Images, Machine, batches
from .model import LINEAR, ImageClassifier
from .training import Schedule, class_balanced, optimise

METHODS = ("tde", "tau_norm", "ncm", "crt", "lws")
AUTO = "auto"


class MethodSettings(NamedTuple):
    """Which methods, and their strengths.

    Attributes:
        methods: of ``METHODS``.
        alphas: TDE's α, each a number or ``AUTO``; all come from one training.
        taus: τ of τ-normalisation.
        retraining: the schedule of cRT and LWS.
    """

    methods: Sequence[str]
    alphas: Sequence[Union[float, str]]
    taus: Sequence[float]
    retraining: Schedule


def why_not(method: str, classifier: str, activation: str) -> Optional[str]:
    """Why a method means nothing for a classifier (by name) and a loss; None if it fits."""
    if method == "tde" and classifier == LINEAR:
        return "TDE needs a normalised classifier, linear is none"
    if method == "tde" and activation not in DISTRIBUTIONS:
        return f"TDE needs a softmax over the classes, the loss trains {activation} scores"
    if method == "tau_norm" and classifier != LINEAR:
        return f"{classifier} divides by the norms of its class weights already"
    return None


def check_methods(methods: Sequence[str], classifiers: Sequence[str], activation: str) -> None:
    """Refuse a method that does not exist, or fits none of the classifiers.

    Raises:
        InputError: naming it.
    """
    for method in methods:
        if method not in METHODS:
            raise InputError(f"--post must be of {', '.join(METHODS)}, got {method!r}")
        reasons = [why_not(method, classifier, activation) for classifier in classifiers]
        if all(reasons):
            raise InputError(f"--post {method} does not fit: {'; '.join(map(str, reasons))}")


@torch.no_grad()
def extract_features(
    model: ImageClassifier, images: Images, batch_size: int, machine: Machine
) -> Tuple[Tensor, Tensor]:
    """Features ``Tensor[N, D]`` and labels of a split, without augmentation."""
    model.eval()
    parts = [
        (model.features(pixels), labels) for pixels, labels in batches(images, batch_size, machine)
    ]
    return torch.cat([f for f, _ in parts]), torch.cat([labels for _, labels in parts])


def retrain(
    method: str,
    model: ImageClassifier,
    images: Images,
    schedule: Schedule,
    machine: Machine,
    name: str = "",
) -> nn.Module:
    """cRT or LWS: train a copy of the classifier with class-balanced sampling, the rest frozen.

    Both minimise cross entropy, whatever the model was trained with: balanced twice, a loss for
    the long tail would favour rare classes.

    Returns:
        the classifier in evaluation mode.
    """
    classifier: Any = copy.deepcopy(model.classifier)
    if isinstance(classifier, nn.Linear) and method == "lws":
        classifier = ScaledLinear(classifier, classifier.out_features)
    elif isinstance(classifier, CausalNormClassifier) and method == "lws":
        classifier.learn_class_scale()
    else:
        classifier.reset_parameters()
    parameters = dict(classifier.named_parameters())
    trained = [parameters["class_scale"]] if method == "lws" else list(parameters.values())
    model.eval()
    classifier.train()

    def loss_of(pixels: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            features = model.features(pixels)
        return F.cross_entropy(classifier(features), labels)

    sampler = class_balanced(images.labels)
    optimise(loss_of, trained, schedule, images, sampler, machine, name)
    return classifier.eval()


@torch.no_grad()
def tde(classifier: CausalNormClassifier, features: Tensor, alpha: Union[float, str]) -> Tensor:
    """TDE logits ``Tensor[N, C]`` for one α; leaves the classifier factual (α = 0)."""
    classifier.auto_alpha = alpha == AUTO
    classifier.alpha = 1.0 if alpha == AUTO else float(alpha)
    try:
        return classifier(features)
    finally:
        classifier.alpha, classifier.auto_alpha = 0.0, False


def evaluate(
    classifier_name: str,
    model: ImageClassifier,
    activation: str,
    benchmark: Benchmark,
    settings: MethodSettings,
    machine: Machine,
    name: str = "",
) -> Tuple[Dict[str, Dict[str, float]], Dict[str, str], Dict[str, nn.Module]]:
    """Accuracies of a trained model as it is, and with every method that fits it.

    Returns:
        accuracies (see :func:`accuracy_by_split`) by ``"classifier"`` and ``"classifier +
        method"``; reasons for the methods left out; and the retrained classifiers.
    """
    classifier, counts = model.classifier, benchmark.train_counts
    batch_size = settings.retraining.batch_size
    features, labels = extract_features(model, benchmark.test, batch_size, machine)
    with torch.no_grad():
        logits = {"": classifier(features)}
    skipped: Dict[str, str] = {}
    retrained: Dict[str, nn.Module] = {}
    for method in settings.methods:
        reason = why_not(method, classifier_name, activation)
        if reason:
            skipped[method] = reason
        elif method == "tde" and isinstance(classifier, CausalNormClassifier):
            for alpha in settings.alphas:
                if alpha == AUTO and float(classifier.foreground_cosine[0]) <= 0:
                    skipped["tde (α=auto)"] = "training has measured no positive mean cosine"
                    continue
                logits[f" + TDE (α={alpha})"] = tde(classifier, features, alpha)
        elif method == "tau_norm" and isinstance(classifier, nn.Linear):
            for tau in settings.taus:
                calibration = tau_norm(classifier.weight, classifier.bias, tau, "none")
                logits[f" + τ-norm (τ={tau})"] = calibration(features, logits[""])
        elif method == "ncm":
            statistics = ForegroundStatistics(len(counts), features.shape[1], device=machine.device)
            statistics.add(*extract_features(model, benchmark.train, batch_size, machine))
            logits[" + NCM"] = ncm(statistics, background="none")(features, logits[""])
        else:
            title = {"crt": "cRT", "lws": "LWS"}[method]
            retrained[method] = retrain(
                method,
                model,
                benchmark.train,
                settings.retraining,
                machine,
                f"{name}, {title}",
            )
            with torch.no_grad():
                logits[f" + {title}"] = retrained[method](features)
    rows = {
        classifier_name + suffix: accuracy_by_split(y.argmax(dim=1).cpu(), labels.cpu(), counts)
        for suffix, y in logits.items()
    }
    return rows, skipped, retrained
