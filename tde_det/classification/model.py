"""A ResNet of torchvision, or CIFAR's small one, under a linear or a normalised classifier."""

import re
from typing import Optional, Tuple, Union

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from torchvision.transforms.functional import normalize

from ..adjustments import TDE
from ..classifiers import KINDS, CausalNormClassifier, LinearClassifier
from ..errors import InputError
from .settings import RunSettings

LINEAR = "linear"
CLASSIFIER_NAMES = (LINEAR, *KINDS)
Classifier = Union[LinearClassifier, CausalNormClassifier]
# ImageNet's, of pixels in [0, 255].
PIXEL_MEAN, PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def small_resnet(depth: int, width: int, stem_stride: int) -> Tuple[nn.Module, int]:
    """CIFAR's ResNet of 6n+2 layers, in three stages of n blocks, and D, which is 4 × ``width``.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, where
    ``width`` is 16; with projections where the second and third stages begin.
    """
    stem = nn.Conv2d(3, width, 3, stem_stride, 1, bias=False)
    layers = [stem, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    channels = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            out, projection, stride = width << stage, None, 1
            if stage > 0 and block == 0:
                stride = 2
                convolution = nn.Conv2d(channels, out, 1, stride, bias=False)
                projection = nn.Sequential(convolution, nn.BatchNorm2d(out))
            layers.append(BasicBlock(channels, out, stride, projection))
            channels = out
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    _init_convolutions(net)
    return net, channels


def _init_convolutions(net: nn.Module) -> None:
    """As torchvision's ResNets are."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def build_backbone(arch: str, stem_stride: int) -> Tuple[nn.Module, int]:
    """A network from normalised images to features ``Tensor[N, D]``, and D.

    Args:
        arch: a ResNet of torchvision, or ``resnet8``, ``resnet20``, ``resnet32``… of 6n+2 layers
            for small images; ``resnet8x2`` is twice as wide.
        stem_stride: by how much the stem reduces images: 4 is ImageNet's; 1 and 2 are a 3×3
            convolution without pooling, for small images.

    Raises:
        InputError: there is no such network.
    """
    known = torchvision.models.list_models(torchvision.models, include="*resne*t*")
    small = re.fullmatch(r"resnet(\d+)(?:x(\d+))?", arch)
    strides = (1, 2, 4) if arch in known else (1, 2)
    if stem_stride not in strides:
        raise InputError(f"stem_stride must be of {strides} for {arch}, got {stem_stride}")
    if arch in known:
        net = torchvision.models.get_model(arch, weights=None)
        if stem_stride < 4:
            net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, stem_stride, 1, bias=False)
            _init_convolutions(net.conv1)
            net.maxpool = nn.Identity()
        feature_dim, net.fc = net.fc.in_features, nn.Identity()
        return net, feature_dim
    if small is None or int(small[1]) < 8 or int(small[1]) % 6 != 2 or small[2] == "0":
        raise InputError(
            f"arch must be one of {', '.join(known)}, or CIFAR's, of 6n+2 layers: resnet8, "
            f"resnet20, resnet32, … and resnet8x2, twice as wide, and so on; got {arch!r}"
        )
    return small_resnet(int(small[1]), 16 * int(small[2] or 1), stem_stride)


def build_classifier(
    name: str, feature_dim: int, num_classes: int, settings: RunSettings, prior: float = 0.0
) -> Classifier:
    """A classifier of ``CLASSIFIER_NAMES`` without background; its logits start at ``prior``.

    Raises:
        ValueError: a value outside its range.
    """
    if name == LINEAR:
        return LinearClassifier(nn.Linear(feature_dim, num_classes), num_classes, prior)
    options = {"kind": name, **settings.normalized, "background": False, "prior_logit": prior}
    return CausalNormClassifier(feature_dim, num_classes, **options)


class ImageClassifier(nn.Module):
    """Pixels → features → logits; ``tde`` averages the features of a normalised classifier.

    ``name`` is one of ``CLASSIFIER_NAMES``.
    """

    tde: Optional[TDE]

    def __init__(self, name: str, backbone: nn.Module, classifier: Classifier):
        super().__init__()
        self.name = name
        # Twice as fast on CPUs.
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.classifier, self.tde = classifier, None

    def features(self, images: Tensor) -> Tensor:
        """``uint8[N, 3, H, W]`` RGB → ``Tensor[N, D]``."""
        pixels = normalize(images.float(), PIXEL_MEAN, PIXEL_STD, inplace=True)
        return self.backbone(pixels.contiguous(memory_format=torch.channels_last))

    def forward(self, images: Tensor) -> Tensor:
        """``uint8[N, 3, H, W]`` RGB → logits ``Tensor[N, C]``."""
        return self.classifier(self.features(images))
