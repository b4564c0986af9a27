# Everything runs in .venv, which `make setup` builds; the commands below work on a fresh machine with Python 3.11+ and make.

PYTHON ?= python3
TEST ?= tests

BOOTSTRAP := build/bootstrap
UV := $(BOOTSTRAP)/bin/uv
BIN := .venv/bin
READY := .venv/.ready
# Two files of tests at a time, one thread each.
PARALLEL := -n 2 --dist loadfile
SOURCES := $(foreach folder,harness tasks tune benchmarks,$(if $(wildcard $(folder)/*.py),$(folder)))

# Without bytecode every start compiles torch and the rest again: more than twice the seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo lint types imports test test-fast check golden bench format clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(MAKEFILE_LIST) | awk '{name = $$1; $$1 = ""; printf "  make %-10s%s\n", name, $$0}'

setup: $(READY) ## the environment in .venv, as constraints.txt pins it

$(UV): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1): Python 3.11 or newer is needed; make setup PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv --clear $(BOOTSTRAP)
	$(BOOTSTRAP)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@touch $@

# The stamp is taken away before the installation and set after it: a .venv without one is half made, and made anew.
# DS_BUILD_OPS=0: DeepSpeed comes as source, and building its kernels would need a compiler.
$(READY): pyproject.toml constraints.txt | $(UV)
	@if test -f $@; then rm $@; else rm -rf .venv && $(UV) venv --quiet --python $(BOOTSTRAP)/bin/python .venv; fi
	@echo "Installing into .venv; PyTorch and its CUDA libraries make it about 6 GB"
	DS_BUILD_OPS=0 $(UV) pip install $$(test -t 1 || echo --quiet) --python $(BIN)/python \
	    --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Two threads: more do not pay at 8x8 pixels, and CPU results depend on their number.
demo: export OMP_NUM_THREADS ?= 2
demo: setup ## the main job on real handwritten digits, in about a minute
	$(BIN)/ddad distill digits

lint: setup ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## ruff, mending what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## mypy, strict
	$(BIN)/mypy $(SOURCES)

imports: setup ## import-linter: who may import what
	$(BIN)/lint-imports

test: setup ## the whole test suite, or a part: make test TEST=tests/unit/test_losses.py
	$(BIN)/python -m pytest $(PARALLEL) $(TEST)

test-fast: setup ## all but the slow tests
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow' $(TEST)

check: lint types imports test ## all of the above, as CI runs it

golden: setup ## the golden curves: unchanged numerics stay within 1e-5
	$(BIN)/python -m pytest tests/golden

bench: export OMP_NUM_THREADS ?= 2
bench: setup ## what the harness costs beside a bare loop, on digits
	$(BIN)/ddad teach digits
	$(BIN)/python -m benchmarks.overhead

clean: ## removes what the targets above made, .venv too; runs/, teachers/ and data/ stay
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find $(SOURCES) tests -name __pycache__ -prune -exec rm -rf {} +
