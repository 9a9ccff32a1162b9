# Two commands do all the set-up: `make demo` and `make test`. They need git, make and Python >= 3.10; no Node.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# The virtual environment first: its Node, jlpm and Jupyter are the ones meant.
export PATH := $(CURDIR)/$(BIN):$(PATH)

BUILD := pyproject.toml install.json labextension/package.json labextension/yarn.lock
SOURCES := $(BUILD) $(shell git ls-files jupyterlab_clearml_session labextension/src labextension/style labextension/schema)

.PHONY: demo test test-python test-js lint format bench build clean help

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.local-stamp  ## Try it on this machine: embedded ClearML, JupyterLab, one session (ARGS=--once: no browser)
	$(BIN)/jupyter-clearml-session demo $(ARGS)

test: test-js test-python  ## All tests; browser tests where a Chromium is found

test-python: $(VENV)/.dev-stamp
	$(BIN)/python -m pytest $(ARGS)

test-js: $(VENV)/.dev-stamp
	cd labextension && jlpm test

lint: $(VENV)/.dev-stamp  ## ruff, mypy, eslint, prettier, tsc
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd labextension && jlpm lint:check

format: $(VENV)/.dev-stamp  ## Let ruff, eslint and prettier mend what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cd labextension && jlpm lint

bench: $(VENV)/.bench-stamp  ## Side-by-side measurements (docs/performance.md)
	for script in bench/[!_]*.py; do echo "## $$script"; $(BIN)/python -m bench.$$(basename $$script .py) || exit 1; done

build: $(VENV)/.dev-stamp  ## A wheel and an sdist in dist/
	$(BIN)/python -m build

clean:  ## Remove the virtual environment and everything built
	rm -rf $(VENV) dist jupyterlab_clearml_session/labextension labextension/lib labextension/node_modules

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A development install serves the demo too.
$(VENV)/.local-stamp: $(SOURCES) | $(BIN)/python
	test -e $(VENV)/.dev-stamp || $(PIP) '.[local]'
	touch $@

$(VENV)/.dev-stamp: $(BUILD) | $(BIN)/python
	$(PIP) --editable '.[local,test,dev]'
	cd labextension && jlpm install
	cd labextension && jlpm build
	touch $@

$(VENV)/.bench-stamp: $(VENV)/.dev-stamp
	$(PIP) --editable '.[local,test,dev,bench]'
	touch $@
