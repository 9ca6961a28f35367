"""benchmarks/run.py: runs a benchmark, and writes its table into its page."""

import importlib.util
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

PAGE = "before\n<!-- head -->\nold\n<!-- /head -->\nafter\n"


@pytest.fixture
def benchmarks(tmp_path, monkeypatch):
    """The script, with one benchmark and one page, in a folder of its own."""
    path = Path(REPOSITORY, "benchmarks/run.py")
    spec = importlib.util.spec_from_file_location("benchmark_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("benchmarks", "docs"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(module, "HERE", tmp_path / "benchmarks")
    (tmp_path / "docs/performance.md").write_text(PAGE)
    return module


def run(module, monkeypatch, script, *words):
    (module.HERE / "head.py").write_text(script)
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    module.main()


def test_the_table_replaces_the_old_one(benchmarks, monkeypatch):
    run(benchmarks, monkeypatch, "print('| a |\\n|---|\\n| 1 |')", "head")
    page = benchmarks.page_of("head").read_text()
    assert page.startswith("before\n<!-- head -->\n20") and page.endswith("<!-- /head -->\nafter\n")
    assert "| a |\n|---|\n| 1 |\n<!-- /head -->" in page and "old" not in page


@pytest.mark.parametrize(
    ("script", "name", "error"),
    [
        ("import sys; sys.exit(1)", "head", "head.py failed"),
        ("", "heads", "no such benchmark: heads; there are detections"),
    ],
)
def test_a_failure_leaves_the_page(benchmarks, monkeypatch, script, name, error):
    with pytest.raises(SystemExit, match=error):
        run(benchmarks, monkeypatch, script, name)
    assert benchmarks.page_of("head").read_text() == PAGE
