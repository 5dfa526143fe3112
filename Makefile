# Everything works on a fresh machine that has Python 3.11 or newer, and make.
PYTHON ?= python3
BIN := .venv/bin
CORE := src/limbeck/core.py,src/limbeck/taps.py,src/limbeck/train/loop.py,src/limbeck/connectors.py,src/limbeck/schedules.py,src/limbeck/methods/*

.PHONY: setup demo test check lint types coverage wheel docs clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "limbeck needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@echo 'installing into .venv: a few minutes, and up to 6 GB where PyTorch comes with CUDA'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/limbeck demo

# The tests of a file run in one process, so that what they share is made once; tests/conftest.py puts the longest first.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report= $(TESTS)

# What CI runs; `make test` comes first, for coverage reads what it left.
check: test
	$(MAKE) -j 2 lint types coverage wheel docs

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

coverage: setup
	$(BIN)/coverage report --fail-under=95
	$(BIN)/coverage report --include='$(CORE)' --fail-under=100

wheel: setup
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .
	$(BIN)/python tests/import_wheel.py dist/*.whl

# The site, in build/docs. Warnings, such as a link to a page that does not exist, are errors.
docs: setup
	$(BIN)/typer limbeck.cli utils docs --name limbeck --title "Command line" --output docs/command-line.md
	rm -rf build
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/docs

clean:
	rm -rf .venv build dist .coverage .mypy_cache .ruff_cache .pytest_cache
