# Every target sets itself up: a fresh machine needs Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
VENV := .venv
JOBS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test lint check-slow docs docs-serve clean

help:
	@echo "make demo   train, sample and evaluate on the embedded generator; the comparison comes last (demo-run/)"
	@echo "make test   lint, then every test that is not slow; those that rounding could decide twice"
	@echo "make check-slow   the slow tests"
	@echo "make lint   ruff, mypy, and the floors of the architecture"
	@echo "make docs   the site, in site/; make docs-serve shows it while it is written"
	@echo "make install   $(VENV) with the package in editable mode; PYTHON=... picks the interpreter"
	@echo "make clean  remove $(VENV), demo-run and caches"

install: $(INSTALLED)

# torch and torchvision are resolved in one call, so that they fit; the stamp comes last, so that a broken install is redone.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, $(PYTHON) is not it; run: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo "cannot create $(VENV); on Debian or Ubuntu install the package python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	@PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh

# One thread a process: two processes that both use every core wait for each other most of the time.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"
	ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "rounding and not slow"

check-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

clean:
	rm -rf $(VENV) demo-run site .pytest_cache .mypy_cache .ruff_cache .hypothesis
