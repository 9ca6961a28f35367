"""Classify: box features x → factual logits. Plain PyTorch, without Detectron2."""

from .linear import LinearClassifier
from .normalized import KINDS, CausalNormClassifier

__all__ = ["KINDS", "CausalNormClassifier", "LinearClassifier"]
