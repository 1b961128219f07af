# `make` alone lists what can be done. Everything runs in .venv; nothing but PyPI is needed.

PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.installed
XDIST  ?= 2
ARGS   ?=
FIRST  := outputs/$(shell date +%Y-%m-%d_%H-%M-%S)_first_brain
# A file's tests stay in one process, so that what they share is made once; tests/conftest.py divides the threads.
PYTEST := $(BIN)/python -m pytest -n $(XDIST) --dist loadfile --durations=10

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast slurm-test soak lint format bench clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv and install everything; skipped while pyproject.toml and constraints.txt are unchanged

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is %d.%d; name another one: make setup PYTHON=python3.11" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (a minute or two the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(STAMP) ## new brains in minutes: VQ-VAE, then PixelCNN, one report; other runs by ARGS='model=vqvae data=oasis'
ifeq ($(ARGS),)
	@$(BIN)/python -m mri_synth.run experiment=first_brain hydra.run.dir=$(FIRST)/vqvae
	@$(BIN)/python -m mri_synth.run experiment=first_samples model.first_stage=$(FIRST)/vqvae/best.ckpt hydra.run.dir=$(FIRST)/pixelcnn
else
	@$(BIN)/python -m mri_synth.run $(ARGS)
endif

test: $(STAMP) lint ## all checks: lint, types, docstrings, every test; the ten slowest are named (XDIST=n processes)
	@$(PYTEST) $(ARGS)

test-fast: $(STAMP) lint ## lint, and the tests that take no more than a moment
	@$(PYTEST) -m 'not slow' $(ARGS)

slurm-test: $(STAMP) ## a sweep on a Slurm of one node, set up here (Debian, root): a job is taken away, queued again, and goes on
	@$(BIN)/python tests/slurm/sweep.py

soak: $(STAMP) ## every model on every data set, and 50 kills at random moments: 25 minutes at most; ARGS='--pairs 5 --kills 10'
	@PYTHONPATH=tests $(BIN)/python -m soak $(ARGS)

lint: $(STAMP) ## ruff, mypy --strict on the package, docstrings against signatures
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check --quiet || { $(BIN)/ruff format --check; echo "make format mends this"; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/pydoclint --quiet mri_synth

format: $(STAMP) ## rewrite the code as ruff wants it
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

bench: $(STAMP) ## one benchmark: make bench NAME=loader (or step); further arguments by ARGS=
	@test -n "$(NAME)" || { echo "name a benchmark: make bench NAME=$$(grep -l __main__ benchmarks/*.py | xargs -n1 basename -s .py | paste -sd '|')"; exit 2; }
	@$(BIN)/python -m benchmarks.$(NAME) $(ARGS)

clean: ## remove caches and builds; .venv and outputs/ stay
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .coverage
	@find mri_synth tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
