# The two commands: `make train` and `make test`; both run `make setup`. The rest is for developers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SPEC ?= jobs/examples/fashion.yaml

.DEFAULT_GOAL := help
.PHONY: help setup data tools train test slow soak lint format bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## create .venv and install everything, pinned
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || \
	  { echo "cannot create a virtual environment: install python3-venv (apt-get install python3-venv)"; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

data:  ## install the Fashion-MNIST package of Debian and Ubuntu, if possible
	@deploy/install-packages.sh dataset-fashion-mnist

tools: data  ## install the tools of some tests: Prometheus, Alertmanager, a browser, PostgreSQL
	@deploy/install-packages.sh prometheus prometheus-alertmanager chromium postgresql

train: setup data  ## train a guarded ResNet on real images, and inject faults that it survives
	@$(BIN)/gradguard train $(SPEC) --overwrite

PYTEST = $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test: setup tools  ## run the tests, within 20 minutes on 2 cores
	@$(PYTEST) -m "not slow and not soak" $(ARGS)

slow: setup tools  ## run the longer tests: more Ray clusters, deaths, browsers, every command of the documents
	@$(PYTEST) -m "slow and not soak" $(ARGS)

soak: setup tools  ## run the tests that take minutes each: elastic jobs, other world sizes, out of memory
	@$(BIN)/python -m pytest -q -m soak $(ARGS)

lint: setup  ## lint, format check, type check, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: setup  ## format the code
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

bench: setup data  ## measure everything; QUICK=1: within 10 minutes; TRACES=folder: the detector on a folder of logs
	@$(BIN)/python tests/benchmarks/suite.py $(if $(QUICK),--quick) $(if $(TRACES),--traces "$(TRACES)") $(ARGS)

release: setup  ## check version and changelog, build wheel and source archive, try the wheel; uploads nothing
	@$(BIN)/python -m tests.tools.release

clean:  ## remove the virtual environment and caches; jobs are kept
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
