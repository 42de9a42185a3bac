# One virtual environment in .venv serves every target. `make help` lists them.
# PIP_ARGS goes to every pip install: for instance an index that has torch's CPU build.
# TORCH_CUDA_ARCH_LIST: architectures for which the CUDA sources are compiled, where nvcc is found. One is enough here: its
# PTX runs on every later device.

PYTHON ?= python3
PIP_ARGS ?=
# Worker processes for the tests; 2 cores are enough.
JOBS ?= 2
DEMO_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
SOURCES := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu kernels/cuda/*.h kernels/cuda/*.cuh)
HOST_RUN := $(wildcard tests/cuda_host/* tests/nulldevice/device/*)

.PHONY: help setup demo test test-quick lint format docs bench kernels-report cuda-report clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 18

setup: $(READY)  ## make .venv with everything the other targets need

$(READY): export TORCH_CUDA_ARCH_LIST := $(or $(TORCH_CUDA_ARCH_LIST),8.0+PTX)
$(READY): pyproject.toml setup.py constraints.txt $(wildcard tests/upstreams/*.txt) $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch torchvision numpy setuptools wheel ninja pybind11
	$(PIP) --no-build-isolation -e ".[dev,triton]"
	$(PIP) -r tests/upstreams/requirements.txt
	$(PIP) --no-deps -r tests/upstreams/requirements-no-deps.txt
	@touch $@

demo: $(READY)  ## run HRNet on the photograph that ships with the project; the report goes to demo_output/
	$(BIN)/hrnet-fast demo --output demo_output --force $(DEMO_ARGS)

# Worksteal keeps the tests of a file, and what they build once, in one worker for as long as both are busy.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# Tracing lines makes tests that are mostly Python take up to 1.4 times as long, so it is asked for where it is checked.
COVERAGE ?=

test: $(READY)  ## run the tests; with COVERAGE=1 also measure and check which lines they run
	$(PYTEST) $(if $(COVERAGE),--cov --cov-report=term --cov-fail-under=95)

test-quick: $(READY)  ## run the tests that neither compile, build, start processes nor take long; without coverage
	$(PYTEST) tests -m "not compile and not sanitizer and not processes and not device and not slow"

lint: $(READY) docs  ## ruff, mypy, clang-format, the documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES) $(HOST_RUN)

format: $(READY)  ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES) $(HOST_RUN)

docs: $(READY)  ## build the documents as pages in build/docs; warnings are errors
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

bench: $(READY)  ## measure the reference networks and the operators on this machine
	$(BIN)/python -m pytest benchmarks/ --benchmark

kernels-report: $(READY)  ## compile the Triton kernels for sm_80, sm_90, sm_100; write kernels/REPORT.md, fail on spills
	$(BIN)/python scripts/kernels_report.py

cuda-report: $(READY)  ## compile the CUDA kernels for the same targets with nvcc; write kernels/REPORT_CUDA.md, fail on spills
	$(BIN)/python scripts/cuda_report.py

clean:  ## remove everything that the other targets made
	rm -rf $(VENV) build dist demo_output *.egg-info hrnet_fast/_C*.so .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
