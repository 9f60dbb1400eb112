# Each command sets up all that it needs in .venv (or in $(VENV)).
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# What is installed so far: with the accuracy study's libraries, with those of development.
STUDY := $(VENV)/.study
DEV := $(VENV)/.dev

# The CUDA build of torch beside a GPU that does nothing: 5 GB, so outside of the checkout.
NULLGPU ?= $(HOME)/.cache/nmcompile/nullgpu
NULLGPU_PYTHON ?= $(NULLGPU)/cuda/bin/python
REHEARSE ?=
# What a machine with a GPU and no network is given, and the Python that it has; compiled kernels are
# of use there when the null GPU's environment was made with the same (PYTHON=python3.12).
CARRY ?= carried
CARRY_PYTHON ?= 3.12

.PHONY: help digits fashion text test quick check docs pictures static tritons benchmark zoo fuzz versions resolve rehearse carry

help:                 ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

digits: $(STUDY)      ## train two ResNets and a ViT dense and N:M sparse (4 minutes on 2 cores)
	$(BIN)/python -m benchmarks.accuracy digits --out build/accuracy

fashion: $(STUDY)     ## the same on Fashion-MNIST (Debian's dataset-fashion-mnist): hours, resumes
	$(BIN)/python -m benchmarks.accuracy fashion --out build/accuracy

text: $(STUDY)        ## the same for a small GPT on Python's standard library: hours, resumes
	$(BIN)/python -m benchmarks.accuracy text --out build/accuracy

test: $(DEV)          ## the whole test suite, in two processes
	$(BIN)/python -m pytest -n 2 --dist worksteal

quick: $(DEV)         ## the tests that compile little
	$(BIN)/python -m pytest -n 2 -m "not slow"

check: $(DEV)         ## lint, spelling, types and the law of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(DEV)          ## the documentation as pages, in build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -n -q -c docs . build/docs
	@echo build/docs/docs/index.html

pictures: $(DEV)      ## the pictures of README.md and the documentation, in docs/images (needs Chromium)
	$(BIN)/python -m docs.pictures

static: $(DEV)        ## cross-compile every kernel for GPUs and read the machine code (3 minutes)
	$(BIN)/python -m benchmarks.static_check

tritons: $(DEV)       ## the kernels of real models on four versions of Triton (half an hour)
	$(BIN)/python -m benchmarks.static_check.versions

benchmark: $(DEV)     ## step time, compile time and memory against Inductor
	$(BIN)/python -m benchmarks.training_step

zoo: $(DEV)           ## every architecture of the model zoo, checked and trained (10 minutes)
	$(BIN)/python -m benchmarks.zoo

fuzz: $(DEV)          ## random networks under random policies, for ten minutes
	$(BIN)/python -m fuzzing --minutes 10

versions: $(DEV)      ## the core of the test suite under several versions of PyTorch
	$(BIN)/python -m benchmarks.versions

rehearse: $(NULLGPU_PYTHON) ## the GPU path on a GPU that does nothing (an hour; REHEARSE="--parts masks")
	tools/nullgpu/build.sh $(NULLGPU)
	. $(NULLGPU)/env.sh && PYTHONPATH=. $(NULLGPU_PYTHON) -m tools.nullgpu --cache $(NULLGPU)/cache $(REHEARSE)

carry:                ## gather what gpu_check needs elsewhere: wheels and compiled kernels, in $(CARRY)
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version $(CARRY_PYTHON) \
	    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
	    --platform manylinux2014_x86_64 --platform any \
	    -c constraints.txt -d $(CARRY)/wheels -r benchmarks/gpu_check/requirements.txt
	$(NULLGPU_PYTHON) -m benchmarks.gpu_check.caches $(NULLGPU)/cache/triton $(CARRY)/triton

resolve:              ## whether the installs resolve on a machine with nothing of its own (2 minutes)
	$(PYTHON) .ci/resolve.py

# torch is the oldest supported one, which machines with a GPU often carry.
$(NULLGPU)/cuda/bin/python:
	$(PYTHON) -m venv $(NULLGPU)/cuda
	$@ -m pip install --quiet torch==2.11.0 triton==3.6.0 numpy -r benchmarks/gpu_check/requirements.txt

$(STUDY) $(DEV): $(VENV)/.%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@ $(STUDY) # dev holds study
