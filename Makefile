# make quickstart   a virtual environment, the installation and the main job
# make test         the same environment, then lint, types and the tests of every kind
# make test-more    the same environment, then the tests marked `more`: further cases and long runs
# make test-all     lint, types and both, with the whole grid and every repeated run (hours)
# make docs         the site: README.md, docs/, notebooks/ and the docstrings as pages, in build/site
# make mutants      breaks the code in one place after the other: `make test` must notice each
# make bench        the throughput benchmarks
# make clean        removes the environment and every cache; runs/ stays
#
# PYTHON=/path/to/python3.12 chooses the interpreter; otherwise the first of python3, python3.12, python3.11 and
# python3.13 that is new enough and can make a virtual environment.

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
PY      := $(VENV)/bin/python
# Nothing is compiled to bytecode ahead: Python does that for the modules that are imported, a fifth of what is installed.
PIP     := $(PY) -m pip install -qq --no-compile --disable-pip-version-check --no-warn-script-location -c constraints.txt
STAMP   := $(VENV)/.installed
DEV     := $(VENV)/.installed-dev
DOCS    := $(VENV)/.installed-docs
PYTEST  := $(PY) -m pytest -n $(WORKERS) --dist worksteal

# Large arrays are page-faulted in 4 KiB at a time unless glibc may use huge pages: about 1.4x on CPU, no effect elsewhere.
RUN     := GLIBC_TUNABLES="$${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}" $(PY)

.PHONY: quickstart lint test test-more test-all docs mutants bench clean
.DELETE_ON_ERROR:

quickstart: $(STAMP)
	@$(RUN) -m train --config=configs/quickstart.py --workdir=runs/quickstart

lint: $(DEV)
	@echo "Lint and types"
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy

test: lint
	@echo "Tests of every kind; make test-more runs the rest"
	@$(PYTEST) -m "not more"

test-more: $(DEV) $(DOCS)
	@echo "The tests marked more: further cases and long runs"
	@$(PYTEST) -m more

test-all: export SAGAX_FULL = 1
test-all: lint $(DOCS)
	@echo "Every test, with the whole grid and every repeated run"
	@$(PYTEST)

docs: $(DOCS)
	@$(PY) -m sphinx -n -W --keep-going -q -c docs -d build/doctrees . build/site
	@echo "Open build/site/index.html"

mutants: $(DEV)
	@$(PY) -m tests.mutants

bench: $(STAMP)
	@$(RUN) -m benchmarks

$(STAMP): setup.py constraints.txt pyproject.toml
	@set -e; \
	usable='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(PY) -c "$$usable" >/dev/null 2>&1; then \
		found=; \
		for candidate in $(PYTHON) python3.12 python3.11 python3.13; do \
			if $$candidate -c "$$usable" >/dev/null 2>&1; then found=$$candidate; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "Sagax needs Python 3.11 or newer, with the venv module. Found: $$($(PYTHON) --version 2>&1 || true)." >&2; \
			echo "Install one (on Debian: apt install python3-venv), or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
			exit 2; \
		fi; \
		if [ -f $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi; \
		$$found -m venv $(VENV); \
	fi; \
	echo "Installing Sagax into $(VENV) with $$($(PY) --version) (once; a few minutes)"; \
	$(PIP) -e .; \
	touch $@

$(DEV): $(STAMP)
	@echo "Installing what the tests need besides (once)"
	@$(PIP) -e '.[dev]'
	@touch $@

$(DOCS): $(STAMP)
	@echo "Installing what the site needs besides (once)"
	@$(PIP) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
