#!/usr/bin/env python
"""Everything that is measured on a GPU, in pieces: call it again until it says that all is done.

In the order of importance: the tests of `pytest -m cuda`, the tables of docs/performance.md, the
rows of docs/benchmark.md's full shape. Each piece leaves NAME.txt, what it printed, and NAME.json
in --output; one that is done there is not done again. Exit status: 0 all is done, 1 a piece has
failed, 3 the time was over before, 4 there is no CUDA.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence

HERE = Path(__file__).resolve().parent
DONE, FAILED, TO_BE_CONTINUED, NO_CUDA = 0, 1, 3, 4
LEAST, GRACE = 20, 45  # seconds: less is not worth a start; for a piece to stop by itself
PIECES: Dict[str, List[str]] = {
    "tests": ["-m", "pytest", "-m", "cuda", "tests/test_cuda.py"],
    **{
        name: [str(HERE / "run.py"), "--device", "cuda", name]
        for name in ("head", "detections", "masks", "classifier")
    },
    # This one goes on where it stopped.
    "rows": [str(HERE / "longtail/run.py"), "--shape", "full", "--minutes", "{minutes}"],
}


def perform(name: str, words: Sequence[str], folder: Path, until: float) -> int:
    """Run a piece, with its output on the screen and in a file. Returns its status."""
    start, left = time.time(), until - time.time()
    command = [sys.executable, *(word.format(minutes=f"{left / 60:.2f}") for word in words)]
    print(f"{name}: {' '.join(command[1:])}", flush=True)
    pipe: Dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with (
        open(folder / f"{name}.txt", "w") as file,
        subprocess.Popen(command, cwd=HERE.parent, start_new_session=True, **pipe) as process,
    ):
        end = threading.Timer(left + GRACE, os.killpg, (process.pid, signal.SIGKILL))
        end.start()
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                file.write(line)
        except BaseException:  # Ctrl-C
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            end.cancel()
    status = process.returncode
    if status and time.time() >= until:
        status = TO_BE_CONTINUED
    result = {"status": status, "seconds": round(time.time() - start), "command": command[1:]}
    (folder / f"{name}.json").write_text(json.dumps(result))
    return status


def is_done(folder: Path, name: str) -> bool:
    path = folder / f"{name}.json"
    return path.exists() and json.loads(path.read_text())["status"] == DONE


def do_all(pieces: Dict[str, List[str]], folder: Path, until: float) -> int:
    """Do what is not done. A piece that fails does not stop the others."""
    folder.mkdir(parents=True, exist_ok=True)
    statuses = []
    for name, words in pieces.items():
        if is_done(folder, name):
            continue
        if until - time.time() < LEAST:
            statuses.append(TO_BE_CONTINUED)
            break
        statuses.append(perform(name, words, folder, until))
    if TO_BE_CONTINUED in statuses:
        print("The time is over: the same command continues.")
        return TO_BE_CONTINUED
    return FAILED if any(statuses) else DONE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=9, help="of a call (default: 9)")
    parser.add_argument("--output", type=Path, default=HERE.parent / "output/gpu")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("There is no CUDA here: nothing to measure.", file=sys.stderr)
        return NO_CUDA
    os.environ["PYTHONPATH"] = f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return do_all(PIECES, args.output, time.time() + 60 * args.minutes)


if __name__ == "__main__":
    sys.exit(main())
