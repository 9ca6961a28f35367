"""Training of an image classifier: loss and optimisation."""

import logging
import math
import time
from typing import Any, Callable, Dict, Iterable, Optional

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler, Sampler, WeightedRandomSampler

from ..class_counts import ClassCounts
from ..errors import InputError
from ..losses import LOSSES, ClassificationLoss
from .images import Images, batches
from .model import ImageClassifier
from .settings import Machine, RunSettings, Schedule

logger = logging.getLogger(__name__)


def build_criterion(
    name: str, train_counts: Tensor, steps: int, options: Optional[Dict[str, Any]] = None
) -> ClassificationLoss:
    """A loss of :data:`tde_det.losses.LOSSES`, without background.

    Args:
        train_counts: ``int64[C]``, training images of each class; each shows one object.
        steps: of the training. LDAM's ``drw_start`` is a fraction of them in [0, 1], 0.8 by default
            as in MODEL.LONG_TAIL.LDAM.
        options: keyword arguments of the loss.

    Raises:
        InputError: there is no such option, or a value is outside its range.
    """
    options = dict(options or {})
    if options.get("num_sampled", 1) % 1 != 0:
        raise InputError(f"num_sampled must be a whole number, got {options['num_sampled']}")
    if name == "ldam":
        start = options.get("drw_start", 0.8)
        if not 0 <= start <= 1:
            raise InputError(f"drw_start is a fraction of the training in [0, 1], got {start}")
        options["drw_start"] = int(start * steps) if start < 1 else -1
    counts = ClassCounts(train_counts, train_counts, int(train_counts.sum()))
    try:
        return LOSSES[name](len(train_counts), background=False, counts=counts, **options)
    except (TypeError, ValueError) as error:  # an unknown option, or a value out of range
        place = LOSSES[name].__module__
        raise InputError(f"loss {name}: {error}. Its options are in {place}") from error


def class_balanced(labels: Tensor) -> Sampler:
    """As many samples as there are images: a random class, then a random image of it."""
    return WeightedRandomSampler((1.0 / torch.bincount(labels)[labels]).tolist(), len(labels))


def optimise(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
    schedule: Schedule,
    images: Images,
    sampler: Sampler,
    machine: Machine,
    title: str,
) -> None:
    """Minimise ``loss_of(pixels, labels)``, a scalar of a batch, over a split.

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
        for pixels, labels in batches(images, schedule.batch_size, machine, sampler):
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
            raise InputError(f"{title}: the loss is {mean} in epoch {epoch}: lower lr")
        if time.perf_counter() - reported > 10 or epoch == schedule.epochs:
            reported = time.perf_counter()
            logger.info("%s: epoch %d of %d, loss %.3f", title, epoch, schedule.epochs, mean)


def train(
    model: ImageClassifier, criterion: nn.Module, images: Images, settings: RunSettings, title: str
) -> None:
    """Train a model with instance-balanced sampling; leaves it in evaluation mode."""

    def loss_of(pixels: Tensor, labels: Tensor) -> Tensor:
        features = model.features(pixels)
        if model.tde is not None:
            model.tde.update_mean(features, labels >= 0)  # of all images: none is background
        return criterion(model.classifier(features), labels)

    model.train()
    sampler = RandomSampler(range(len(images)))
    parameters = model.parameters()
    optimise(loss_of, parameters, settings.schedule, images, sampler, settings.machine, title)
    model.eval()
