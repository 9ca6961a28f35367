"""What determines a model's detections on a data set, as one short string."""

import hashlib
import json
import os
import re
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor, nn

from .. import __version__
from .lazy_config import is_lazy, load_lazy_config


def model_hash(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers; seconds for the largest models."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            kind = f"{name} {value.dtype} {tuple(value.shape)}"
            content: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        else:
            kind, content = name, repr(value).encode()
        digest.update(kind.encode())
        digest.update(content)
    return digest.hexdigest()


def settings_hash(cfg: CfgNode, dataset_name: str, num_images: int) -> str:
    """SHA-256 of what detections depend on beside the weights.

    That is the config's sections MODEL, INPUT, TEST and DATASETS, a LazyConfig's model and test
    mapper, and the data set's size and annotations, which their file's size and time stand for.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = cfg.MODEL.TIMM.WEIGHTS = ""  # what they hold counts, not where they are
    parts: Any = [__version__, torch.__version__, dataset_name, num_images]
    parts += [cfg[section].dump() for section in ("MODEL", "INPUT", "TEST", "DATASETS")]
    if is_lazy(cfg):
        lazy = load_lazy_config(cfg.LAZY_CONFIG.FILE, cfg.LAZY_CONFIG.OVERRIDES)
        described = f"{lazy.model} {lazy.dataloader.test.mapper}"
        parts.append(re.sub(r" at 0x\w+", "", described))  # functions have an address
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    if json_file:
        state = os.stat(json_file)
        parts += [os.path.abspath(json_file), state.st_size, state.st_mtime_ns]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
