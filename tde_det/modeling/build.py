"""From ``MODEL.TDE``, ``MODEL.LONG_TAIL`` and ``MODEL.ADJUSTMENTS`` to a classifier, a loss and
adjustments. Here the pure-torch parts' ``ValueError`` becomes an ``InputError`` naming the key."""

import contextlib
import logging
from typing import Any, Collection, Dict, Iterator, List, Mapping, NamedTuple, Optional, Union

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import Tensor

from ..adjustments import ADJUSTMENTS, TDE, Adjustment, Step, make_adjustment, parse_chains
from ..adjustments.fracal import box_counting_dimensions
from ..class_counts import ClassCounts
from ..classifiers import KINDS
from ..data.categories import categories_of, frequency_of
from ..data.objects import box_centers, class_counts
from ..errors import InputError
from ..foreground_statistics import ForegroundStatistics
from ..losses import LOSSES, ClassificationLoss

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def errors_name(key: str) -> Iterator[None]:
    """Turn a ``ValueError`` into an :class:`InputError` that names a config key."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{key}: {error}") from error


def check_choice(key: str, value: str, known: Collection[str]) -> None:
    """Raise :class:`InputError` for a value of a config key that is none of those known."""
    if value not in known:
        raise InputError(f"{key} must be one of {', '.join(known)}, got {value!r}")


class Unmeasured(NamedTuple):
    """Statistics, NaN, in place of those that a checkpoint or the end of a training brings."""

    center: Tensor
    class_means: Tensor
    images: Tensor

    @classmethod
    def of(cls, num_classes: int, feature_dim: int) -> "Unmeasured":
        sizes = ((feature_dim,), (num_classes, feature_dim), (num_classes,))
        return cls(*(torch.full(size, torch.nan) for size in sizes))


class TrainingSet:
    """The statistics of DATASETS.TRAIN that adjustments are made of, measured when asked for.

    Args:
        features: of a pass over the images, if there was one.
    """

    def __init__(self, cfg: CfgNode, features: Optional[ForegroundStatistics] = None):
        self._arguments = cfg.DATASETS.TRAIN, cfg.MODEL.ROI_HEADS.NUM_CLASSES
        self._weights = cfg.MODEL.WEIGHTS or "the model"
        self._features = features

    def counts(self) -> ClassCounts:
        return class_counts(*self._arguments)

    def frequencies(self) -> List[str]:
        """``"r"``, ``"c"`` or ``"f"`` of each class, as AP_r, AP_c and AP_f group them."""
        names, num_classes = self._arguments
        given = categories_of(names[0]) if names and names[0] in DatasetCatalog.list() else []
        if len(given) == num_classes:
            return [category["frequency"] for category in given]
        return [frequency_of(count) for count in self.images.tolist()]

    @property
    def images(self) -> Tensor:
        return self.counts().images

    @property
    def instances(self) -> Tensor:
        return self.counts().instances

    @property
    def dimensions(self) -> Tensor:
        return box_counting_dimensions(*box_centers(*self._arguments), self._arguments[1])

    @property
    def center(self) -> Tensor:
        return self._needed_features().mean().float()

    @property
    def class_means(self) -> Tensor:
        return self._needed_features().centered_class_means().float()

    def _needed_features(self) -> ForegroundStatistics:
        if self._features is None:
            raise InputError(
                f"{self._weights} has no class means that can be used: tools/calibrate.py --adjust "
                "prototypes measures and saves them, for ncm too"
            )
        return self._features


def _loss_options(cfg: CfgNode, name: str) -> Dict[str, Any]:
    """The loss's own node as keyword arguments."""
    if name == "federated":  # Detectron2 has keys for it
        node = cfg.MODEL.ROI_BOX_HEAD
        return {"num_sampled": node.FED_LOSS_NUM_CLASSES, "power": node.FED_LOSS_FREQ_WEIGHT_POWER}
    node = cfg.MODEL.LONG_TAIL.get(name.upper(), {})
    options = {key.lower(): value for key, value in node.items()}
    if name == "ldam":
        start = options["drw_start"]
        if not 0 <= start <= 1:
            raise ValueError(f"DRW_START is a part of SOLVER.MAX_ITER in [0, 1], got {start}")
        options["drw_start"] = int(start * cfg.SOLVER.MAX_ITER) if start < 1 else -1
    return options


