# Everything runs in .venv, which is made on first need from constraints.txt (exact versions and hashes).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
UV ?= uv
# One pytest worker per core, 8 at most: each worker holds its own JAX. `WORKERS=0` runs in one process.
WORKERS ?= logical
# Passed on to the command behind the target: make demo ARGS=--help
ARGS ?=

BIN := .venv/bin
READY := .venv/.installed
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check # errors only
PYTEST := $(BIN)/pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal

.PHONY: help install demo test test-all lint format notebooks bench bench-full bench-gpu results claims claims-page rivals constraints clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(READY) ## Make .venv (the other targets do so on their own); PYTHON= names the interpreter

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "jaxrnn needs Python 3.11 or newer, and '$(PYTHON)' is not: name one, as in make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing jaxrnn and its pinned dependencies into .venv (a minute or two)"
	@$(PYTHON) -m venv .venv
	@$(PIP) --require-hashes -r constraints.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## Train three cells on real digits and take their gradients apart: runs/demo (resumes)
	$(BIN)/jaxrnn demo --out runs/demo $(if $(wildcard runs/demo/config.json),--resume) $(ARGS)

# Workers share an accelerator, so none may take its memory in advance. What is compiled, half of the time, is
# kept for the other workers, the processes that tests start, and the next time.
test test-all: export XLA_PYTHON_CLIENT_PREALLOCATE := false
test test-all: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/programs
test test-all: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
test test-all: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1

test: $(READY) ## Run the fast tests and the docstring examples
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(READY) ## Run the slow tests too
	$(PYTEST) $(ARGS)

lint: $(READY) ## Check formatting, style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

format: $(READY) ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

notebooks: $(READY) ## Execute every notebook
	$(BIN)/pytest --nbmake notebooks/*.ipynb $(ARGS)

bench: $(READY) ## Measure speed against Flax, and PyTorch and Keras if installed (minutes; run nothing beside it)
	$(BIN)/python -m benchmarks $(ARGS)

bench-full: $(READY) ## Measure everything; write docs/speed.md, the README's table and figure (an hour)
	$(BIN)/python -m benchmarks --full $(ARGS)

bench-gpu: $(READY) ## Measure against cuDNN on a GPU (needs a jax and a PyTorch that see it); writes benchmarks/results
	$(BIN)/python -m benchmarks.gpu

results: $(READY) ## Train on published tasks; writes docs/results.md (two hours; what is there is gone on with)
	$(BIN)/python -m benchmarks.learning $(ARGS)

claims: $(READY) ## Measure every claim into docs/evidence and write docs/claims.md (half an hour; goes on with what is there)
	$(BIN)/jaxrnn claims run --all --scale full --out docs/evidence --resume $(ARGS)
	$(MAKE) claims-page

claims-page: $(READY) ## Write docs/claims.md from the records in docs/evidence (seconds)
	$(BIN)/jaxrnn claims report docs/evidence --page docs/claims.md

rivals: $(READY) ## Install PyTorch, Keras and lyapax beside jaxrnn, for the benchmarks
	$(PIP) torch==2.13.0 keras lyapax

define CONSTRAINTS_HEADER
# Every dependency of jaxrnn, its `dev` extra and its build backend, for all platforms and Python >= 3.11.
# Generated from pyproject.toml by `make constraints` (newest versions: `make constraints ARGS=--upgrade`).
# Used by the Makefile: pip install --require-hashes -r constraints.txt
endef
export CONSTRAINTS_HEADER

constraints: ## Pin the dependencies anew (maintainers; needs uv); ARGS=--upgrade moves to the newest
	@command -v $(UV) >/dev/null || { echo "make constraints needs uv: pip install uv, or name it with UV=" >&2; exit 1; }
	@$(UV) pip compile pyproject.toml --quiet --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --output-file constraints.txt $(ARGS)
	@{ echo "$$CONSTRAINTS_HEADER"; cat constraints.txt; } > constraints.tmp && mv constraints.tmp constraints.txt

clean: ## Remove .venv, build products and caches; runs/ stays
	rm -rf .venv build dist .cache .pytest_cache .ruff_cache .hypothesis
	find . -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -not -path './.git/*' -prune -exec rm -rf {} +
