"""The demo, on a tiny mini_lvis."""

import json

import pytest
from test_tools import OPTS, TINY
from tool_runs import run_tool

from tde_det.data.mini_lvis import build

build_mini_lvis = build.build_mini_lvis


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(build, "build_mini_lvis", lambda root, _: build_mini_lvis(root, TINY))


@pytest.mark.slow
def test_ends_with_a_table_and_a_report_and_continues(tmp_path, capfd):
    out = tmp_path / "demo"
    assert run_tool("quickstart", "--output", out, *OPTS)[0] == 0
    rows = ("linear", "de-confounded", "TDE")
    printed = capfd.readouterr().out
    for name in rows:
        metrics = json.loads((out / name / "inference/metrics.json").read_text())
        lines = [line for line in printed.splitlines() if line.startswith(f"| {name} ")]
        shown = [line.split("|")[2].strip() for line in lines]
        assert shown == [f"{metrics[task]['AP']:.2f}" for task in ("bbox", "segm")]
    page = (out / "report/data/report.js").read_text()
    assert all(f'"{name}"' in page for name in rows)
    trained = (out / "linear/model_final.pth").stat().st_mtime_ns
    assert run_tool("quickstart", "--output", out, *OPTS)[0] == 0
    assert (out / "linear/model_final.pth").stat().st_mtime_ns == trained


@pytest.mark.slow
def test_ends_with_the_first_command_that_fails(tmp_path, capfd):
    code, _ = run_tool("quickstart", "--output", tmp_path / "demo", *OPTS, "SOLVER.BASE_LR", "fast")
    assert code == 1 and "SOLVER.BASE_LR" in capfd.readouterr().err
    assert not (tmp_path / "demo/TDE").exists()
