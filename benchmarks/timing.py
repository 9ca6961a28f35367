"""Two competitors timed in turn in one process."""

import ctypes
import statistics
import time
from pathlib import Path
from typing import Any, Callable, List, Tuple

HEADER = "| item | stock | tde_det | times faster | spread |\n|---|---|---|---|---|"


def alternate(
    stock: Callable[[], Any], ours: Callable[[], Any], repeats: int = 9
) -> Tuple[List[float], List[float]]:
    """Seconds of each run, one competitor after the other so that a busy machine slows both."""
    stock(), ours()  # warm up
    times: Tuple[List[float], List[float]] = ([], [])
    for _ in range(repeats):
        for function, seconds in zip((stock, ours), times):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return times


def spread(stock: List[float], ours: List[float]) -> str:
    """The middle half of the ratios of neighbouring runs."""
    ratios = [a / max(b, 1e-9) for a, b in zip(stock, ours)]
    if len(ratios) < 2:
        return ""
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"{low:.2f}–{high:.2f}"


def print_row(item: str, stock: List[float], ours: List[float], unit: str = "ms") -> None:
    """Medians, their ratio, and its spread; seconds are printed as ms unless told otherwise."""
    factor, digits = {"ms": (1000, 1), "s": (1, 1), "MiB": (1, 0)}[unit]
    medians = [statistics.median(values) for values in (stock, ours)]
    cells = " | ".join(f"{factor * median:,.{digits}f} {unit}" for median in medians)
    print(
        f"| {item} | {cells} | {medians[0] / medians[1]:.2f} | {spread(stock, ours)} |", flush=True
    )


def print_memory_row(item: str, stock: float, ours: float) -> None:
    ratio = stock / max(ours, 0.1)
    print(f"| {item} | {stock:,.1f} MiB | {ours:,.1f} MiB | {ratio:.2f} | |", flush=True)


def peak_memory(function: Callable[[], Any]) -> float:
    """MiB by which a call raises the process's memory at most (Linux)."""
    function()  # what stays allocated for good is not counted
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what is free
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    function()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
