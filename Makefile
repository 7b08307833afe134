# All commands run in .venv. The first target that needs .venv creates it.
# Variables: PYTHON (interpreter for .venv), PORT (dashboard), ARGS (more arguments for the command).

PYTHON ?=
PORT   ?= 5000
ARGS   ?=

UV_VERSION = 0.13.9
VENV       = .venv
BIN        = $(VENV)/bin
INSTALLED  = $(VENV)/.tvg-installed
ONE_THREAD = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST     = $(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile -rs

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-distributed test-all lint format bench bench-gpu dashboard lock clean

help: ## print this list
	@echo "usage: make TARGET"
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  %-16s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## create .venv and install the pinned dependencies and tvg

demo: $(INSTALLED) ## generate videos, train (SFT, then GRPO) and evaluate on CPU
	$(BIN)/tvg-train experiment=demo $(ARGS)

test: $(INSTALLED) ## run the fast tests
	$(PYTEST) -m "not slow and not distributed" $(ARGS)

test-slow: $(INSTALLED) ## run the slow tests: kills, signals, full disks, several ranks, the wheel
	$(PYTEST) -m slow --timeout 900 $(ARGS)

test-distributed: $(INSTALLED) ## compare each strategy on two CPU processes with one process
	DS_ACCELERATOR=cpu $(PYTEST) -n 0 -m distributed --timeout 900 $(ARGS)

test-all: $(INSTALLED) ## run all tests, including the slow ones
	$(PYTEST) $(ARGS)

lint: $(INSTALLED) ## check style, format, types and layers, without changes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## format the code and apply automatic fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## run the benchmarks in experiments/benchmarks
	@if ls experiments/benchmarks/*.py >/dev/null 2>&1; then \
	  for script in experiments/benchmarks/*.py; do \
	    echo "== $$script"; $(BIN)/python "$$script" $(ARGS) || exit 1; \
	  done; \
	else \
	  echo "no benchmarks found: experiments/benchmarks/ contains no *.py"; \
	fi

bench-gpu: $(INSTALLED) ## time GRPO at the 3B and 7B shapes: a step on one GPU, and runs with ZeRO
	$(BIN)/python experiments/benchmarks/common/gpu.py $(ARGS)
	$(BIN)/python experiments/benchmarks/common/gpu_runs.py

dashboard: $(INSTALLED) ## serve the MLflow dashboard on 127.0.0.1 (PORT=5000); Ctrl-C stops it
	@echo "MLflow on http://127.0.0.1:$(PORT) in about half a minute; Ctrl-C stops it"
	@exec env MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $(PORT) --workers 1

lock: $(BIN)/uv ## update requirements.lock from pyproject.toml and constraints.txt
	$(BIN)/uv pip compile -q --no-header --no-emit-index-url --extra dev --python-version 3.11 \
	  --universal -c constraints.txt pyproject.toml -o requirements.lock $(ARGS)

clean: ## remove caches and build files; keep .venv, runs/ and mlflow.db
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
	  .hypothesis .coverage .coverage.* htmlcov
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up -------------------------------------------------------------------------------------

# flash-attn is an extra, not in the lock: it needs a GPU machine.
$(INSTALLED): requirements.lock pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps -e .
	@touch $@

$(BIN)/uv:
	@for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python3.14 python); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  found=yes; \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; \
	  echo "creating $(VENV) with $$python ($$("$$python" --version))"; \
	  "$$python" -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv==$(UV_VERSION); \
	  exit $$?; \
	done; \
	if [ "$$found" = yes ]; then \
	  echo "make: the Python found (>= 3.11) cannot create virtual environments: install its venv" \
	    "package (on Debian and Ubuntu: apt install python3-venv)" >&2; \
	else \
	  echo "make: no Python >= 3.11 found$(if $(PYTHON), at PYTHON=$(PYTHON),: install one," \
	    "or name it with make PYTHON=/path/to/python3)" >&2; \
	fi; exit 1
