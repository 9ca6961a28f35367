"""Signals by which a scheduler asks a training to stop. Imports nothing heavy."""

import contextlib
import os
import signal
import sys
import threading
from typing import Any, Callable, Iterator

# What SLURM, Kubernetes and torchrun send; SLURM's --signal=USR1@120 comes before its SIGTERM.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Exit code of a program that was asked to stop and can go on with --resume: EX_TEMPFAIL, "try
# again later". It differs from 1 (an error) and 143 (ended by SIGTERM).
STOPPED = os.EX_TEMPFAIL


def exit_when_asked() -> None:
    """From now on, end this program with :data:`STOPPED` at the first stop signal."""

    def stop(number: int, _: Any) -> None:
        name = signal.Signals(number).name
        print(f"Stopped by {name}: the same command goes on", file=sys.stderr, flush=True)
        sys.exit(STOPPED)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)


def ignore_stop_signals(*_: Any) -> None:
    """In a worker of a data loader: a signal to all processes must not end it before its parent."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def on_stop_signals(handler: Callable[[int], None]) -> Iterator[None]:
    """Call ``handler`` with the number of each stop signal, in this process, not in its children.

    Does nothing outside of the main thread, where Python does not allow it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pid = os.getpid()
    before = {
        number: signal.signal(number, lambda n, _: handler(n) if os.getpid() == pid else None)
        for number in STOP_SIGNALS
    }
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)
