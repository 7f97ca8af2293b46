# make setup: a .venv with everything; make demo; make test; make lint. PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint style

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt requirements-dev.txt toolbox/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements-dev.txt -e ./toolbox
	touch $@

demo: setup
	$(BIN)/python -m tools.demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
