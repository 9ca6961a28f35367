"""What frozen parts make of training images, computed once and kept in files.

Where backbone, FPN and RPN stay as they are, only the RoI heads differ from step to step: without
the others a step takes less than half the time, and all rows can share the files.
"""

import hashlib
import os
import random
from pathlib import Path
from typing import Any, Dict, List, Type

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks

from tde_det.data import build_train_loader
from tde_det.data.mapper import TolerantMapper
from tde_det.engine import Trainer
from tde_det.errors import InputError

KEPT = "kept"  # the key of the path of an image's file
# What a file may hold beside tensors. NumPy's are for polygons.
REBUILD_ARRAY: Any = np.empty(0).__reduce__()[0]
ARRAYS = [np.ndarray, np.dtype, np.dtypes.Float64DType, REBUILD_ARRAY]
torch.serialization.add_safe_globals([Instances, Boxes, BitMasks, PolygonMasks, *ARRAYS])


class VersionsMapper:
    """Maps an image to one of its versions: each size of ``INPUT.MIN_SIZE_TRAIN``, also mirrored.

    A version whose file is there is read from it.

    Args:
        cfg: a config without other augmentations.
        folder: of the files.
    """

    def __init__(self, cfg: CfgNode, folder: Path):
        self._folder = folder
        self._mappers = {
            f"{size}{'-mirrored' * mirrored}": TolerantMapper(
                cfg,
                augmentations=[
                    T.ResizeShortestEdge(size, cfg.INPUT.MAX_SIZE_TRAIN),
                    T.RandomFlip(prob=float(mirrored)),
                ],
            )
            for size in cfg.INPUT.MIN_SIZE_TRAIN
            for mirrored in (False, True)
        }

    def __call__(self, record: Dict[str, Any]) -> Any:
        version = random.choice([*self._mappers])
        path = self._folder / f"{record['image_id']}-{version}.pth"
        if path.exists():
            return torch.load(path, weights_only=True)
        mapped = self._mappers[version](record)
        return None if mapped is None else {**mapped, KEPT: path}


@META_ARCH_REGISTRY.register()
class FrozenFeaturesRCNN(GeneralizedRCNN):
    """In training a ``GeneralizedRCNN`` without gradients of anything but its RoI heads.

    It takes what :class:`VersionsMapper` gives, and writes the files that are not there.
    """

    def train(self, mode: bool = True) -> "FrozenFeaturesRCNN":
        """The backbone keeps its batch norm's statistics."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, batched_inputs: List[Dict[str, Any]]) -> Any:
        if not self.training:
            return super().forward(batched_inputs)
        inputs = [self._kept(x) if KEPT in x else x for x in batched_inputs]
        images = ImageList(torch.empty(0), [x["instances"].image_size for x in inputs])
        features = {
            name: _padded([x["features"][name] for x in inputs]) for name in inputs[0]["features"]
        }
        targets = [x["instances"].to(self.device) for x in inputs]
        proposals = [x["proposals"].to(self.device) for x in inputs]
        return self.roi_heads(images, features, proposals, targets)[1]

    @torch.no_grad()
    def _kept(self, mapped: Dict[str, Any]) -> Dict[str, Any]:
        """Features, proposals and objects of an image, written to its file."""
        images = self.preprocess_image([mapped])
        features = self.backbone(images.tensor)
        targets = [mapped["instances"].to(self.device)]
        # The RPN samples anchors for its loss; the RoI heads are to sample as without that.
        with torch.random.fork_rng():
            (proposals,), _ = self.proposal_generator(images, features, targets)
        kept = {"features": features, "proposals": proposals, "instances": mapped["instances"]}
        own = mapped[KEPT].with_suffix(f".{os.getpid()}")  # others may write the same one
        torch.save(kept, own)
        own.replace(mapped[KEPT])
        return kept


def _padded(maps: List[torch.Tensor]) -> torch.Tensor:
    """Feature maps ``Tensor[1, C, H, W]`` of images of several sizes as one batch."""
    height, width = max(m.shape[2] for m in maps), max(m.shape[3] for m in maps)
    pad = torch.nn.functional.pad
    return torch.cat([pad(m, (0, width - m.shape[3], 0, height - m.shape[2])) for m in maps])


def check_owner(folder: Path, model: GeneralizedRCNN) -> None:
    """Let a folder keep outputs of the frozen parts of one model alone.

    Raises:
        InputError: it has those of others.
    """
    digest = hashlib.sha256()
    for part in (model.backbone, model.proposal_generator):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    owner = folder / "frozen_parts.sha256"
    if not owner.exists():
        owner.write_text(digest.hexdigest())
    if owner.read_text() != digest.hexdigest():
        raise InputError(
            f"{folder} keeps the outputs of another backbone or RPN than that of MODEL.WEIGHTS: "
            "remove it or name another folder"
        )


def trainer_of_heads(folder: Path) -> Type[Trainer]:
    """A trainer of RoI heads alone, with files in a folder of the other parts' outputs."""
    folder.mkdir(parents=True, exist_ok=True)

    class HeadsTrainer(Trainer):
        @classmethod
        def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.META_ARCHITECTURE = FrozenFeaturesRCNN.__name__
            model = super().build_model(cfg)
            model.backbone.requires_grad_(False)
            model.proposal_generator.requires_grad_(False)
            return model

        @classmethod
        def build_train_loader(cls, cfg: CfgNode):
            return build_train_loader(cfg, VersionsMapper(cfg, folder))

        def resume_or_load(self, resume: bool = True) -> None:
            super().resume_or_load(resume)
            check_owner(folder, self.model)

    return HeadsTrainer
