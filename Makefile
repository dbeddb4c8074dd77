# `make help` lists the targets. The environment in .venv is created on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help train playground test lint docs format clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

train: $(VENV)/.installed  ## train the lesson's U-Net on the images in the package (ARGS="noise.percent=0.3": overrides)
	$(BIN)/python scripts/train.py $(ARGS)

playground: $(VENV)/.installed  ## a web page to denoise and generate (ARGS="run=latest": another run than the pretrained one)
	$(BIN)/python scripts/playground.py $(ARGS)

test: $(VENV)/.installed  ## run all tests (ARGS="-m 'not slow'" leaves out the slow ones)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.installed  ## check style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed  ## build the documentation in docs/_build/html, executing the tutorial (TUTORIAL_STEPS=20: short trainings)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

format: $(VENV)/.installed  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and the caches of the tools, not the runs
	rm -rf $(VENV) docs/_build .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	@echo "installing into $(VENV): a minute or two, mostly PyTorch"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
