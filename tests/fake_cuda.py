"""CUDA tensors without a GPU: they say that they are on ``cuda:0``, and the CPU computes them.

PyTorch's own ``FakeTensorMode`` has no values. These have, so that whole models run: NMS and masks
depend on values. An operation on tensors of both devices raises :class:`MixedDevices`, as CUDA
would. What CUDA allows is allowed: copies, indices on the CPU, and CPU tensors without dimensions.
"""

import contextlib
from typing import Any, Optional

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

ATEN: Any = torch.ops.aten
COPIES = (ATEN._to_copy, ATEN.copy_)
INDEXED = (ATEN.index, ATEN.index_put, ATEN.index_put_)
JOINED = (ATEN.cat, ATEN.stack)
SOFTMAX = (ATEN._softmax, ATEN._log_softmax)


class MixedDevices(RuntimeError):
    """Tensors of both devices meet in an operation."""


class FakeCudaTensor(torch.Tensor):
    """A tensor on ``cuda:0``; ``held`` is that of the CPU which has its values."""

    @staticmethod
    def __new__(cls, held):
        options = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device="cuda:0", **options
        )

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"FakeCudaTensor({self.held})"

    def tolist(self):  # which PyTorch refuses of subclasses
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def check_devices(function, args, kwargs):
    """Raise :class:`MixedDevices` where CUDA would refuse."""
    kind = function.overloadpacket
    if kind in COPIES:
        return
    if kind in INDEXED and isinstance(args[0], FakeCudaTensor):
        args = (args[0], *args[2:])
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    counted = [t for t in tensors if t.is_cuda or t.dim() or kind in JOINED]
    if len({tensor.device for tensor in counted}) > 1:
        found = ", ".join(f"{tensor.device} {list(tensor.shape)}" for tensor in tensors)
        raise MixedDevices(f"{function} of {found}")


def compute(function, args, kwargs):
    """An operation on the CPU, whose results are where CUDA would have them."""
    check_devices(function, args, kwargs)
    on_gpu = any(isinstance(leaf, FakeCudaTensor) for leaf in tree_leaves((args, kwargs)))
    held_args, held_kwargs = tree_map_only(FakeCudaTensor, lambda t: t.held, (args, kwargs))
    if kwargs.get("device") is not None:
        on_gpu = torch.device(kwargs["device"]).type == "cuda"
        held_kwargs["device"] = torch.device("cpu")
    if function.overloadpacket in SOFTMAX and args[2]:  # in half precision, only CUDA widens in it
        held_args = (held_args[0].float(), held_args[1], False)
    result = function(*held_args, **held_kwargs)
    if function.overloadpacket is ATEN.copy_:
        return args[0]
    if not on_gpu:
        return result
    result = tree_map_only(torch.Tensor, FakeCudaTensor, result)
    return return_and_correct_aliasing(function, args, kwargs, result)


class _Mode(TorchDispatchMode):
    """Also operations without a tensor, such as ``torch.zeros``, are computed."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # so PyTorch does not look for a GPU

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


@contextlib.contextmanager
def fake_cuda(autocast: Optional[torch.dtype] = None):
    """Within it, ``device="cuda"`` works.

    Args:
        autocast: the dtype of an autocast over all; ``torch.autocast`` itself wants a GPU.
    """
    lifted = torch._C._only_lift_cpu_tensors()
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    torch._C._ensureCUDADeviceGuardSet()  # without a GPU, one that does nothing
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda"): first on the CPU
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # Module.to
    if autocast is not None:
        torch.set_autocast_dtype("cuda", autocast)
    torch.set_autocast_enabled("cuda", autocast is not None)
    try:
        with torch.backends.cudnn.flags(enabled=False), torch.no_grad(), _Mode():
            yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch.__future__.set_overwrite_module_params_on_conversion(overwritten)
