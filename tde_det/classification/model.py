"""A ResNet of torchvision, or CIFAR's small one, under a linear or a normalised classifier."""

import re
from typing import Optional, Tuple, Union

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from ..causal_norm import CLASSIFIERS, CausalNormClassifier
from ..errors import InputError

LINEAR = "linear"
CLASSIFIER_NAMES = (LINEAR, *CLASSIFIERS)
Classifier = Union[nn.Linear, CausalNormClassifier]
# ImageNet's, of pixels in [0, 255].
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


def small_resnet(depth: int, width: int, stem_stride: int) -> Tuple[nn.Module, int]:
    """CIFAR's ResNet of 6n+2 layers, of torchvision's blocks, and its feature dimension D.

    Three stages of n blocks with 1, 2 and 4 times ``width`` channels, ``width`` being 16 in the
    paper. Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section
    4.2; with projections where a stage begins.
    """
    blocks = (depth - 2) // 6
    layers = [
        nn.Conv2d(3, width, 3, stem_stride, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    channels = width
    for stage in range(3):
        for block in range(blocks):
            out, projection, stride = width << stage, None, 1
            if stage > 0 and block == 0:
                stride = 2
                projection = nn.Sequential(
                    nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
                )
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
        arch: a ResNet of torchvision (``resnet18``, ``resnext50_32x4d``, …), or ``resnet8``,
            ``resnet20``, ``resnet32``… of 6n+2 layers for small images; ``resnet8x2`` is twice as
            wide.
        stem_stride: by how much the stem reduces images: 4 is ImageNet's; 1 and 2 are a 3×3
            convolution without pooling, for small images.

    Raises:
        InputError: there is no such network.
    """
    known = torchvision.models.list_models(torchvision.models, include="*resne*t*")
    if arch in known:
        if stem_stride not in (1, 2, 4):
            raise InputError(f"--stem-stride must be 1, 2 or 4, got {stem_stride}")
        net = torchvision.models.get_model(arch, weights=None)
        if stem_stride < 4:
            channels = net.conv1.out_channels
            net.conv1 = nn.Conv2d(3, channels, 3, stem_stride, 1, bias=False)
            _init_convolutions(net.conv1)
            net.maxpool = nn.Identity()
        feature_dim, net.fc = net.fc.in_features, nn.Identity()
        return net, feature_dim
    match = re.fullmatch(r"resnet(\d+)(?:x(\d+))?", arch)
    if match is None or int(match[1]) < 8 or int(match[1]) % 6 != 2 or match[2] == "0":
        raise InputError(
            f"--arch must be one of {', '.join(known)}, or CIFAR's, of 6n+2 layers: resnet8, "
            f"resnet20, resnet32, … and resnet8x2, twice as wide, and so on; got {arch!r}"
        )
    if stem_stride not in (1, 2):
        raise InputError(f"--stem-stride must be 1 or 2 for {arch}, got {stem_stride}")
    return small_resnet(int(match[1]), 16 * int(match[2] or 1), stem_stride)


def build_classifier(
    name: str,
    feature_dim: int,
    num_classes: int,
    *,
    num_heads: int = 2,
    tau: float = 16.0,
    gamma: float = 1 / 32,
    mu: float = 0.9998,
    prior_bias: Optional[float] = None,
) -> Classifier:
    """A classifier without background; normalised ones are factual (α = 0) until told otherwise.

    Args:
        name: one of ``CLASSIFIER_NAMES``.
        feature_dim: D.
        num_classes: C.
        num_heads, tau, gamma, mu: see :class:`CausalNormClassifier`; ``"linear"`` has none.
        prior_bias: where the logits start; None: as a softmax needs it.

    Raises:
        InputError: a value outside its range.
    """
    if name not in CLASSIFIER_NAMES:
        raise InputError(f"--classifier must be one of {CLASSIFIER_NAMES}, got {name!r}")
    if name == LINEAR:
        linear = nn.Linear(feature_dim, num_classes)
        if prior_bias is not None:
            nn.init.constant_(linear.bias, prior_bias)
        return linear
    return CausalNormClassifier(
        feature_dim,
        num_classes,
        kind=name,
        num_heads=num_heads,
        tau=tau,
        gamma=gamma,
        mu=mu,
        alpha=0.0,
        background=False,
        prior_logit=prior_bias or 0.0,
    )


class ImageClassifier(nn.Module):
    """Pixels → features → logits.

    Args:
        backbone: of :func:`build_backbone`.
        classifier: of :func:`build_classifier`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: nn.Module, classifier: Classifier):
        super().__init__()
        # Twice as fast on CPUs.
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.classifier = classifier
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1))

    def features(self, images: Tensor) -> Tensor:
        """``uint8[N, 3, H, W]`` RGB → ``Tensor[N, D]``."""
        pixels = (images.float() - self.pixel_mean) / self.pixel_std
        return self.backbone(pixels.contiguous(memory_format=torch.channels_last))

    def forward(self, images: Tensor) -> Tensor:
        """``uint8[N, 3, H, W]`` RGB → logits ``Tensor[N, C]``."""
        return self.classifier(self.features(images))
