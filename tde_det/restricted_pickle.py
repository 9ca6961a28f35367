"""Read the pickles of Detectron2's model zoo without running what a pickle may ask for.

A pickle names functions to call. Here it can name none but those of ``ALLOWED``. They make NumPy
arrays and scalars of plain numbers or text, and Python's containers. NumPy's own functions are not
among them: the ``dtype`` that they restore is whatever the file says, and one with false flags
makes NumPy follow pointers of the file.
"""

import pickle
from collections import OrderedDict
from typing import Any, Callable, Dict, Union

import numpy as np

from .errors import InputError

_KINDS = "biufcSU"  # truth values, numbers and text; no objects, no fields


class _Dtype:
    """Stands for ``numpy.dtype``; of what a file says it keeps the type's name and byte order."""

    def __init__(self, name: str, *_: Any):
        self.plain = np.dtype(str(name))
        if self.plain.kind not in _KINDS:
            raise pickle.UnpicklingError(f"it has an array of dtype {name}")

    def __setstate__(self, state: Any) -> None:
        self.plain = self.plain.newbyteorder(state[1])


class _Array(np.ndarray):
    """``numpy.ndarray``, filled only with a :class:`_Dtype`'s plain numbers."""

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, is_fortran, data = state
        super().__setstate__((version, shape, dtype.plain, is_fortran, data))


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """``_codecs.encode`` and ``bytes`` as Python 3 writes them for Python 2."""
    return str(text).encode("latin1")


def _scalar(dtype: _Dtype, data: Union[str, bytes]) -> Any:
    return np.frombuffer(_bytes(data) if isinstance(data, str) else data, dtype.plain)[0]


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: str) -> np.ndarray:
    return np.frombuffer(data, dtype.plain).reshape(shape, order="F" if order == "F" else "C")


_NUMPY: Dict[str, Callable] = {
    "multiarray._reconstruct": lambda *_: np.ndarray.__new__(_Array, (0,)),
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _from_buffer,
}
ALLOWED: Dict[str, Any] = {
    "numpy.ndarray": None,  # an argument of _reconstruct, never called
    "numpy.dtype": _Dtype,
    **{f"numpy.{core}.{name}": made for core in ("core", "_core") for name, made in _NUMPY.items()},
    "_codecs.encode": _bytes,
    "collections.OrderedDict": OrderedDict,
    **{
        f"{module}.{name}": made
        for module in ("builtins", "__builtin__")
        for name, made in (
            *(("bytes", _bytes), ("set", set), ("frozenset", frozenset), ("complex", complex)),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ALLOWED:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which could run a program: from a pickle only NumPy "
                "arrays, numbers, text and containers are read"
            )
        return ALLOWED[f"{module}.{name}"]


def read_pickle(path: str) -> Any:
    """The content of a pickle of NumPy arrays, numbers, text and containers.

    Raises:
        InputError: it holds anything else, which has not been run, or is no pickle.
    """
    try:
        with open(path, "rb") as f:
            return _Unpickler(f, encoding="latin1").load()
    except Exception as error:  # a broken pickle can make Python raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"it is not read: {reason}") from error
