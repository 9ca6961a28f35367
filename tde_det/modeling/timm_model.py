"""Create a timm model that gives feature maps, with weights, and freeze its first stages."""

from typing import Any, Dict, List, Sequence

from torch import nn

from ..errors import InputError
from .timm_weights import DOWNLOAD, load_weights, plain_name


def reason_of(error: BaseException) -> str:
    """The first line of an error that timm raises."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _create(name: str, indices: Sequence[int], pretrained: bool, in_chans: int) -> Any:
    """timm's model, of any image size where it can be.

    Raises:
        Exception: whatever timm raises.
    """
    import timm

    options: Dict[str, Any] = {"features_only": True, "in_chans": in_chans}
    if indices:
        options["out_indices"] = tuple(indices)
    config: Any = timm.models.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:  # Swin has these arguments, or a ViT this
        for size in ({"img_size": None, "strict_img_size": False}, {"dynamic_img_size": True}):
            try:
                return timm.create_model(name, pretrained=pretrained, **options, **size)
            except TypeError:
                continue
    return timm.create_model(name, pretrained=pretrained, **options)


def create_model(name: str, indices: Sequence[int], weights: str, in_chans: int) -> Any:
    """A timm model that gives feature maps.

    Args:
        name, indices, weights: NAME, OUT_INDICES and WEIGHTS of MODEL.TIMM.
        in_chans: channels of the images.

    Raises:
        InputError: timm cannot make it, or the weights cannot be had or do not fit.
    """
    try:
        net = _create(name, indices, False, in_chans)
    except Exception as error:  # of many kinds: each model of timm checks for itself
        _explain_indices(name, indices, in_chans)
        raise InputError(
            f"MODEL.TIMM.NAME {name} cannot be a backbone, timm says: {reason_of(error)}"
        ) from error
    if weights == DOWNLOAD:
        try:
            net = _create(name, indices, True, in_chans)
        except Exception as error:  # of timm, the hub's client and the network
            raise InputError(
                f"MODEL.TIMM.WEIGHTS {DOWNLOAD}: the weights of {name} cannot be downloaded "
                f"({reason_of(error)}). Give a file with them"
            ) from error
    elif weights:
        load_weights(net, weights, name)
    return net


def _explain_indices(name: str, indices: Sequence[int], in_chans: int) -> None:
    """Raise :class:`InputError` if indices beyond the model's features are why it cannot be."""
    try:
        info = _create(name, (), False, in_chans).feature_info.info if indices else []
    except Exception:
        return
    if info and indices[-1] >= len(info):
        strides = ", ".join(str(feature["reduction"]) for feature in info)
        raise InputError(
            f"MODEL.TIMM.OUT_INDICES {[*indices]}: {name} has the features 0 to {len(info) - 1}, "
            f"of strides {strides}"
        )


def _module_of(net: nn.Module, name: str) -> str:
    """What a feature extractor of timm calls the module ``name`` of the model; "" if it has none.

    >>> _module_of(nn.ModuleDict({"stages_0": nn.ReLU()}), "stages.0")
    'stages_0'
    """
    return next((key for key, _ in net.named_modules() if plain_name(key) == plain_name(name)), "")


def freeze_stages(net: Any, count: int, name: str) -> None:
    """Freeze all modules of timm's first features; their batch norm keeps its statistics."""
    from timm.utils import freeze

    info = net.feature_info.info
    if count > len(info):
        raise InputError(f"MODEL.TIMM.FROZEN_STAGES is {count}, but {name} has {len(info)} stages")
    end = _module_of(net, info[count - 1]["module"])
    if not end:
        raise InputError(f"MODEL.TIMM.FROZEN_STAGES: {name} does not say where stage {count} ends")
    frozen: List[str] = []
    for key, module in net.named_modules():  # in the order of use, as timm presumes too
        if frozen and frozen[-1] == end and not key.startswith(f"{end}."):
            break
        if not key or end.startswith(f"{key}."):  # what holds the stage, such as the whole model
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        elif not any(key.startswith(f"{parent}.") for parent in frozen):
            frozen.append(key)
    freeze(net, frozen)
