# Every target installs what it needs into .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check fmt lint build wheels coverage mutants chaos bench bench-queue peers clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo  ## Train examples/digits on 10 nodes for 10 rounds, on an embedded federation
	@$(BIN)/flq run examples/digits --nodes 10 --run-config num-rounds=10 --stream

test: $(VENV)/.dev  ## Run all tests: real Postgres, real Valkey, real processes
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev  ## Check format, lint rules, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test  ## Everything that must hold before a commit lands

fmt: $(VENV)/.dev  ## Format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

build: $(VENV)/.dev  ## Build sdist and wheel into dist/
	$(BIN)/python -m hatchling build --directory dist

wheels: $(VENV)/.dev  ## Try the wheel on each Python at hand, or on PYTHONS='python3.12 ...'
	$(BIN)/python -m tests.release $(PYTHONS)

bench: $(VENV)/.dev  ## Measure; writes benchmarks/results/
	$(BIN)/python -m benchmarks

bench-queue: $(VENV)/.dev .venv-peers/.peers  ## Measure the queue beside other queues
	$(BIN)/python -m benchmarks queue

coverage: $(VENV)/.dev  ## Show how much of flq/link its tests run; at least 95 % of lines and of branches
	$(BIN)/python -m tests.coverage_of_link --numprocesses 2 --dist loadfile

mutants: $(VENV)/.dev  ## Change the queue's SQL and Python, one place at a time, and see that a test notices
	$(BIN)/python -m tests.mutation $(MUTANTS)

chaos: $(VENV)/.dev  ## Kill everything, 200 times over 40 runs, and compare the models; writes benchmarks/results/
	$(BIN)/python -m tests.chaos

peers: .venv-peers/.peers  ## Install what the benchmarks measure beside flq into .venv-peers

clean:  ## Remove the environment and all caches
	rm -rf $(VENV) .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "flq needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.demo

.venv-peers/.peers: benchmarks/peers.txt | $(VENV)/pyvenv.cfg
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement benchmarks/peers.txt
	@touch $@
