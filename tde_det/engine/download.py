"""Checkpoints that ``MODEL.WEIGHTS`` names by an address: downloaded once, into a cache."""

import contextlib
import http.client
import os
import socket
from typing import Iterator
from urllib.parse import urlparse

from detectron2.checkpoint.catalog import ModelCatalog, ModelCatalogHandler
from detectron2.utils.file_io import Detectron2Handler, PathManager
from iopath.common.file_io import get_cache_dir

from ..errors import InputError

TIMEOUT = 60.0  # seconds without an answer


def is_address(path: str) -> bool:
    """Whether a path is an address, such as ``detectron2://…`` or ``https://…``."""
    return "://" in path


def check_address(address: str) -> None:
    """Refuse an address whose file would be cached outside of the cache.

    Raises:
        InputError: naming it.
    """
    if ".." in address.split("/"):
        raise InputError(f"{address} has .. in its path, which could lead out of the cache")


def cached_file(address: str) -> str:
    """Where the file of an address is cached, whether or not it is there."""
    if address.startswith(ModelCatalogHandler.PREFIX):
        address = ModelCatalog.get(address[len(ModelCatalogHandler.PREFIX) :])
    if address.startswith(Detectron2Handler.PREFIX):
        address = Detectron2Handler.S3_DETECTRON2_PREFIX + address[len(Detectron2Handler.PREFIX) :]
    return os.path.join(get_cache_dir(), urlparse(address).path.lstrip("/"))


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # without, a firewall that drops packets is waited for
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fetch(address: str) -> None:
    """Download the file of an address, unless it is in the cache.

    Raises:
        InputError: it cannot be; with the reason, and where a copy of the file may be put.
    """
    check_address(address)
    address = urlparse(address)._replace(query="").geturl()  # which Detectron2 reads itself
    try:
        with _timeout():
            found = os.path.isfile(PathManager.get_local_path(address))
        reason = "no such file" if not found else ""
    except (OSError, http.client.HTTPException, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    if not reason:
        return
    ways = "set MODEL.WEIGHTS to a local file"
    with contextlib.suppress(RuntimeError):  # a name that the catalog does not know
        ways = f"put a copy at {cached_file(address)} (FVCORE_CACHE names the folder), or {ways}"
    raise InputError(f"MODEL.WEIGHTS {address} cannot be downloaded ({reason}): {ways}")
