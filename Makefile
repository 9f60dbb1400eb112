# Both commands set up everything they need in .venv (or in $(VENV)).
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: digits study text test quick check static benchmark zoo fuzz versions

digits: $(READY)      ## train a ResNet and a ViT dense and N:M sparse (3 minutes on 2 cores)
	$(BIN)/python -m examples.accuracy digits

text: $(READY)        ## the same for a small GPT on Python's standard library
	$(BIN)/python -m examples.accuracy text

study: digits text    ## both

test: $(READY)        ## the whole test suite, in two processes
	$(BIN)/python -m pytest -n 2 --dist worksteal

quick: $(READY)       ## the tests that compile little
	$(BIN)/python -m pytest -n 2 -m "not slow"

check: $(READY)       ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

static: $(READY)      ## cross-compile every kernel for GPUs and read the machine code (2 minutes)
	$(BIN)/python -m benchmarks.static_check

benchmark: $(READY)   ## step time, compile time and memory against Inductor
	$(BIN)/python -m benchmarks.training_step

zoo: $(READY)         ## every architecture of the model zoo, checked and trained (10 minutes)
	$(BIN)/python -m benchmarks.zoo

fuzz: $(READY)        ## random networks under random policies, for ten minutes
	$(BIN)/python -m fuzzing --minutes 10

versions: $(READY)    ## the core of the test suite under several versions of PyTorch
	$(BIN)/python -m benchmarks.versions

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY)
