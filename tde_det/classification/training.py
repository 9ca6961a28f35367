"""Training of an image classifier: its loss, its schedule, its samples."""

import inspect
import logging
import math
import time
from typing import Any, Callable, Dict, Iterable, NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler, Sampler, WeightedRandomSampler

from ..causal_norm import CausalNormClassifier
from ..errors import InputError
from ..losses import LOSSES, ClassCounts, ClassificationLoss
from .images import Images, Machine, batches
from .model import ImageClassifier

logger = logging.getLogger(__name__)


class Schedule(NamedTuple):
    """SGD with momentum 0.9: linear warm-up, then a cosine down to 0.

    Attributes:
        epochs: passes over the training split.
        batch_size: images of a step.
        lr: learning rate after warm-up.
        weight_decay: of all parameters that are trained.
        warmup_epochs: with a growing learning rate.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """The part of ``lr`` that a step, counted from 0, uses."""
        warmup = min(1.0, (step + 1) / max(1.0, self.warmup_epochs * steps_per_epoch))
        return warmup * 0.5 * (1 + math.cos(math.pi * step / (self.epochs * steps_per_epoch)))


def _options_of(loss: type) -> Dict[str, Any]:
    """The keyword arguments that a loss and its base classes take, with their defaults."""
    return {
        parameter.name: parameter.default
        for base in loss.__mro__
        if issubclass(base, ClassificationLoss)
        for parameter in inspect.signature(base.__init__).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
        and parameter.name not in ("background", "counts")
    }


def build_criterion(
    name: str, train_counts: Tensor, steps: int, options: Optional[Dict[str, Any]] = None
) -> ClassificationLoss:
    """A loss of :data:`tde_det.losses.LOSSES`, without background.

    Args:
        name: its name.
        train_counts: ``int64[C]``, training images of each class; each shows one object.
        steps: of the training. LDAM's ``drw_start`` is a part of them in [0, 1], 0.8 by default, as
            in MODEL.LONG_TAIL.LDAM.
        options: keyword arguments of the loss.

    Raises:
        InputError: there is no such loss or option, or a value is outside its range.
    """
    if name not in LOSSES:
        raise InputError(f"--loss must be one of {', '.join(LOSSES)}, got {name!r}")
    options, known = dict(options or {}), _options_of(LOSSES[name])
    for option, value in options.items():
        if option not in known:
            have = ", ".join(sorted(known)) or "none"
            raise InputError(f"--loss-options: {name} has no option {option!r}; it has: {have}")
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError(f"--loss-options: {option} must be a number, got {value!r}")
        whole = isinstance(known[option], int) and option != "drw_start"  # that one is a part
        if whole and value != int(value):
            raise InputError(f"--loss-options: {option} must be a whole number, got {value!r}")
    if name == "ldam":
        start = options.get("drw_start", 0.8)
        if not 0 <= start <= 1:
            raise InputError(
                f"--loss-options: drw_start is a part of the training in [0, 1], got {start}"
            )
        options["drw_start"] = int(start * steps) if start < 1 else -1
    counts = ClassCounts(train_counts, train_counts, int(train_counts.sum()))
    try:
        return LOSSES[name](len(train_counts), background=False, counts=counts, **options)
    except TypeError as error:  # an option that the loss fixes, such as balanced softmax's τ
        raise InputError(f"--loss-options: {name} fixes one of {', '.join(options)}") from error


def class_balanced(labels: Tensor) -> Sampler:
    """As many samples as there are images: a random class, then a random image of it."""
    weights = 1.0 / torch.bincount(labels)[labels]
    return WeightedRandomSampler(weights.tolist(), len(labels))


def optimise(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
    schedule: Schedule,
    images: Images,
    sampler: Sampler,
    machine: Machine,
    name: str,
) -> None:
    """Minimise ``loss_of(images, labels)`` over a split.

    Args:
        loss_of: from ``uint8[N, 3, H, W]`` and ``int64[N]`` to a scalar.
        parameters: those to train.
        schedule: how.
        images: the split.
        sampler: the order of an epoch.
        machine: what computes.
        name: for the log and messages.

    Raises:
        InputError: the loss became NaN or infinite.
    """
    optimizer = torch.optim.SGD(
        parameters, schedule.lr, momentum=0.9, weight_decay=schedule.weight_decay
    )
    steps = math.ceil(len(images) / schedule.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: schedule.factor(i, steps))
    reported = time.perf_counter()
    for epoch in range(1, schedule.epochs + 1):
        total, seen = torch.zeros((), device=machine.device), 0
        for pixels, labels in batches(
            images, schedule.batch_size, machine, augment=True, sampler=sampler
        ):
            if len(labels) == 1 < len(images):
                continue  # a last batch of one, in which batch norm may find no variance
            loss = loss_of(pixels, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.detach() * len(labels)
            seen += len(labels)
        mean = float(total) / seen
        if not math.isfinite(mean):
            raise InputError(f"{name}: the loss is {mean} in epoch {epoch}: lower --lr")
        if time.perf_counter() - reported > 10 or epoch == schedule.epochs:
            reported = time.perf_counter()
            logger.info("%s: epoch %d of %d, loss %.3f", name, epoch, schedule.epochs, mean)


def train(
    model: ImageClassifier,
    criterion: ClassificationLoss,
    images: Images,
    schedule: Schedule,
    machine: Machine,
    name: str = "training",
) -> None:
    """Train a model with instance-balanced sampling; leaves it in evaluation mode.

    A normalised classifier's feature mean is that of all features, there being no background.
    """
    classifier = model.classifier

    def loss_of(pixels: Tensor, labels: Tensor) -> Tensor:
        features = model.features(pixels)
        if isinstance(classifier, CausalNormClassifier):
            classifier.update_mean(features, torch.ones_like(labels, dtype=torch.bool))
        return criterion(classifier(features), labels)

    model.train()
    sampler: Sampler = RandomSampler(range(len(images)))
    optimise(loss_of, model.parameters(), schedule, images, sampler, machine, name)
    model.eval()
