# The verbs of this repository. Each installs what it needs into .venv; a fresh machine needs only
# Python >= 3.11, make and the package registries.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Parallel test processes. The suite is built for 2 cores.
JOBS ?= 2
SECONDS ?= 60
OPERATIONS ?= 10000
SESSIONS ?= 20
# of `make bench-router`: which loads and proxies (none named: all), half-second slices for each, and another
# checkout whose Router is measured, too
LOADS ?=
PEERS ?=
SLICES ?= 8
BEFORE ?=
PEERS_STAMP := benchmarks/router/.peers/.installed
GENERATORS := async_to_sync lifecycle_diagram syscalls_page cli_page api_pages sdk_page

.DEFAULT_GOAL := help
.PHONY: help install demo test test-large test-unprivileged soak simulate simulate-breaks fuzz check format bench bench-router docs lock clean

help:  ## List the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

$(STAMP): pyproject.toml requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "agentcube needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "cannot make a virtual environment: on Debian and Ubuntu, apt install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

install: $(STAMP)  ## Make .venv with everything in it

demo: $(STAMP)  ## Start AgentCube on a free port, run a real session end to end, clean up
	@$(BIN)/agentcube demo

test: $(STAMP)  ## Run the tests (parallel ones, then those that count what the machine holds)
	@$(BIN)/agentcube env create default
	$(BIN)/python tools/run_tests.py -q -n $(JOBS) -m "not serial and not large"
	$(BIN)/python tools/run_tests.py -q -n 0 -m "serial and not large"

test-large: $(STAMP)  ## Run the tests that move gigabytes: some minutes, 7 GB of disk
	@$(BIN)/agentcube env create default
	$(BIN)/python -m pytest -q -n 0 -m large

test-unprivileged: $(STAMP)  ## As root: run the sandbox tests again as an ordinary user, in a copy of the tree
	@sh tools/test_unprivileged.sh

soak: $(STAMP)  ## OPERATIONS (10000) mixed calls over SESSIONS (20) through a network that cuts, SEED= to repeat
	@$(BIN)/agentcube env create default
	$(BIN)/python -m tests.soak --operations $(OPERATIONS) --sessions $(SESSIONS) $(if $(SEED),--seed $(SEED))

simulate: $(STAMP)  ## Simulate the control plane: SEEDS= fresh runs, or what SECONDS (60) allow; SEED= repeats one
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),$(if $(SEEDS),--seeds $(SEEDS),--seconds $(SECONDS)))

simulate-breaks: $(STAMP)  ## Break the product on purpose in thirteen ways: the simulation must find each
	$(BIN)/python -m pytest -q -n 0 -p no:randomly tests/simulation/worth.py

fuzz: $(STAMP)  ## Fuzz the HTTP/1.1 parser against llhttp for SECONDS (60)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
	PYTHONPATH=. $(BIN)/python tests/fuzz/http1_fuzz.py $(SECONDS)

check: $(STAMP)  ## Lint, format, types, import contracts, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@for tool in $(GENERATORS); do $(BIN)/python tools/$$tool.py --check || exit 1; done

format: $(STAMP)  ## Format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(STAMP)  ## Measure; the figures go to benchmarks/RESULTS.md by hand, with command and machine
	$(BIN)/python -m benchmarks.sessions
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.processes
	$(BIN)/python -m benchmarks.inside
	$(BIN)/python -m benchmarks.store
	$(BIN)/python -m benchmarks.shared_store
	$(BIN)/python -m benchmarks.sleep

bench-router: $(STAMP)  ## The Router beside other proxies; LOADS=hot,calm PEERS=haproxy,go for a part of it
	@test -e $(PEERS_STAMP) -a ! $(PEERS_STAMP) -ot requirements/bench.txt || { \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --upgrade \
			--target benchmarks/router/.peers -r requirements/bench.txt && touch $(PEERS_STAMP); } || \
		echo "the other proxies could not be installed; those that are missing are skipped"
	$(BIN)/python -m benchmarks.router --loads "$(LOADS)" --peers "$(PEERS)" --slices $(SLICES) $(if $(BEFORE),--before $(BEFORE))

docs: $(STAMP)  ## Make what is generated from code again: reference pages, the SDK's sync half
	@for tool in $(GENERATORS); do $(BIN)/python tools/$$tool.py || exit 1; done

lock: $(STAMP)  ## Resolve dependencies again into requirements/dev.txt (no registry addresses in it)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --all-extras --group dev pyproject.toml -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --group fuzz -o requirements/fuzz.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --group bench -o requirements/bench.txt

clean:  ## Remove what the verbs made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
