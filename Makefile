# `make` alone lists the targets. Nothing is needed beforehand but Python >= 3.11 with venv and pip.

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
COMPARE_ARGS ?= --problem digits-mlp,digits-l2 --budget 2500 --seeds 5 --workers 2

NEWEST ?= $(shell for v in 15 14 13 12; do python3.$$v -c '' 2>/dev/null && echo python3.$$v && break; done)

VENV := .venv
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help venv compare docs notebooks test test-slow test-newest test-lowest release lint format constraints clean

help:  ## List the targets
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(INSTALLED)  ## Set up .venv with every extra, at the versions in constraints.txt

compare: venv  ## Run the side-by-side study and write its report to out/compare
	$(VENV)/bin/hypergrad compare $(COMPARE_ARGS) --out out/compare

docs: venv  ## Build the documentation into build/docs, and run its examples
	$(VENV)/bin/sphinx-build --builder html --fail-on-warning --keep-going --jobs auto docs build/docs

notebooks: venv  ## Execute the notebooks and save them with their pictures
	$(VENV)/bin/python docs/execute_notebooks.py

test: venv  ## Run the fast tests
	$(VENV)/bin/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: venv  ## Run the slow tests
	$(VENV)/bin/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m slow

test-newest: venv  ## Run the fast tests on the newest Python that is installed, with the newest dependencies
	@test -n "$(NEWEST)" || { echo "no Python newer than 3.11 was found; name one with: make test-newest NEWEST=..."; exit 1; }
	$(VENV)/bin/uv venv --quiet --clear --seed --python $(NEWEST) build/newest
	$(VENV)/bin/uv pip install --quiet --python build/newest/bin/python --editable '.[all]'
	build/newest/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not slow"

test-lowest: venv  ## Run the fast tests with the lowest versions of the dependencies that pyproject.toml allows
	$(VENV)/bin/uv venv --quiet --clear --seed --python $(VENV)/bin/python build/lowest
	$(VENV)/bin/uv pip install --quiet --python build/lowest/bin/python --resolution lowest-direct --editable '.[all]'
	build/lowest/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not slow"

release: venv  ## Check that version, changelog and git agree, build and try a wheel in dist; publishes nothing
	$(VENV)/bin/python tools/release.py
	rm -rf dist
	$(VENV)/bin/python -m build --outdir dist
	$(VENV)/bin/uvx twine check --strict dist/*
	$(VENV)/bin/uv venv --quiet --clear --python $(VENV)/bin/python build/release
	$(VENV)/bin/uv pip install --quiet --python build/release/bin/python "$$(ls dist/*.whl)[studies]" pytest
	PYTHONPATH= build/release/bin/hypergrad --version
	PYTHONPATH= build/release/bin/pytest -q -m "not slow" tests/engine/test_nesting.py tests/optuna/test_optuna_spaces.py
	@echo "dist has what can be published: $$(ls dist)"

lint: venv  ## Check style and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: venv  ## Format the code and sort its imports
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

# In a new environment and without the old pins, so that what is no longer needed disappears.
constraints:  ## Refresh constraints.txt with the newest versions that pyproject.toml allows
	@$(PYTHON) -c 'import sys; sys.exit("constraints.txt is made on Python 3.11" if sys.version_info[:2] != (3, 11) else 0)'
	$(PYTHON) -m venv --clear build/constraints
	build/constraints/bin/pip install --quiet --editable '.[all]'
	(grep '^#' constraints.txt; build/constraints/bin/pip freeze --all --exclude pip --exclude-editable) > build/pins
	mv build/pins constraints.txt

clean:  ## Delete the environment, caches, build products and results
	rm -rf $(VENV) build dist out *.egg-info .hypothesis .*_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A setup cut short leaves no stamp and no pip, so the next `make` goes on from there.
$(INSTALLED): pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing into $(VENV); about a minute the first time"
	$(VENV)/bin/pip install --quiet --editable '.[all]' --constraint constraints.txt
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + \
	  sys.version.split()[0] + "; name one with: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
