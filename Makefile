PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt $(wildcard app/serving/*.pyx app/serving/*.h training/*.pyx training/*.h)
# Only links and unpacked wheels matter inside .venv: the constraints pin the set that the tests passed with.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help install serve test bench bench-train lint format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Refit needs Python 3.11, 3.12 or 3.13. Name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(INSTALL) --editable '.[openvino]'
	@touch $@

$(VENV)/.installed-dev: $(SOURCES) | $(BIN)/python
	$(INSTALL) --editable '.[openvino,test,lint]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed  ## create .venv with all that serving and training need

serve: $(VENV)/.installed  ## serve the models in models/ on http://127.0.0.1:8000
	@exec $(BIN)/python -m app serve

bench: $(VENV)/.installed  ## measure the service beside its engine alone and a plain FastAPI server (needs wrk)
	$(BIN)/python -m bench

test: $(VENV)/.installed-dev  ## run the whole test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

bench-train: $(VENV)/.installed  ## run the CPU recipes and print their rows of docs/results.md; DATA=archive to choose the data
	$(BIN)/python -m bench.train --device cpu --data $(or $(DATA),cifar10)

lint: $(VENV)/.installed-dev  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what the other targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info app/serving/kernels.c training/rows.c training/scan.c app/serving/*.so training/*.so
