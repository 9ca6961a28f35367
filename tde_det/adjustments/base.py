"""What all adjustments share: *statistics* of a training set, which are buffers, and *options*,
numbers that a user chooses. A state dict holds both, and an adjustment can be made of it again."""

import copy
import math
from typing import Any, Dict, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..activations import DISTRIBUTIONS
from .exempt import exempt_background


class Adjustment(nn.Module):
    """At inference, changes the logits of the classes; subclasses implement :meth:`adjusted`.

    Args:
        statistics: those that the class names, in their order; they become buffers.
        options: some of those that the class names, in place of their default values.

    Options:
        exempt: keep the background's probability, see exempt.py. False leaves the background as the
            method's own formula has it. Logits without a background need False. Sigmoid scores have
            no background.

    Raises:
        ValueError: there is no such option, or a value is outside its range.
    """

    statistics: Tuple[str, ...] = ()
    options: Dict[str, Any] = {"exempt": True}  # with default values
    activations: Tuple[str, ...] = DISTRIBUTIONS  # the kinds of scores that it can change
    exempt: bool

    def __init__(self, *statistics: Tensor, **options: Any):
        super().__init__()
        for name, value in zip(self.statistics, statistics, strict=True):
            self.register_buffer(name, value)
        self.set_options(**{**self.options, **options})

    @classmethod
    def check_option(cls, name: str, value: Any) -> Any:
        """An option's value in its type, if there is such an option and it is in its range."""
        if name not in cls.options:
            raise ValueError(f"unknown option {name!r}; known are {', '.join(cls.options)}")
        kind = type(cls.options[name])
        if kind is bool and value not in (True, False):
            raise ValueError(f"{name} must be True or False, got {value!r}")
        if kind is float and (isinstance(value, (str, bool)) or not 0 <= value < math.inf):
            raise ValueError(f"{name} must be at least 0, got {value!r}")
        return kind(value)

    def set_options(self, **options: Any) -> None:
        """Set some of the options."""
        for name, value in options.items():
            setattr(self, name, self.check_option(name, value))

    def with_options(self, **options: Any) -> Any:
        """A copy with some options changed."""
        other = copy.deepcopy(self)
        other.set_options(**options)
        return other

    def is_measured(self) -> bool:
        """False if statistics are NaN: a checkpoint or the end of a training brings them."""
        return not any(bool(torch.isnan(statistic).all()) for statistic in self.buffers())

    def is_off(self) -> bool:
        """Whether the logits are to stay exactly as they are."""
        return False

    def adjusted(self, x: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        """The method's formula; arguments and shapes as in :meth:`forward`."""
        raise NotImplementedError

    def adjusted_sigmoid(self, x: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        """The method's formula for sigmoid scores; unless it has one, that for softmax scores."""
        return self.adjusted(x, logits, weight)

    def forward(
        self, x: Tensor, logits: Tensor, weight: Tensor, activation: str = "softmax"
    ) -> Tensor:
        """Adjust logits.

        Args:
            x: ``Tensor[N, D]``, box features.
            logits: ``Tensor[N, C+1]``, background last (``Tensor[N, C]`` without background).
            weight: ``Tensor[C+1, D]``, what the classifier multiplies features with.
            activation: the kind of scores, one of the class's ``activations``.

        Returns:
            logits in the same shape, in at least float32.
        """
        if self.is_off():
            return logits
        # In half precision, differences of logarithms would lose what an adjustment changes.
        dtype = torch.promote_types(logits.dtype, torch.float32)
        x, logits, weight = x.to(dtype), logits.to(dtype), weight.to(dtype)
        if activation == "sigmoid":  # every class is for itself: there is no background to keep
            return self.adjusted_sigmoid(x, logits, weight)
        adjusted = self.adjusted(x, logits, weight)
        return exempt_background(logits, adjusted) if self.exempt else adjusted

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.options:  # in float64, in which a checkpoint gives back the very number
            destination[prefix + name] = torch.tensor(getattr(self, name), dtype=torch.float64)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Load the statistics; the options stay."""
        for name in self.options:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def log_counts(counts: Tensor) -> Tensor:
    """log n_i of a ``Tensor[C]``; a class never seen counts as one seen once."""
    return counts.clamp(min=1).log()


def shift_classes(logits: Tensor, shift: Tensor) -> Tensor:
    """Add a ``Tensor[C]`` to the first C columns of ``Tensor[N, C+1]``; the background stays."""
    return logits + F.pad(shift, (0, logits.shape[1] - shift.shape[0])).to(logits.dtype)
