# Two commands do everything on a fresh machine with python3 (>= 3.11), git and make:
#   make quickstart   set up .venv, then run the main job: raw rows to an evaluated, gated, exported, served model
#   make test         set up .venv, then pass all tests
# Set-up is skipped while it is current: the stamp's name holds what was installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt Makefile | cksum | cut -d' ' -f1)
# Real data sets and models for tests and benchmarks; what needs them skips without them.
TUNESMITH_TEST_DATA ?= $(wildcard ../shared)
export TUNESMITH_TEST_DATA
WORKSPACE ?= tunesmith-work

.PHONY: help setup quickstart check test gpu bench reliability docs clean

help:
	@grep -E '^#  ' Makefile; printf '  %s\n' "make check        format, lint, layers, unit tests" "make bench        the figures of the README, into benchmarks/results/" "make reliability  the harnesses behind what durable training promises, all of them; goes on where it was cut off" "make gpu          tests that need a CUDA device" "make docs         the generated pages of docs/"

setup: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "tunesmith needs python >= 3.11, and $(PYTHON) is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "setting up $(VENV) (once; a few minutes, about 1.5 GB)"
	@$(PYTHON) -m venv --clear $(VENV)
	@DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0 --editable '.[all,test,dev]'
	@touch $(STAMP)

quickstart: $(STAMP)
	@$(BIN)/python examples/quickstart/make_data.py examples/quickstart/data
	@$(BIN)/tunesmith run examples/quickstart/recipe.yaml --workspace $(WORKSPACE)

check: $(STAMP)
	@$(BIN)/ruff format --check src tests benchmarks examples tools
	@$(BIN)/ruff check src tests benchmarks examples tools
	@$(BIN)/python -m pytest tests/contract tests/unit

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python tools/run_tests.py

reliability: $(STAMP)
	@$(BIN)/python benchmarks/reliability

gpu: $(STAMP)
	@$(BIN)/python -m pytest tests/gpu -m gpu

clean:
	@rm -rf $(VENV) build dist src/*.egg-info