def build_loss(cfg: CfgNode) -> Optional[ClassificationLoss]:
    """The loss that MODEL.LONG_TAIL.LOSS names; None for cross entropy, which Detectron2 has.

    A model whose training set cannot be read has a loss without class counts: it can infer.
    """
    node, box_head, name = cfg.MODEL.LONG_TAIL, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.LONG_TAIL.LOSS
    check_choice("MODEL.LONG_TAIL.LOSS", name, LOSSES)
    check_choice("MODEL.LONG_TAIL.COUNT", node.COUNT, ("instances", "images"))
    if not 0 < node.PRIOR_PROB < 1:
        raise InputError(f"MODEL.LONG_TAIL.PRIOR_PROB must be in (0, 1), got {node.PRIOR_PROB}")
    if name == "cross_entropy":
        return None
    if box_head.USE_SIGMOID_CE or box_head.USE_FED_LOSS:
        raise InputError(
            f"MODEL.LONG_TAIL.LOSS is {name!r}, and MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE or "
            "USE_FED_LOSS asks for a loss of Detectron2: set these to False, or LOSS "
            '"cross_entropy"'
        )
    counts = None
    if LOSSES[name].needs_counts:
        try:
            counts = TrainingSet(cfg).counts()
        except InputError as error:
            logger.warning("This model can infer, but not train: %s", error)
    if counts is not None and node.COUNT == "images":
        counts = counts._replace(instances=counts.images)
    key = f"LONG_TAIL.{name.upper()}" if name != "federated" else "ROI_BOX_HEAD.FED_LOSS"
    with errors_name(f"MODEL.{key}"):
        options = _loss_options(cfg, name)
        return LOSSES[name](cfg.MODEL.ROI_HEADS.NUM_CLASSES, counts=counts, **options)


def needs_class_means(name: str) -> bool:
    """Whether an adjustment is made of a pass over the training images."""
    return "class_means" in ADJUSTMENTS[name].statistics


def create_adjustment(
    step: Step,
    data: Union[TrainingSet, Unmeasured],
    known: Optional[Mapping[str, Tensor]] = None,
) -> Adjustment:
    """Make a step's adjustment for a training set; ``known`` as in :func:`make_adjustment`.

    Raises:
        InputError: an option is outside its range, or the training set cannot be read.
    """
    with errors_name(f"adjustment {str(step)!r}"):
        return make_adjustment(step, data, known)


def listed_adjustments(cfg: CfgNode, feature_dim: int) -> Dict[str, Adjustment]:
    """What MODEL.ADJUSTMENTS lists, by name.

    What needs class means has :class:`Unmeasured` statistics.

    Raises:
        InputError: see :func:`create_adjustment`, or a step is no adjustment.
    """
    if not cfg.MODEL.ADJUSTMENTS:
        return {}
    with errors_name("MODEL.ADJUSTMENTS"):
        chain, *others = parse_chains(" + ".join(map(str, cfg.MODEL.ADJUSTMENTS)))
        if others:
            raise ValueError(f"{cfg.MODEL.ADJUSTMENTS} has several values, as for tools/sweep.py")
        if "tde" in [step.name for step in chain]:
            raise ValueError("tde comes first in any case, with the options of MODEL.TDE")
    data, unmeasured = TrainingSet(cfg), Unmeasured.of(cfg.MODEL.ROI_HEADS.NUM_CLASSES, feature_dim)
    return {
        step.name: create_adjustment(step, unmeasured if needs_class_means(step.name) else data)
        for step in chain
    }


def build_adjustments(cfg: CfgNode, feature_dim: int) -> Dict[str, Adjustment]:
    """TDE, if the classifier is a normalised one, and what MODEL.ADJUSTMENTS lists.

    Raises:
        InputError: see :func:`listed_adjustments`.
    """
    node = cfg.MODEL.TDE
    adjustments: Dict[str, Adjustment] = {}
    if node.CLASSIFIER != "linear":
        options = {"alpha": node.ALPHA, "exempt": node.BACKGROUND_EXEMPT}
        with errors_name("MODEL.TDE"):
            adjustments["tde"] = TDE(feature_dim, node.NUM_HEADS, node.MU, **options)
    return adjustments | listed_adjustments(cfg, feature_dim)


def predictor_arguments(cfg: CfgNode, input_shape: Any) -> Dict[str, Any]:
    """What a config says of a box predictor, beside Detectron2's own keys.

    Raises:
        InputError: a value outside its range.
    """
    node = cfg.MODEL.TDE
    check_choice("MODEL.TDE.CLASSIFIER", node.CLASSIFIER, (*KINDS, "linear"))
    classifier = {"kind": node.CLASSIFIER, "num_heads": node.NUM_HEADS}
    classifier.update(tau=node.TAU, gamma=node.GAMMA)
    loss = build_loss(cfg)
    feature_dim = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
    return {
        "classifier": None if node.CLASSIFIER == "linear" else classifier,
        "classification_loss": loss,
        "prior_prob": None if loss is None else cfg.MODEL.LONG_TAIL.PRIOR_PROB,
        "adjustments": build_adjustments(cfg, feature_dim),
        "takes_carried": not cfg.MODEL.ADJUSTMENTS,
    }
