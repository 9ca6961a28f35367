"""A chain of adjustments, and the words in which a user asks for it.

A step is the name of an adjustment and its options: ``"norcal gamma=0.3"``. Several values of an
option, ``"tde alpha=0,1,1.5"``, stand for as many chains. Steps in a row are joined by ``+``.
"""

import itertools
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple, Type

from torch import Tensor, nn

from .base import Adjustment
from .fracal import FRACAL
from .logit_adjustment import LogitAdjustment
from .ncm import NCM
from .norcal import NorCal
from .prototypes import Prototypes
from .tau_norm import TauNorm
from .tde import TDE

ADJUSTMENTS: Dict[str, Type[Adjustment]] = {
    "tde": TDE,
    "tau_norm": TauNorm,
    "ncm": NCM,
    "prototypes": Prototypes,
    "norcal": NorCal,
    "logit_adjustment": LogitAdjustment,
    "fracal": FRACAL,
}


class Step(NamedTuple):
    """One adjustment of a chain: a name in :data:`ADJUSTMENTS`, and options."""

    name: str
    options: Dict[str, Any]

    def __str__(self) -> str:
        words = [
            f"{k}={v:.12g}" if type(v) is float else f"{k}={v}" for k, v in self.options.items()
        ]
        return " ".join([self.name, *words])


def _value(text: str) -> Any:
    """A number, true or false; other words stay words, which no option takes."""
    try:
        return text == "true" if text in ("true", "false") else float(text)
    except ValueError:
        return text


def _parse_step(text: str) -> List[Step]:
    """A step's readings, one for each combination of values."""
    name, *words = text.split() or [""]
    if name not in ADJUSTMENTS:
        raise ValueError(f"{name!r} is no adjustment; known are {', '.join(ADJUSTMENTS)}")
    values: Dict[str, List[Any]] = {}
    for word in words:
        option, _, numbers = word.partition("=")
        values[option] = []
        for number in numbers.lower().split(","):
            try:
                values[option].append(ADJUSTMENTS[name].check_option(option, _value(number)))
            except ValueError as error:
                raise ValueError(f"{word!r} of {text.strip()!r}: {error}") from None
    return [Step(name, dict(zip(values, chosen))) for chosen in itertools.product(*values.values())]


def parse_chains(text: str) -> List[List[Step]]:
    """Read steps joined by ``+``; one chain for each combination of values. "none" is empty.

    Raises:
        ValueError: an adjustment, an option or a value is unknown, or an adjustment occurs twice.

    >>> for chain in parse_chains("tde alpha=1,1.5 + norcal gamma=0.3 exempt=false"):
    ...     print(*chain, sep=" + ")
    tde alpha=1 + norcal gamma=0.3 exempt=False
    tde alpha=1.5 + norcal gamma=0.3 exempt=False
    """
    if text.strip() == "none":
        return [[]]
    chains = [list(c) for c in itertools.product(*(_parse_step(s) for s in text.split("+")))]
    names = [step.name for step in chains[0]]
    if len(set(names)) < len(names):
        raise ValueError(f"{text!r} has an adjustment more than once")
    return chains


def make_adjustment(
    step: Step, data: Any, known: Optional[Mapping[str, Tensor]] = None
) -> Adjustment:
    """Make a step's adjustment of ``data``, which has the statistics as attributes.

    Args:
        known: statistics by name; if they are all there, those of ``data`` are not needed.

    Raises:
        ValueError: an option is unknown or outside its range.
    """
    kind = ADJUSTMENTS[step.name]
    if known is not None and known.keys() >= {*kind.statistics}:
        return kind(*(known[name] for name in kind.statistics), **step.options)
    return kind(*(getattr(data, name) for name in kind.statistics), **step.options)


def statistics_of(adjustments: Mapping[str, Adjustment]) -> Dict[str, Tensor]:
    """By name, the statistics that adjustments are made of. One name is one statistic in all."""
    return {name: getattr(a, name) for a in adjustments.values() for name in a.statistics}


class Adjustments(nn.ModuleDict):
    """Adjustments by name, applied one after the other."""

    def forward(
        self, x: Tensor, logits: Tensor, weight: Tensor, activation: str = "softmax"
    ) -> Tensor:
        """Arguments and result as those of :meth:`Adjustment.forward`."""
        for adjustment in self.values():
            logits = adjustment(x, logits, weight, activation)
        return logits

    def check_measured(self) -> None:
        """Raise ``ValueError`` if statistics of one are NaN: they have yet to be measured."""
        made: Iterable[Tuple[str, Any]] = self.items()
        for name, adjustment in made:
            if not adjustment.is_measured():
                raise ValueError(
                    f"{name} has no class means yet: train with it in the config, or measure them "
                    "by tools/calibrate.py"
                )

    def describe(self) -> str:
        """In the words of :func:`parse_chains`, without those that are off."""
        made: Iterable[Tuple[str, Any]] = self.items()
        steps = [
            Step(name, {k: getattr(a, k) for k in a.options}) for name, a in made if not a.is_off()
        ]
        return " + ".join(map(str, steps)) or "none"
