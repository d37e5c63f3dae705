# make demo    the main job on the embedded world: judge, alignment, evaluation, report
# make test    the fast tests; make test-all adds the slow, ray, postgres and browser ones
# make ray     installs Ray and runs the tests that start one (included in make test-all once Ray is installed)
# make desk    the tests in Chromium and on PostgreSQL, which must be installed
# make check   format, lint, types, contracts of imports, the page of the command line
# make gpu     the gpu tests and the GPU's figures as one table (docs/results/gpu.md); installs nothing
# make assets  rebuild the shipped weights from scratch (hours; resumes)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
.PHONY: demo test test-all ray desk check bench gpu assets format

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[web,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/rewarddance demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m 'not gpu' --timeout 900

ray: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt 'ray[data]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray --timeout 900

MARKS ?= browser or postgres
desk: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '$(MARKS)' --timeout 900

check: $(STAMP)
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m rewarddance.apps.docs --check

format: $(STAMP)
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

bench: $(STAMP)
	for b in candidates rank round_robin training_step; do $(BIN)/python benchmarks/$$b.py || exit 1; done

gpu:
	PYTHONPATH=src:$$PYTHONPATH $(PYTHON) -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'make gpu: no CUDA device here; nothing was run')"
	export PYTHONPATH=src:tests/helpers:$$PYTHONPATH; status=0; \
	timeout 150 $(PYTHON) -m pytest -q -m gpu tests/test_gpu.py || status=1; \
	$(PYTHON) benchmarks/gpu.py --minutes 5 --out docs/results/gpu.md || status=1; \
	exit $$status

assets: $(STAMP)
	$(BIN)/rewarddance build
