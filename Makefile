# Every target makes the environment that it needs, in .venv, from the locks in requirements/.
# `make help` lists the targets.

PYTHON ?= python3
OUT ?= runs/demo
JOBS ?= 2
PYTEST_ARGS ?=
LOCK_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
# The locks are complete, so nothing is resolved here: --no-deps installs exactly what they name.
INSTALL := $(PIP) install --no-deps
LOCK := $(BIN)/uv pip compile setup.py - --universal --python-version 3.11 --fork-strategy fewest \
  --extra train --extra data --extra eval --extra filters --extra simulate --extra serve --extra docs --extra dev \
  --no-emit-package libsvm-official --no-annotate \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"
SOURCES := $(wildcard bagpiper_jax experiments data tests benchmarks docs notebooks setup.py)

.PHONY: help demo test test-full test-tpu lint bench docs lock clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed  ## short training, then a report of the committed checkpoint in runs/demo
	$(BIN)/bagpiper report --out $(OUT)

test: $(VENV)/.installed  ## the tests, without the slow ones
	$(BIN)/pytest -q -n $(JOBS) -m "not slow" tests $(PYTEST_ARGS)

test-full: $(VENV)/.installed-full  ## all tests; installs PyTorch
	$(BIN)/pytest -q -n $(JOBS) tests $(PYTEST_ARGS)

test-tpu: $(VENV)/.installed-tpu  ## the tests that compile for TPUs; installs libtpu, on Linux alone
	$(BIN)/pytest -q -m slow tests/test_aot.py tests/test_collectives.py $(PYTEST_ARGS)

lint: $(VENV)/.installed  ## style and formatting
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

bench: $(VENV)/.installed  ## run every file in benchmarks/
	@set -e; for f in $(wildcard benchmarks/*.py); do echo "== $$f"; $(BIN)/python "$$f"; done

docs: $(VENV)/.installed  ## the API reference, from the docstrings, in docs/build
	$(BIN)/python docs/api.py

# It keeps the versions that are there; LOCK_ARGS=--upgrade takes the newest that setup.py admits.
# Left out: libsvm-official, which needs a C++ compiler and serves only ViSQOL's 48 kHz mode, and
# the CUDA parts of PyTorch, which `pip install torch` adds where the build at hand wants them.
lock: $(VENV)/.uv  ## write requirements/*.txt anew from setup.py
	echo "setuptools>=77" | $(LOCK) --extra convert --extra beam --extra notebook --extra probes -o requirements/full.txt $(LOCK_ARGS) >/dev/null
	sed -i.bak -E '/^(nvidia|cuda|triton)[a-z0-9-]*==/d' requirements/full.txt
	rm requirements/full.txt.bak
	echo "setuptools>=77" | $(LOCK) -c requirements/full.txt -o requirements/lock.txt $(LOCK_ARGS) >/dev/null

clean:  ## remove the environment and all caches; runs/ stays
	rm -rf $(VENV) build dist docs/build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is missing or older than Python 3.11; name one: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: requirements/lock.txt setup.py pyproject.toml | $(VENV)/bin/python
	@echo "Installing the locked packages into $(VENV): 2.1 GB on disk, one to four minutes."
	$(INSTALL) -r requirements/lock.txt
	$(INSTALL) --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-full: requirements/full.txt $(VENV)/.installed
	$(PIP) install -c requirements/full.txt torch==2.13.0
	$(INSTALL) -r requirements/full.txt
	@touch $@

# libtpu is 0.7 GB on disk; JAX names its version
$(VENV)/.installed-tpu: $(VENV)/.installed
	$(PIP) install -c requirements/lock.txt "jax[tpu]"
	@touch $@

$(VENV)/.uv: | $(VENV)/bin/python
	$(PIP) install uv
	@touch $@
