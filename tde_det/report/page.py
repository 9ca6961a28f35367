"""The files of a page that opens from disk: html, scripts, style, and data as scripts.

A page opened as a file may not fetch others, but may load scripts: so data are scripts too.
"""

import json
import math
import os
import shutil
from importlib import resources
from typing import Any

import numpy as np

from ..errors import InputError
from ..output_files import check_writable

ASSETS = ("index.html", "style.css", "page.js", "table.js", "charts.js", "gallery.js")
FOLDERS = ("data", "images", "thumbnails")
REPORT = "report"  # of the script by which a report is known
_DIGITS = 4  # of numbers on the page, behind the point


def plain(value: Any) -> Any:
    """What json can hold: arrays as lists, numbers rounded, None for what is no finite number."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), _DIGITS) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def write_script(folder: str, name: str, variable: str, value: Any) -> None:
    """Write ``data/NAME.js``, which sets a variable."""
    text = json.dumps(plain(value), separators=(",", ":"), allow_nan=False)
    with open(os.path.join(folder, "data", f"{name}.js"), "w") as f:
        f.write(f"const {variable} = {text};\n")


def check_folder(folder: str) -> None:
    """Find out whether a report can be written to a folder, without harm to what is there.

    Raises:
        InputError: it cannot be written, or has what is not of an earlier report.
    """
    if not os.path.isfile(os.path.join(folder, "data", f"{REPORT}.js")):
        for name in (*FOLDERS, *ASSETS):
            if os.path.exists(os.path.join(folder, name)):
                raise InputError(
                    f"--output {folder} has {name} of something else: name another folder"
                )
    check_writable(os.path.join(folder, "index.html"))


def prepare_folder(folder: str) -> None:
    """Copy the page's own files; what an earlier report has left in :data:`FOLDERS` goes."""
    from plotly.offline import get_plotlyjs

    data = os.path.join(folder, "data")
    os.makedirs(data, exist_ok=True)
    write_script(folder, REPORT, "REPORT", None)  # an interrupted report is known as one
    for path in [entry.path for entry in os.scandir(data) if entry.name != f"{REPORT}.js"]:
        os.unlink(path)
    for name in ("images", "thumbnails"):
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    assets = resources.files(__package__).joinpath("assets")
    for name in ASSETS:
        with open(os.path.join(folder, name), "wb") as f:
            f.write(assets.joinpath(name).read_bytes())
    with open(os.path.join(folder, "plotly.min.js"), "w", encoding="utf-8") as f:
        f.write(get_plotlyjs())
