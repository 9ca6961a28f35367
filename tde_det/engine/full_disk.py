"""Logs and events go without what a full disk does not take; the training does not."""

import atexit
import contextlib
import logging
import sys
import threading

from detectron2.utils.events import EventWriter

logger = logging.getLogger(__name__)


class TolerantWriter(EventWriter):
    """One of Detectron2's event writers, whose failures are a warning, one for each reason."""

    def __init__(self, writer: EventWriter):
        self._writer, self._reported = writer, ""

    def write(self) -> None:
        with self._tolerant():
            self._writer.write()

    def close(self) -> None:
        with self._tolerant():
            self._writer.close()

    @contextlib.contextmanager
    def _tolerant(self):
        try:
            yield
        except OSError as error:
            if str(error) != self._reported:
                self._reported = str(error)
                name = type(self._writer).__name__
                logger.warning("%s cannot write, events are lost: %s", name, error)


def _close(stream) -> None:
    with contextlib.suppress(OSError):
        stream.close()


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread raises what its writer raises, too; other errors are printed."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def tolerate_full_disk() -> None:
    """Let ``log.txt`` and events lack lines rather than print a traceback for each.

    The console has all lines of the log.
    """
    logging.raiseExceptions = False
    threading.excepthook = _thread_ended
    for name in ("detectron2", "fvcore", "tde_det"):
        for handler in logging.getLogger(name).handlers:
            stream = getattr(handler, "stream", None)
            if stream is not None and stream not in (sys.stdout, sys.stderr):
                atexit.register(_close, stream)  # before Detectron2 does, who would raise
