"""benchmarks/gpu.py: pieces that are done, fail, take too long, and go on."""

import json
import subprocess
import sys
import time

import gpu
import pytest
import torch
from conftest import REPOSITORY
from run import BENCHMARKS, ON_DEVICE, page_of


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_without_cuda_it_says_so_in_one_line():
    command = [sys.executable, "benchmarks/gpu.py"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == gpu.NO_CUDA and not done.stdout
    assert done.stderr == "There is no CUDA here: nothing to measure.\n"


def statuses(folder):
    return {p.stem: json.loads(p.read_text())["status"] for p in folder.glob("*.json")}


def test_a_failure_does_not_stop_the_others_and_is_tried_again(tmp_path):
    once = f"import pathlib, sys; f = pathlib.Path({str(tmp_path / 'flag')!r}); print('tried')"
    once += "; sys.exit(5 if not f.exists() and not f.touch() else 0)"
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x'); print('counted', {{minutes}} > 0)"
    pieces = {"first": ["-c", once], "second": ["-c", count.replace("{{", "{").replace("}}", "}")]}
    assert gpu.do_all(pieces, tmp_path, time.time() + 60) == gpu.FAILED
    assert statuses(tmp_path) == {"first": 5, "second": 0}
    assert (tmp_path / "second.txt").read_text() == "counted True\n"
    assert gpu.do_all(pieces, tmp_path, time.time() + 60) == gpu.DONE
    assert statuses(tmp_path) == {"first": 0, "second": 0}
    assert (tmp_path / "count").read_text() == "x"  # not done again


def test_a_piece_that_takes_too_long_is_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST", 0.5)
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    pieces = {"long": ["-c", "import time; print('begun', flush=True); time.sleep(60)"]}
    pieces["next"] = ["-c", "print(1)"]
    start = time.time()
    assert gpu.do_all(pieces, tmp_path, start + 5) == gpu.TO_BE_CONTINUED
    assert time.time() - start < 30
    assert statuses(tmp_path) == {"long": gpu.TO_BE_CONTINUED}
    assert (tmp_path / "long.txt").read_text() == "begun\n"
    pieces["long"] = ["-c", "import sys; sys.exit(3)"]  # as the runner of rows says it
    assert gpu.do_all(pieces, tmp_path, time.time() + 60) == gpu.TO_BE_CONTINUED
    assert statuses(tmp_path) == {"long": 3, "next": 0}


def test_every_table_has_a_place():
    for name in BENCHMARKS:
        assert f"<!-- {name} -->" in page_of(name).read_text()
    measured = {
        words[-1] for words in gpu.PIECES.values() if "run.py" in words[0] and len(words) == 4
    }
    assert measured < set(ON_DEVICE) and len(measured) == 4
    for name in measured:
        assert f"<!-- {name}_cuda -->" in page_of(f"{name}_cuda").read_text()
