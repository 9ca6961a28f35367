"""Download archives so that a broken connection costs nothing and a wrong file is never used."""

import hashlib
import os
import shutil
import time
import zipfile
from pathlib import Path
from typing import Optional

import requests
from requests import exceptions
from tqdm import tqdm

from ..errors import InputError

_CHUNK = 1 << 20
_TIMEOUT = (15, 60)  # seconds to connect, and between two reads
_ATTEMPTS = 6  # in a row without a single new byte


class _Retry(Exception):
    """A failure that trying again may cure."""


def download(url: str, target: Path, digest: Optional[str] = None, wait: float = 1.0) -> None:
    """Fetch a file, continuing an earlier attempt, and move it to ``target`` once verified.

    The unfinished file is ``target`` plus ``.part``; it survives an interruption of the program.

    Args:
        url: http(s) address.
        target: final path.
        digest: md5 or sha256, in hex; not compared if None.
        wait: seconds before the second attempt; doubled each time without progress.

    Raises:
        InputError: the server refuses, stops answering, or serves another file.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.exists()
    while True:
        _fetch_all(url, part, wait)
        found = digest and _digest_of(part, digest)
        if found == digest:
            part.replace(target)
            return
        part.unlink()
        if not resumed:
            raise InputError(
                f"{url} has checksum {found}, expected {digest}: the file was deleted. Try again "
                "later, another --base-url, or --checksums if the server's version is right."
            )
        resumed = False  # what an earlier attempt left may have been the wrong half


def _fetch_all(url: str, part: Path, wait: float) -> None:
    """Append to ``part`` until it has all bytes of ``url``."""
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(url, part, before)
            return
        except (exceptions.InvalidSchema, exceptions.InvalidURL, exceptions.MissingSchema) as error:
            raise InputError(f"{url} is not an address to download from: {error}") from None
        except (requests.RequestException, _Retry) as error:
            after = part.stat().st_size if part.exists() else 0
            fruitless = 0 if after > before else fruitless + 1
            if fruitless == _ATTEMPTS:
                raise InputError(
                    f"{url}: gave up after {_ATTEMPTS} attempts ({error}). {after:,} bytes are "
                    f"kept in {part}; run the same command again to continue."
                ) from None
            time.sleep(wait * 2**fruitless)
        except OSError as error:  # a full disk, most likely
            raise InputError(f"{part} cannot be written: {error}") from None


def _fetch_rest(url: str, part: Path, offset: int) -> None:
    """One request for the bytes from ``offset`` on."""
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    headers["Accept-Encoding"] = "identity"  # sizes and ranges are those of the file itself
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == 416:  # nothing after offset: complete, or longer than the file
            if response.headers.get("Content-Range", "").rpartition("/")[2] != str(offset):
                part.unlink()
                raise _Retry("the unfinished file did not fit the server's")
            return
        if response.status_code >= 500 or response.status_code == 429:
            raise _Retry(f"the server answered {response.status_code} {response.reason}")
        if response.status_code not in (200, 206):
            raise InputError(
                f"{url}: the server answered {response.status_code} {response.reason}. Check the "
                "address, or name another server with --base-url."
            )
        if response.status_code == 200:
            offset = 0  # the server does not continue files
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise InputError(f"{url}: the server answers range requests with other ranges")
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length else None
        with (
            open(part, "ab" if offset else "wb") as file,
            tqdm(
                total=total,
                initial=offset,
                desc=part.stem,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
            ) as progress,
        ):
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size < total:
        raise _Retry(f"the connection ended at {size:,} of {total:,} bytes")


def _digest_of(path: Path, like: str) -> str:
    """md5 or sha256 of a file, whichever has the length of ``like``."""
    algorithm = {32: hashlib.md5, 64: hashlib.sha256}.get(len(like))
    if algorithm is None:
        raise InputError(f"checksum {like!r} is neither an md5 nor a sha256")
    digest = algorithm()
    with (
        open(path, "rb") as file,
        tqdm(total=path.stat().st_size, desc="checking", unit="B", unit_scale=True) as progress,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress.update(len(chunk))
    return digest.hexdigest()


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
            for name in tqdm(names, f"extracting {member}", unit="file"):
                content.extract(name, unfinished)
    except (zipfile.BadZipFile, OSError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise InputError(f"{archive} cannot be extracted to {target}: {error}") from None
    os.replace(unfinished / member, target)
    shutil.rmtree(unfinished)
