#!/usr/bin/env python3
"""Create .venv with everything tde_det needs. Uses only Python's standard library.

Detectron2, which PyPI does not carry, comes from the first of these that works:

1. the one that the Python running this script can import already;
2. upstream git at a fixed commit, compiled here;
3. where GitHub cannot be reached (or nothing compiles): the Python layer of a redistribution on
   PyPI, verified by its sha256. It lacks compiled operators that tde_det does not use.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"
PYTHON = VENV / "bin" / "python"

TORCH = ["torch==2.14.1", "torchvision==0.29.1"]  # built for each other
# Older than 81 for pkg_resources, which Detectron2 imports.
BUILD_TOOLS = ["setuptools<81", "wheel", "ninja"]

DETECTRON2_URL = "https://github.com/facebookresearch/detectron2"
DETECTRON2_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
REDISTRIBUTION = "sal-detectron2==0.7.2"
REDISTRIBUTION_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
LACKING = "without compiled operators: no rotated boxes, no deformable convolution, slower COCO AP"


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def pip(*args: str) -> None:
    """Run the environment's pip, showing its progress."""
    command = [str(PYTHON), "-m", "pip", *args, "--disable-pip-version-check"]
    subprocess.run(command, check=True, cwd=REPOSITORY)


def import_detectron2(python: str) -> dict:
    """Version and place of the Detectron2 that ``python`` imports; empty if it cannot."""
    code = (
        "import json, detectron2, torch, os; from detectron2 import model_zoo;"
        "print(json.dumps([detectron2.__version__, os.path.dirname(detectron2.__file__)]))"
    )
    # From elsewhere than this folder, whose tools/ and tests/ must not count as packages.
    result = subprocess.run(
        [python, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd="/"
    )
    if result.returncode:
        return {}
    version, place = json.loads(result.stdout.splitlines()[-1])
    return {"version": version, "place": place}


def create_venv() -> None:
    """Make .venv; if the outer Python has Detectron2, let .venv see the outer packages too."""
    outer = import_detectron2(sys.executable)
    say(f"creating {VENV} with Python {sys.version.split()[0]}")
    try:
        venv.EnvBuilder(with_pip=True, clear=True).create(VENV)
    except (subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"Cannot create {VENV}: {error}\nOn Debian: apt-get install python3-venv")
    if outer:
        # A .pth file rather than --system-site-packages, which skips an active environment.
        site = sysconfig.get_path("purelib", vars={"base": str(VENV), "platbase": str(VENV)})
        outer_sites = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        Path(site, "outer_environment.pth").write_text("\n".join(sorted(outer_sites)) + "\n")


def github_answers() -> bool:
    """Whether the pinned repository can be reached, asked with a time limit."""
    if not shutil.which("git"):
        return False
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    command = ["git", "ls-remote", "--exit-code", DETECTRON2_URL, "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, timeout=30, env=environment)
    except subprocess.TimeoutExpired:
        return False
    return result.returncode == 0


def install_redistribution() -> None:
    """Put the redistribution's ``detectron2`` package, without its binary, into .venv."""
    purelib = subprocess.run(
        [str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        # Its wheel is tagged for CPython 3.10; the Python layer runs on later versions too.
        pip(
            *("download", REDISTRIBUTION, "--no-deps", "--only-binary=:all:", "--dest", folder),
            *("--python-version", "3.10", "--implementation", "cp", "--abi", "none"),
            *("--platform", "any"),
        )
        (wheel,) = Path(folder).glob("*.whl")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != REDISTRIBUTION_SHA256:
            sys.exit(
                f"{wheel.name} has sha256 {digest}, expected {REDISTRIBUTION_SHA256}: not "
                "installed. Check the package index in use, or install Detectron2 yourself."
            )
        with zipfile.ZipFile(wheel) as archive:
            members = [n for n in archive.namelist() if n.startswith("detectron2/")]
            archive.extractall(purelib, [n for n in members if not n.endswith(".so")])


def install_detectron2() -> str:
    """Install Detectron2 unless it is there; return a line on which one was taken."""
    kept = import_detectron2(str(PYTHON))
    if kept:
        return f"Detectron2 {kept['version']} kept, from {kept['place']}"
    if github_answers():
        say("compiling Detectron2 from upstream git, a few minutes")
        try:
            pip(
                *("install", "--no-build-isolation"),
                f"detectron2 @ git+{DETECTRON2_URL}@{DETECTRON2_COMMIT}",
            )
            return f"Detectron2 from upstream git, commit {DETECTRON2_COMMIT[:8]}, complete"
        except subprocess.CalledProcessError:
            say("upstream Detectron2 did not compile here; falling back")
    install_redistribution()
    return f"Detectron2 from PyPI's {REDISTRIBUTION} (Python layer, sha256 verified), {LACKING}"


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python3 tools/setup_env.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    if sys.version_info < (3, 10):
        sys.exit(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    os.environ.setdefault("PIP_ROOT_USER_ACTION", "ignore")
    if not PYTHON.exists():
        create_venv()
    # Leaves an installed torch alone, whatever its version, if the pair is complete.
    complete = subprocess.run([str(PYTHON), "-c", "import torch, torchvision"], capture_output=True)
    if complete.returncode:
        say("installing torch and torchvision")
        pip("install", *TORCH)
    say("installing build tools and dependencies")
    pip("install", *BUILD_TOOLS)
    pip("install", "--no-build-isolation", "-e", ".[detectron2-deps,pretrained,dev]")
    line = install_detectron2()
    if not import_detectron2(str(PYTHON)):
        sys.exit(f"{line}, but it cannot be imported: try `{PYTHON} -c 'import detectron2'`")
    (VENV / ".complete").write_text(line + "\n")
    say(line)


if __name__ == "__main__":
    main()
