"""Clear errors for checkpoints that cannot be loaded, or fit another model."""

import contextlib
import pickle
import struct
from typing import Any, Iterable, Iterator, Sequence

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..errors import InputError
from .decoupling import predictors_of

# What torch.load and load_state_dict raise for files of other kinds.
_BROKEN = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    KeyError,
    AttributeError,
    RuntimeError,
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
    except InputError:
        raise
    except ValueError as error:
        if "parameter group" not in str(error):
            raise InputError(f"{path} is no checkpoint that can be read: {error}") from error
        raise InputError(
            f"the last checkpoint in {path} is of a training with other trained parameters, such "
            "as the one before MODEL.LONG_TAIL.DECOUPLE: give another OUTPUT_DIR, or no --resume"
        ) from error
    except _BROKEN as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path} is no checkpoint that can be read ({reason})") from error


class FittingCheckpointer(DetectionCheckpointer):
    """For inference: refuses a checkpoint of another model, where Detectron2 warns.

    A key that the checkpoint lacks, or has too many, is warned of: a linear classifier's checkpoint
    may start a de-confounded model.
    """

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        for predictor in predictors_of(self.model):
            predictor.check_activation()
        _refuse("has another shape for", [key for key, *_ in incompatible.incorrect_shapes])
        ours = (".trained_for", ".class_scale", ".feature_mean")  # without which scores are others
        _refuse("has an unknown", [k for k in incompatible.unexpected_keys if k.endswith(ours)])
        super()._log_incompatible_keys(incompatible)


class FrozenCheckpointer(DetectionCheckpointer):
    """For decoupled training: refuses a checkpoint without all that will be frozen.

    Args:
        model: to load into.
        method: MODEL.LONG_TAIL.DECOUPLE.
    """

    def __init__(self, model: nn.Module, method: str):
        super().__init__(model)
        self.method = method

    def _load_model(self, checkpoint: Any) -> Any:
        if self.method == "lws":
            _refuse_dropped_biases(self.model, checkpoint)
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        new = [".class_scale", ".classification_loss.", ".trained_for", ".fed_loss_cls_weights"]
        if self.method == "crt":
            new.append(".cls_score.")
        else:
            for predictor in predictors_of(self.model):
                predictor.check_activation()
        lacking = [*incompatible.missing_keys, *(k for k, *_ in incompatible.incorrect_shapes)]
        lacking = [key for key in lacking if not any(part in key for part in new)]
        _refuse(f"to freeze (MODEL.LONG_TAIL.DECOUPLE {self.method}) has no fitting", lacking)


class ExactCheckpointer(DetectionCheckpointer):
    """For what must not be done to another model: refuses a checkpoint without its very keys.

    Args:
        model: to load into.
        may_lack: endings of keys that the checkpoint need not have.
    """

    def __init__(self, model: nn.Module, may_lack: Iterable[str] = ()):
        super().__init__(model)
        self.may_lack = tuple(may_lack)

    def _load_model(self, checkpoint: Any) -> Any:
        _refuse_dropped_biases(self.model, checkpoint)
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        for predictor in predictors_of(self.model):
            predictor.check_activation()
        missing = [k for k in incompatible.missing_keys if not k.endswith(self.may_lack)]
        _refuse("lacks", missing)
        _refuse("has an unknown", incompatible.unexpected_keys)
        _refuse("has another shape for", [key for key, *_ in incompatible.incorrect_shapes])


def _refuse_dropped_biases(model: nn.Module, checkpoint: Any) -> None:
    """Those of a linear classifier, which a normalised one drops with a warning."""
    own = model.state_dict()
    biases = [k for k in checkpoint["model"] if k.endswith("cls_score.bias") and k not in own]
    _refuse("has an unknown", biases)


def _refuse(what: str, keys: Sequence[str]) -> None:
    if keys:
        raise InputError(
            f"the checkpoint {what} {keys[0]} ({len(keys)} such keys): give the --config-file, and "
            "the KEY VALUE pairs, that it was trained with"
        )
