# make train    install sfactory with MinAtar, then train Breakout (2 to 9 minutes)
# make test     install everything, then run lint, types and all tests that CI runs (13 to 20 minutes on 2 cores)
# make faults   kill, stop and starve real runs: the table of docs/faults.md (5 minutes)
# make lint     ruff check and ruff format --check
# make types    mypy
# make slow     tests that take more than a few seconds, and the whole of large tables (20 minutes)
# make learn    train to a score (4 hours)
# make soak     minutes of random faults (25 minutes)
# make gpu      tests and benchmarks that need CUDA
# make docs     write the generated pages and pictures of docs/ (3 minutes)
# make scores   train every preset and write docs/scores.md (20 hours; run again to continue; ARGS='--only classic/')
# make site     build the documentation site, build/site/index.html, without a network (half a minute)
# make dist     build a source archive and a wheel in dist/, and check them
# make clean    delete the virtual environment and build files
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
.DEFAULT_GOAL := help
# The tests start hundreds of processes: they must find the sources compiled.
unexport PYTHONDONTWRITEBYTECODE
# pip compiles on one core, and tests of packages too, which nothing imports: this was most of the installation. Some
# packages contain files that are no Python 3, hence `true`.
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib/python*/site-packages || true
.PHONY: help train test lint types faults slow learn soak gpu docs scores site dist clean

help:
	@sed -n 's/^# make/make/p' Makefile

# torch is installed first, by its exact version: otherwise pip may choose a version with gigabytes of CUDA packages.
$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "sfactory needs Python 3.11 or newer, this is %d.%d; run: make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q --no-compile '$(TORCH)' numpy -c constraints.txt

$(VENV)/.run: $(BIN)/python setup.cfg constraints.txt
	$(BIN)/python -m pip install -q --no-compile -e '.[minatar]' -c constraints.txt
	$(COMPILE)
	@touch $@

$(VENV)/.dev: $(BIN)/python setup.cfg constraints.txt
	$(BIN)/python -m pip install -q --no-compile -e '.[dev]' -c constraints.txt
	$(COMPILE)
	@touch $@ $(VENV)/.run

train: $(VENV)/.run
	$(BIN)/sfactory train minatar/breakout $(ARGS)

test: lint types
	$(BIN)/python -m pytest -n 2 --ignore tests/system
	$(BIN)/python -m pytest -n 3 --dist loadscope tests/system

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

faults: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 tests/system -m 'faults and not soak and not slow and not alone'
	$(BIN)/python -m pytest tests/system -m 'alone and not soak'

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'slow or browser' --timeout 600

learn: $(VENV)/.dev
	$(BIN)/python -m pytest -m learn --timeout 7200

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m soak --timeout 900

gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu --timeout 600
	$(BIN)/python benchmarks/gpu.py --write benchmarks/results/gpu.md

docs: $(VENV)/.dev
	$(BIN)/python docs/make.py
	$(BIN)/python docs/pictures.py panel compare report
	$(MAKE) site
	$(BIN)/python docs/pictures.py site

scores: $(VENV)/.dev
	$(BIN)/python benchmarks/preset_scores.py $(ARGS)

# Links and warnings are errors, because a page that GitHub shows wrongly is wrong here too.
$(VENV)/.site: $(BIN)/python setup.cfg constraints.txt
	$(BIN)/python -m pip install -q -e '.[docs]' -c constraints.txt
	@touch $@

site: $(VENV)/.site
	rm -rf build/site
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html -c docs . build/site
	@echo build/site/index.html

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
