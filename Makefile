# Works on a machine that has Python 3.10 or later and make, nothing else.
PYTHON ?= python3
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

BIN := .venv/bin
# Only the benchmarks need it; every package that it needs is locked already.
TRL := 1.16.0

.DEFAULT_GOAL := help
.PHONY: help setup test check demo docs bench lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 picks another interpreter; PYTEST_ARGS='-k store' goes to pytest"

setup:  ## create .venv with the locked versions (quick when nothing changed)
	@$(PYTHON) scripts/setup.py $(if $(filter file,$(origin PYTHON)),,--this-python)

test: setup  ## the floors of the import graph, then every test
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup  ## ruff, mypy and the floors of the import graph
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

demo: setup  ## what query, key and value each add to persona dialogue: trained, compared, reported
	$(BIN)/lorascope demo $(DEMO_ARGS)

docs: setup  ## the documentation as a site, in build/site
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/site
	@echo "build/site/index.html"

bench: setup  ## Lorascope against PEFT, TRL and generate (BENCH_ARGS, see benchmarks/README.md)
	@$(BIN)/python -c "import trl" 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps "trl==$(TRL)" \
		|| echo "bench: trl is not to be had; its sides will be reported as failed" >&2
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

lock: setup  ## resolve requirements.lock anew
	$(BIN)/python scripts/setup.py --lock

clean:  ## remove .venv, caches and build outputs; runs/ stays
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
