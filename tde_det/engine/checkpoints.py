"""Load checkpoints, and refuse those that do not fit what they are to be used for."""

import contextlib
import logging
import pickle
import struct
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

from detectron2.config import CfgNode
from torch import nn

from ..errors import InputError
from ..modeling import box_predictors, build_detector
from ..modeling.build import errors_name
from ..modeling.timm_backbone import TimmBackbone
from .download import cached_file, fetch, is_address
from .last_checkpoint import ResumingCheckpointer
from .lazy_config import errors_name_paths
from .value_checks import errors_name_section

logger = logging.getLogger(__name__)

# What torch.load and load_state_dict raise for files of other kinds.
_BROKEN = (
    *(pickle.UnpicklingError, struct.error, EOFError, OSError, KeyError, IndexError),
    *(AttributeError, TypeError, RuntimeError, AssertionError),
)


class Policy(NamedTuple):
    """How far a checkpoint may differ from the model. Keys are recognised by parts of them.

    Attributes:
        may_lack: keys that may be missing or have another shape; None: all of them.
        shapes: whether keys may have another shape at all.
        refused: keys that the model must know, since scores would be others without.
        same_scores: whether both must make scores of the same kind (softmax, sigmoid, …).
        keep_bias: refuse a linear classifier, whose bias a normalised one would drop.
    """

    may_lack: Optional[Tuple[str, ...]] = None
    shapes: bool = True
    refused: Tuple[str, ...] = ()
    same_scores: bool = False
    keep_bias: bool = False


_NEW = (".adjustments.", ".classification_loss.", ".class_scale")  # in decoupled training
POLICIES = {
    "train": Policy(),
    "inference": Policy(
        shapes=False,
        refused=(".class_scale", ".adjustments.", ".calibration."),
        same_scores=True,
    ),
    "calibrate": Policy(
        may_lack=(".adjustments.",), shapes=False, refused=("",), same_scores=True, keep_bias=True
    ),
    "crt": Policy(may_lack=(*_NEW, ".cls_score.")),
    "lws": Policy(may_lack=_NEW, same_scores=True, keep_bias=True),
}
# Keys of earlier versions, and what later ones call them.
_RENAMED = {
    f".cls_score.{name}": f".adjustments.tde.{name}"
    for name in ("feature_mean", "foreground_cosine")
}


class Checkpointer(ResumingCheckpointer):
    """Detectron2's checkpointer, with a policy.

    Args:
        model, save_dir: as Detectron2's.
        use: what for, a key of :data:`POLICIES`.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", use: str = "inference"):
        super().__init__(model, save_dir)
        self.use, self.policy = use, POLICIES[use]

    def load(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Detectron2's; what has to be downloaded, and cannot be, is a :class:`InputError`."""
        if is_address(path or ""):
            fetch(path)
        return super().load(path, *args, **kwargs)

    def _load_model(self, checkpoint: Any) -> Any:
        state = checkpoint["model"]
        for key in list(state):
            for old, new in _RENAMED.items():
                if key.endswith(old):
                    state[key.replace(old, new)] = state.pop(key)
        if self.policy.same_scores:
            check_activation(self.model, checkpoint)
        if self.policy.keep_bias:
            known = self.model.state_dict()
            biases = [k for k in state if k.endswith("cls_score.bias") and k not in known]
            self._refuse("has an unknown", biases)
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        may_lack, shapes, refused, _, _ = self.policy
        reshaped = [key for key, *_ in incompatible.incorrect_shapes]
        if not shapes:
            self._refuse("has another shape for", reshaped)
        if may_lack is not None:
            lacking = [*incompatible.missing_keys, *reshaped]
            lacking = [key for key in lacking if not any(part in key for part in may_lack)]
            self._refuse("has no fitting", lacking)
        # MODEL.TIMM.WEIGHTS has not been read: what the checkpoint lacks would stay random.
        modules = self.model.named_modules()
        timm = tuple(f"{name}." for name, m in modules if isinstance(m, TimmBackbone))
        lacking = [key for key in (*incompatible.missing_keys, *reshaped) if key.startswith(timm)]
        lacking = [key for key in lacking if not key.endswith("num_batches_tracked")]
        self._refuse("has no fitting", lacking)
        unknown = [k for k in incompatible.unexpected_keys if any(part in k for part in refused)]
        self._refuse("has an unknown", unknown)
        super()._log_incompatible_keys(incompatible)

    def _refuse(self, what: str, keys: List[str]) -> None:
        if keys:
            frozen = " to freeze" if self.use in ("crt", "lws") else ""
            raise InputError(
                f"the checkpoint {what} {keys[0]}{frozen} ({len(keys)} such keys): give the config "
                "that it was trained with"
            )


def activation_of(model: nn.Module) -> str:
    """The kind of scores that a model's loss trains, see activations.py."""
    return next((p.activation for p in box_predictors(model)), "softmax")


def check_activation(model: nn.Module, checkpoint: Any) -> None:
    """Refuse a checkpoint whose training made scores of another kind.

    Raises:
        InputError: naming both.
    """
    trained = (checkpoint.get("trainer") or {}).get("activation", activation_of(model))
    if trained != activation_of(model):
        raise InputError(
            f"the checkpoint is trained for {trained} scores, this config makes them "
            f"{activation_of(model)}: set MODEL.LONG_TAIL.LOSS to the loss of its training"
        )


@contextlib.contextmanager
def readable_checkpoint(path: str) -> Iterator[None]:
    """Turn what a broken or unfitting file makes loading raise into one line.

    Args:
        path: of the file, or of the folder whose last checkpoint is loaded.

    Raises:
        InputError: naming it.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except ValueError as error:
        if "parameter group" not in str(error):
            raise InputError(f"{path} is no checkpoint that can be read: {error}") from error
        raise InputError(
            f"{path} is of a training with other trained parameters, such "
            "as the one before MODEL.LONG_TAIL.DECOUPLE: give another OUTPUT_DIR, or do not resume"
        ) from error
    except _BROKEN as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if is_address(path):
            path += f", cached as {cached_file(path)},"
        raise InputError(f"{path} is no checkpoint that can be read ({reason})") from error


def load_model(cfg: CfgNode, use: str = "inference", resume: bool = False) -> Any:
    """Build a model and load ``MODEL.WEIGHTS``; in evaluation mode.

    Args:
        use: a key of :data:`POLICIES`.
        resume: take the last checkpoint in ``OUTPUT_DIR``, if there is one.

    Raises:
        InputError: the checkpoint cannot be read or does not fit.
    """
    with errors_name_paths(cfg.LAZY_CONFIG.FILE):
        with errors_name_section(cfg, "MODEL"):
            model = build_detector(cfg).eval()
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, use)
        with readable_checkpoint(cfg.MODEL.WEIGHTS or cfg.OUTPUT_DIR):
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        for predictor in box_predictors(model) if use == "inference" else ():
            with errors_name(
                f"{cfg.MODEL.WEIGHTS or cfg.OUTPUT_DIR}: MODEL.ADJUSTMENTS, MODEL.TDE"
            ):
                predictor.check_all_fit(predictor.adjustments)
                predictor.adjustments.check_measured()
            if predictor is box_predictors(model)[0]:  # those of a cascade have the same
                logger.info("The model's adjustments: %s", predictor.adjustments.describe())
    return model
