# Everything here does its own set-up: `make demo` and `make test` need CPython >= 3.10 and make.
# PYTHON=... chooses the interpreter, VENV=... where its environment goes.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all torture coverage lint format bench docs clean FORCE

VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
PYTEST := $(PY) -m pytest -n auto --maxprocesses 8 --dist worksteal
PYTEST_ARGS ?=
BENCH_ARGS ?=
LINTED := pmshelve tests benchmarks demo examples tools/*.py

help:
	@echo "make demo      the main job on this machine's own Python library, and what it measured"
	@echo "make test      the test suite"
	@echo "make lint      ruff, mypy, import layers, spelling, and the coverage of the last 'make coverage'"
	@echo "make coverage  the test suite with branch coverage"
	@echo "make test-all  the test suite under every CPython >= 3.10 of this machine"
	@echo "make torture   the model, crash, fault and concurrency tests in their long form"
	@echo "make docs      the documentation, with search and an API reference, in build/site"
	@echo "make bench     the benchmarks against peers (docs/performance.md)"
	@echo "make format    let ruff rewrite what it can"
	@echo "make clean     remove environments, caches and build products"

demo: $(VENV)/.run
	@$(PY) demo/library.py

test: $(VENV)/.test
	$(PYTEST) $(PYTEST_ARGS)

torture: $(VENV)/.test
	PMSHELVE_PROFILE=torture $(PYTEST) tests/model tests/crash tests/faults tests/concurrency $(PYTEST_ARGS)

test-all:
	@failed=; first=1; \
	while read -r version python; do \
	    echo "=== CPython $$version"; \
	    if [ $$first ]; then venv=$(VENV); first=; else venv=.venvs/$$version; fi; \
	    $(MAKE) --no-print-directory test VENV=$$venv PYTHON=$$python </dev/null \
	        || failed="$$failed $$version"; \
	done <<< "$$(tools/pythons)"; \
	if [ "$$failed" ]; then echo "failed under CPython$$failed"; exit 1; fi
test-all: SHELL := bash

coverage: $(VENV)/.test
	$(PYTEST) --cov --cov-report= $(PYTEST_ARGS)
	@$(PY) -m coverage report

lint: $(VENV)/.lint
	$(PY) -m ruff check $(LINTED)
	$(PY) -m ruff format --check $(LINTED)
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m codespell_lib
	$(PY) -m validate_pyproject pyproject.toml
	@if [ -f .coverage ]; then $(PY) -m coverage report; else echo "no coverage measured yet (make coverage)"; fi

format: $(VENV)/.lint
	$(PY) -m ruff check --fix $(LINTED)
	$(PY) -m ruff format $(LINTED)

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "build/site/index.html; with search: $(PY) -m http.server -d build/site"

bench: $(VENV)/.bench
	$(PY) -m benchmarks.run $(BENCH_ARGS)

clean:
	rm -rf .venv .venvs build dist .coverage .coverage.* htmlcov .hypothesis .import_linter_cache
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find pmshelve tests benchmarks demo examples -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment.  Each stamp stands for one set of packages and goes stale with pyproject.toml.
# An environment that does not run, or that a copied or moved clone brought along, is made again.

ifneq ($(shell $(PY) -c pass 2>/dev/null && cat $(VENV)/.made 2>/dev/null),$(CURDIR))
$(VENV)/.made: FORCE
endif

$(VENV)/.made:
	@set -e; \
	python="$(PYTHON)"; \
	[ "$$python" ] || python="$$(tools/pythons | sed -n '1s/^[^ ]* //p')"; \
	if [ -z "$$python" ]; then \
	    echo "no CPython >= 3.10 with venv and pip was found; say which: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "making $(VENV) with $$python"; \
	rm -rf $(VENV); \
	"$$python" -m venv $(VENV); \
	$(PIP) 'pip>=22'; \
	echo "$(CURDIR)" >$@

$(VENV)/.run: $(VENV)/.made pyproject.toml
	$(PIP) -e .
	@touch $@

# Where pandas or pyarrow have no wheel, the tests that need them skip.
$(VENV)/.test: $(VENV)/.made pyproject.toml
	$(PIP) --only-binary numpy,pandas,pyarrow -e '.[test]' \
	    || { echo "going on without the optional peers"; $(PIP) -e '.[test-core]'; }
	@touch $@

$(VENV)/.docs: $(VENV)/.made pyproject.toml
	$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/.lint: $(VENV)/.made pyproject.toml
	$(PIP) -e '.[lint]'
	@touch $@

$(VENV)/.bench: $(VENV)/.made pyproject.toml
	$(PIP) --only-binary numpy,lmdb,plyvel -e '.[bench]' \
	    || { echo "going on without the peers"; $(PIP) -e .; }
	@touch $@
