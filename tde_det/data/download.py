"""Download archives so that a broken connection costs nothing and a wrong file is never used."""

import hashlib
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from pathlib import Path
from typing import List

import requests
from tqdm import tqdm

from ..errors import InputError

_CHUNK = 1 << 20
_TIMEOUT = (15, 60)  # seconds to connect, and between two reads
_ATTEMPTS = 6  # in a row without a single new byte
_LARGEST_RATIO = 100  # of extracted to packed bytes; annotations have about 5
_ALGORITHMS = {32: hashlib.md5, 64: hashlib.sha256}  # by the length of the digest


def download(url: str, target: Path, digest: str, wait: float = 1.0) -> None:
    """Fetch a file, continuing an earlier attempt, and move it to ``target`` once verified.

    The unfinished file is ``target`` plus ``.part``; it survives an interruption of the program.

    Args:
        url: http(s) address.
        target: final path.
        digest: md5 or sha256, in hex.
        wait: seconds before the second attempt; doubled each time without progress.

    Raises:
        InputError: the server refuses, stops answering, or serves another file.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url} is not an address to download from")
    if len(digest) not in _ALGORITHMS:
        raise InputError(f"checksum {digest!r} is neither an md5 nor a sha256")
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    was_there = part.exists()
    _fetch_all(url, part, wait)
    checksum = _ALGORITHMS[len(digest)]()
    total = part.stat().st_size
    with open(part, "rb") as raw, tqdm.wrapattr(raw, "read", total, desc="checking") as file:
        while chunk := file.read(_CHUNK):
            checksum.update(chunk)
    found = checksum.hexdigest()
    if found == digest:
        part.replace(target)
        return
    part.unlink()
    if was_there:  # what an earlier attempt left may have been of another file
        return download(url, target, digest, wait)
    raise InputError(
        f"{url} has checksum {found}, expected {digest}: the file was deleted. Try again later or "
        "from another server, or give the right checksum if the server's version is right."
    )


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _fetch_all(url: str, part: Path, wait: float) -> None:
    """Append to ``part`` until it has all bytes of ``url``."""
    fruitless = 0
    while True:
        before = _size(part)
        try:
            return _fetch_rest(url, part, before)
        except requests.RequestException as error:
            size = _size(part)
            fruitless = 0 if size > before else fruitless + 1
            if fruitless == _ATTEMPTS:
                raise InputError(
                    f"{url}: gave up after {_ATTEMPTS} attempts ({error}). {size:,} bytes are "
                    f"kept in {part}; run the same command again to continue."
                ) from None
            time.sleep(wait * 2**fruitless)
        except OSError as error:  # a full disk, most likely
            raise InputError(f"{part} cannot be written: {error}") from None


def _fetch_rest(url: str, part: Path, offset: int) -> None:
    """One request for the bytes from ``offset`` on."""
    headers = {"Accept-Encoding": "identity"}  # sizes and ranges are those of the file itself
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        status = f"the server answered {response.status_code} {response.reason}"
        if response.status_code == 416:  # nothing after offset; the checksum tells if all is well
            return
        if response.status_code >= 500 or response.status_code == 429:
            raise requests.HTTPError(status)
        if response.status_code not in (200, 206):
            raise InputError(f"{url}: {status}. Check the address, or try another server.")
        if response.status_code == 200:
            offset = 0  # the server does not continue files
        total = offset + int(response.headers.get("Content-Length", 0))
        with (
            open(part, "ab" if offset else "wb") as raw,
            tqdm.wrapattr(raw, "write", total or None, desc=part.stem, initial=offset) as file,
        ):
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
            size = raw.tell()
    if size < total:
        raise requests.ConnectionError(f"the connection ended at {size:,} of {total:,} bytes")


def _check_members(content: zipfile.ZipFile, names: List[str], target: Path) -> None:
    """Refuse names that lead elsewhere, links, and more than there can be or than fits.

    zipfile itself unpacks no more of a member than the size that is checked here.
    """
    members = [content.getinfo(name) for name in names]
    for member in members:
        is_outside = ".." in re.split(r"[/\\]", member.filename) or os.path.isabs(member.filename)
        if is_outside or stat.S_ISLNK(member.external_attr >> 16):
            raise zipfile.BadZipFile(f"{member.filename} is a link or leads out of the folder")
    size, packed = (sum(getattr(m, key) for m in members) for key in ("file_size", "compress_size"))
    if size > _LARGEST_RATIO * packed + _CHUNK:
        raise zipfile.BadZipFile(f"{packed:,} bytes would become {size:,}, too many for real data")
    free = shutil.disk_usage(target.parent).free
    if size > free:
        raise OSError(f"it needs {size:,} bytes, {free:,} are free")


def extract(archive: Path, member: str, target: Path) -> None:
    """Take one file or folder out of a zip archive; ``target`` appears only when complete.

    Args:
        archive: the zip file.
        member: name in the archive, without trailing slash.
        target: path the member gets.

    Raises:
        InputError: the archive is damaged or lacks the member.
    """
    unfinished = target.with_name(target.name + ".extracting")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as content:
            names = [n for n in content.namelist() if n == member or n.startswith(f"{member}/")]
            if not names:
                raise InputError(f"{archive} does not contain {member}")
            _check_members(content, names, target)
            content.extractall(unfinished, tqdm(names, f"extracting {member}", unit="file"))
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise InputError(f"{archive} cannot be extracted to {target}: {error}") from None
    os.replace(unfinished / member, target)
    shutil.rmtree(unfinished)
