"""Files of weights, ``.pth`` and ``.safetensors``, read as data: nothing in them can run.

``torch.load`` without ``weights_only`` runs what a file names. PyTorch before 2.6 does so even with
it, for two kinds of archives, which are refused here.
"""

import pickle
import re
import tarfile
import zipfile
from typing import Any, Dict

import torch
from torch import Tensor

from .errors import InputError

SAFETENSORS = ".safetensors"


def _refuse_archives(path: str) -> None:
    kind = ""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("constants.pkl") for name in archive.namelist()):
                    kind = "a TorchScript program"
        except Exception:  # of many kinds; PyTorch might read more of it than zipfile can
            kind = "a damaged archive"
    elif tarfile.is_tarfile(path):
        kind = "an archive of a PyTorch before 0.4"
    if kind:
        raise InputError(f"it is {kind}, not weights: give a .pth or {SAFETENSORS} with a model's")


def read_torch_file(path: str) -> Any:
    """``torch.load`` of tensors, numbers, text and containers, to the CPU.

    Raises:
        InputError: it holds something that could run, which has not been run.
        Exception: it is broken; ``torch.load`` raises many kinds.
    """
    _refuse_archives(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:  # torch's own message goes on with how to run it nevertheless
            raise pickle.UnpicklingError("it holds no weights") from error
        raise InputError(
            f"it is not read, since it holds more than weights: {named[1]}, which could run a "
            'program. If you trust it, see "Files of strangers" in docs/training.md'
        ) from error


def read_safetensors(path: str) -> Dict[str, Any]:
    """A checkpoint as Detectron2 has it, ``{"model": tensors by name, …}``.

    Raises:
        InputError: it is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"it cannot be read as {SAFETENSORS} ({error})") from error
    if "activation" not in metadata:
        return {"model": state}
    return {"model": state, "trainer": {"activation": metadata["activation"]}}


def read_weights(path: str) -> Any:
    """The content of a ``.safetensors``, or of a file of ``torch.save``."""
    return read_safetensors(path) if path.endswith(SAFETENSORS) else read_torch_file(path)


def write_weights(path: str, state: Dict[str, Tensor], config: str, activation: str = "") -> None:
    """Write a model's weights: ``.safetensors`` if the path ends so, else as ``torch.save`` does.

    Args:
        state: the model's state dict.
        config: as yaml; a ``.safetensors`` holds it in its metadata, under "config".
        activation: the kind of scores that the model is trained for, see activations.py.
    """
    if not path.endswith(SAFETENSORS):
        trainer = {"trainer": {"activation": activation}} if activation else {}
        torch.save({"model": state, **trainer}, path)
        return
    from safetensors.torch import save_file

    # The format knows no tensors that share memory.
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
    metadata = {"format": "pt", "config": config}
    save_file(tensors, path, {**metadata, **({"activation": activation} if activation else {})})
