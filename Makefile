# Torpor's set-up and checks. `make help` lists what there is.
# Set-up is kept in stamps under .venv: what is done is not done again.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where pip's own index has no CPU build of PyTorch.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := $(shell sed -n 's/^torch==/torch==/p' requirements.lock)
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --no-deps
NODE_CLIENT := tests/e2e/node
SOURCES := gateway engines tenants metering coldstart tests loadtest
CONFIG := torpor.toml
# So that a name on this host never stands between a command and the gateway on loopback.
export NO_PROXY := 127.0.0.1,localhost
export no_proxy := 127.0.0.1,localhost

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

.PHONY: up
up: setup ## Set everything up and start the gateway (DETACH=1: return when it is ready)
	@$(BIN)/torpor setup --config $(CONFIG)
ifdef DETACH
	@$(BIN)/torpor start --config $(CONFIG)
	@$(BIN)/torpor hello --config $(CONFIG)
else
	@exec $(BIN)/torpor serve --hello --config $(CONFIG)
endif

.PHONY: down
down: ## End the gateway and every engine
	@if [ -x $(BIN)/torpor ] && [ -f $(CONFIG) ]; then $(BIN)/torpor stop --config $(CONFIG); \
	else echo "no gateway is running"; fi

.PHONY: test
test: setup node ## Every test, with a gateway and data of its own
	@$(BIN)/python -m pytest $(PYTEST)

.PHONY: check
check: packages ## Lint, format, types and layering
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_layering.py

.PHONY: setup
setup: packages ## Only set everything up
	@$(BIN)/python -m engines.prepare models

.PHONY: clean
clean: down ## Remove what the set-up made, the gateway's data and configuration excepted
	rm -rf $(VENV) models $(NODE_CLIENT)/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf -- *.egg-info
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: lock
lock: packages ## Resolve requirements.lock anew
	@$(BIN)/python -m engines.lock >requirements.lock.new
	@mv requirements.lock.new requirements.lock

# One set-up at a time, also of two makes.
.PHONY: packages
packages: machine
	@exec 9>.setup.lock; flock 9; $(MAKE) -s $(VENV)/.torpor

.PHONY: machine
machine:
	@fail() { echo "torpor: $$1" >&2; exit 1; }; \
	[ "$$(uname -sm)" = "Linux x86_64" ] || fail "this needs Linux on x86-64, not $$(uname -sm)"; \
	command -v flock >/dev/null || fail "flock is missing: apt-get install util-linux"; \
	command -v $(PYTHON) >/dev/null || fail "$(PYTHON) is missing: apt-get install python3 python3-venv"; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	    fail "Python 3.11 is needed, $(PYTHON) is $$($(PYTHON) -V); name another with PYTHON=..."; \
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || fail "venv is missing: apt-get install python3-venv"

$(VENV)/.python:
	@echo "virtual environment: making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.lock: requirements.lock $(VENV)/.python
	@echo "PyTorch: installing $(TORCH)"
	@$(PIP) "$(TORCH)" || $(PIP) --index-url $(TORCH_INDEX) "$(TORCH)"
	@echo "packages: installing $$(grep -c == requirements.lock) pins (a few minutes the first time)"
	@started=$$SECONDS; $(PIP) -r requirements.lock; echo "packages: installed in $$((SECONDS - started)) s"
	@$(BIN)/python -c 'import torch, vllm; print("packages: vLLM", vllm.__version__, "with torch", torch.__version__)'
	@touch $@

$(VENV)/.torpor: pyproject.toml $(VENV)/.lock
	@$(PIP) --no-build-isolation -e .
	@touch $@

# The official Node client, and the Node that it requires.
.PHONY: node
node: packages
	@exec 9>.setup.lock; flock 9; $(MAKE) -s $(NODE_CLIENT)/node_modules/.made

$(NODE_CLIENT)/node_modules/.made: $(NODE_CLIENT)/package.json $(NODE_CLIENT)/package-lock.json
	@command -v npm >/dev/null || { echo "torpor: npm is missing: apt-get install npm" >&2; exit 1; }
	@echo "node client: installing"
	@cd $(NODE_CLIENT) && npm ci --silent --no-audit --no-fund
	@touch $@
