"""The adjustments that a checkpoint carries, and how they meet those that a config lists."""

from typing import Any, Dict, Mapping, MutableMapping

from torch import Tensor

from .base import Adjustment
from .chain import ADJUSTMENTS, Adjustments, statistics_of


def saved_adjustments(state: Mapping[str, Tensor], prefix: str) -> Dict[str, Adjustment]:
    """The adjustments whose statistics and options are in a state dict, but for TDE.

    TDE is the model's own: it belongs to the classifier, and the config has its options.

    Args:
        state: of a model.
        prefix: of the adjustments' keys, such as ``"box_predictor.adjustments."``.
    """
    saved: Dict[str, Dict[str, Tensor]] = {}
    for key in [key for key in state if key.startswith(prefix)]:
        name, _, field = key[len(prefix) :].partition(".")
        saved.setdefault(name, {})[field] = state[key].detach().clone()
    made = {}
    for name in [n for n in saved if n in ADJUSTMENTS and n != "tde"]:
        kind, fields = ADJUSTMENTS[name], saved[name]
        if not {*kind.statistics, *kind.options} <= fields.keys():
            continue  # Detectron2 has taken out what has another shape in the model
        options = {option: fields[option].item() for option in kind.options}
        made[name] = kind(*(fields[statistic] for statistic in kind.statistics), **options)
    return made


def take_saved(
    adjustments: Adjustments, state: MutableMapping[str, Tensor], prefix: str, takes_carried: bool
) -> None:
    """Make a model's adjustments and a state dict fit each other, before it is loaded.

    Adjustments without class means take those that the state dict has for another.

    Args:
        adjustments, prefix: the model's, and where they are in ``state``.
        state: is changed, too: it gets what ``adjustments`` have and it has not.
        takes_carried: whether the model gets the adjustments that ``state`` alone has; if not, they
            leave ``state``.
    """
    saved = saved_adjustments(state, prefix)
    statistics = statistics_of(saved)
    for name in [name for name in saved if name not in adjustments]:
        if takes_carried:
            adjustments[name] = saved[name]
        for key in () if takes_carried else saved[name].state_dict():
            del state[f"{prefix}{name}.{key}"]
    made: Any = {name: a for name, a in adjustments.items() if name != "tde"}
    for name, adjustment in made.items():
        values = adjustment.state_dict()
        if not adjustment.is_measured() and statistics.keys() >= {*adjustment.statistics}:
            values.update({key: statistics[key] for key in adjustment.statistics})
        for key, value in values.items():
            state.setdefault(f"{prefix}{name}.{key}", value)
