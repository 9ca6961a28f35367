"""Losses and gradients that are not finite: found on one rank, decided on all."""

import contextlib
import math
from typing import Any, Dict, Iterator, List, Mapping, Sequence

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from torch import Tensor, nn

from ..distributed import all_reduce_sum


class NonFiniteLoss(FloatingPointError):
    """A step's loss or gradient is not finite; the message names iteration, images and losses."""


class _OnAnotherRank(FloatingPointError):
    pass


def on_any_rank(happened: bool, device: torch.device) -> bool:
    """Whether something happened on any rank; every rank must call this."""
    if comm.get_world_size() == 1:
        return happened
    return bool(all_reduce_sum(torch.tensor(float(happened), device=device)))


def agree_before_roi_heads(model: nn.Module, device: torch.device) -> None:
    """Let all ranks leave a forward pass together when the RPN of one finds NaN in its boxes.

    Detectron2's RPN raises a ``FloatingPointError`` then, and the other ranks would wait in the
    sums over ranks that the ROI heads make.
    """
    roi_heads = getattr(model, "roi_heads", None)
    if comm.get_world_size() == 1 or not isinstance(roi_heads, nn.Module):
        return

    def agree(module: nn.Module, args: Any) -> None:
        if module.training and on_any_rank(False, device):
            raise _OnAnotherRank()

    roi_heads.register_forward_pre_hook(agree)


@contextlib.contextmanager
def told_to_other_ranks(device: torch.device) -> Iterator[None]:
    """Around a forward pass: what :func:`agree_before_roi_heads` waits for.

    Raises:
        FloatingPointError: on all ranks, if on any.
    """
    try:
        yield
    except _OnAnotherRank:
        raise
    except FloatingPointError:
        on_any_rank(True, device)
        raise


def are_finite(losses: Mapping[str, Tensor]) -> bool:
    """Whether all loss terms are."""
    return bool(torch.isfinite(torch.stack([*losses.values()])).all())


def gradients_are_finite(model: nn.Module) -> bool:
    """Whether all gradients are; true without any."""
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return not norms or bool(torch.isfinite(torch.stack(norms).sum()))


class Buffers:
    """What a forward pass changes besides gradients: statistics, and those of batch norm."""

    def __init__(self, model: nn.Module):
        frozen = {id(m) for m in model.modules() if isinstance(m, FrozenBatchNorm2d)}
        own = [m for m in model.modules() if id(m) not in frozen]
        self._buffers: List[Tensor] = [b for m in own for b in m.buffers(recurse=False)]
        self._saved: List[Tensor] = []

    def save(self) -> None:
        self._saved = [buffer.clone() for buffer in self._buffers]

    def restore(self) -> None:
        for buffer, saved in zip(self._buffers, self._saved):
            buffer.copy_(saved)


def describe_nonfinite(
    iteration: int, images: Sequence[Mapping[str, Any]], losses: Dict[str, float], reason: str
) -> str:
    """One line about a step, with the images of the ranks that found it; all ranks must call this.

    Args:
        images: what this rank's model was given.
        losses: its loss terms, as far as they were computed.
        reason: what this rank found; "" for nothing.
    """
    ids = ", ".join(str(image.get("image_id", image.get("file_name"))) for image in images)
    terms = [f"{k} {v:.4g}" for k, v in losses.items() if not math.isfinite(v)]
    terms = terms or [f"{k} {v:.4g}" for k, v in losses.items()]
    own = f"{reason}; image ids {ids}; losses {', '.join(terms) or 'not computed yet'}"
    found = [text for text in comm.all_gather(own if reason else "") if text]
    return f"iteration {iteration}: {' | '.join(found)}"
