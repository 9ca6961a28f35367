# Thin on purpose: the work is in tools/ and tde_det/.
PYTHON ?= python3

.PHONY: demo test bench gpu site clean

demo: .venv/.complete
	.venv/bin/python tools/quickstart.py

# A process and a thread for each core; a file's tests share what one of them has trained.
test: .venv/.complete
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

# Rewrites the tables of docs/performance.md; DETECTRON2_DATASETS for the last of them.
bench: .venv/.complete
	.venv/bin/python benchmarks/run.py

# README and docs/ as web pages in output/site, which open from disk.
site: .venv/.complete
	.venv/bin/pip install --quiet "mkdocs<2" "mkdocs-material<10" mkdocs-same-dir
	DISABLE_MKDOCS_2_WARNING=true .venv/bin/mkdocs build --quiet

# Tests and measures on a GPU, for 9 minutes; call it again until all is done.
gpu: .venv/.complete
	.venv/bin/python benchmarks/gpu.py

# Made anew only when what it installs has changed.
.venv/.complete: setup.py tools/setup_env.py
	$(PYTHON) tools/setup_env.py

clean:
	rm -rf .venv output datasets/mini_lvis
