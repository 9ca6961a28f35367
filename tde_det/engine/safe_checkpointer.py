"""Detectron2's checkpointer, for files of strangers: nothing in a checkpoint can run."""

from typing import Any, Dict

from detectron2.checkpoint import DetectionCheckpointer

from ..errors import InputError
from ..restricted_pickle import read_pickle
from ..weight_files import read_torch_file, read_weights


class SafeCheckpointer(DetectionCheckpointer):
    """Reads ``.pth``, ``.safetensors``, ``.pkl`` (model zoo, Caffe2) and ``.pyth`` (pycls).

    Detectron2 itself unpickles the last two, and the first before PyTorch 2.6.
    """

    def _load_file(self, filename: str) -> Dict[str, Any]:
        """Each kind as :class:`DetectionCheckpointer` has it."""
        if not filename.endswith((".pkl", ".pyth")):
            return super()._load_file(filename)
        is_pycls = filename.endswith(".pyth")
        data = read_torch_file(filename) if is_pycls else read_pickle(filename)
        if not isinstance(data, dict) or (is_pycls and "model_state" not in data):
            raise InputError("it is no checkpoint of Detectron2, Caffe2 or pycls")
        if not is_pycls and "model" in data and "__author__" in data:
            return data
        state, unused = data.get("blobs", data), "_momentum"
        if is_pycls:
            state, unused = data["model_state"], "num_batches_tracked"
        state = {key: value for key, value in state.items() if not key.endswith(unused)}
        author = "pycls" if is_pycls else "Caffe2"
        return {"model": state, "__author__": author, "matching_heuristics": True}

    def _torch_load(self, f: str) -> Any:
        return read_weights(f)
