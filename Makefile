# make setup: a .venv with what the project runs on. make demo, scripts, test, test-all, check, lint, style, docs, fuzz, kill, bench, compare,
# backbones, libraries, gpu-rehearsal.
# PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: pytest-xdist has one for each core. The memory of tensors is kept for the next ones, and compiled files for the
# processes that tests start. The tests of a file run in one process, as they share fixtures.
FAST := OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=1073741824 PYTHONDONTWRITEBYTECODE=
PYTEST := $(FAST) $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: setup demo scripts test test-all check lint style docs fuzz kill bench compare gpu-rehearsal backbones libraries

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt toolbox/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready $(wildcard requirements-*.txt)
	$(BIN)/python -m pip install -r requirements-dev.txt
	touch $@

demo: setup
	$(BIN)/python tools/demo.py

# The scripts in scripts/, from studies/published/scripts.yaml and configs/recipes.yaml
scripts: setup
	$(BIN)/python -m studies.scripts

test: $(VENV)/.ready-dev
	$(PYTEST) -m "not thorough"

# With the longest checks, and those that repeat others for one more method or form; a quarter of an hour on two cores.
test-all: $(VENV)/.ready-dev
	$(PYTEST)

# Before each commit: lint, and the tests that are not marked slow.
check: lint
	$(PYTEST) -m "not slow and not thorough"

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The documentation as a site, in site/
docs: $(VENV)/.ready
	$(BIN)/python -m pip install -q -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Inputs that are damaged or made to do harm: SECURITY.md. About FUZZ of them, in equal shares of each property.
FUZZ ?= 10000
SEED ?= 1
fuzz: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 FUZZ=$(FUZZ) $(BIN)/python -m pytest -n auto tests/security/test_fuzz.py --hypothesis-seed=$(SEED)

# The tests of what reads files of others or answers requests, with the lowest or the newest versions of the libraries that do it.
VERSIONS ?= lowest
LIBRARIES := transformers|timm|huggingface_hub|gradio|fastapi|starlette|pydantic|python-multipart|uvicorn|sentencepiece
READING := strangers hub other_backbones backbone_files artefact published_models api serve* fuzz
libraries: LOCAL := .venv-$(VERSIONS)
libraries:
	$(PYTHON) -m venv $(LOCAL)
	sed -nE 's/^($(LIBRARIES))>=([0-9.]+).*/\1$(if $(filter lowest,$(VERSIONS)),==,>=)\2/p' requirements*.txt > $(LOCAL)/versions.txt
	$(LOCAL)/bin/python -m pip install -r requirements-dev.txt -c $(LOCAL)/versions.txt
	OMP_NUM_THREADS=1 $(LOCAL)/bin/python -m pytest -n auto --dist loadfile $(READING:%=tests/*/test_%.py)

# 100 SIGKILL, 50 SIGTERM and 50 full disks at random moments; up to an hour on two cores.
kill: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests/helpers:tests/security $(BIN)/python -m kills --seed $(SEED)

# All measurements of time and memory, on an idle machine; benchmarks/RESULTS.md is the page that it writes.
ROUNDS ?= 3
bench: $(VENV)/.ready-dev
	$(BIN)/python benchmarks/measure.py --page benchmarks/RESULTS.md --rounds $(ROUNDS)

# Training steps of this checkout and of another one, in turns: make compare BEFORE=DIR
compare: $(VENV)/.ready-dev
	$(BIN)/python benchmarks/measure.py --against $(BEFORE) --form fast --trainer MPL --classes 5 50 200 --rounds $(ROUNDS)
	$(BIN)/python benchmarks/measure.py --against $(BEFORE) --form fast --trainer CoOp CLIPLoRA --classes 50 --rounds $(ROUNDS)

# Steps and runs of all methods on a CUDA device that is not there; it needs g++.
gpu-rehearsal: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/trainers/test_gpu_rehearsal.py

style: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
