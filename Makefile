# The project's verbs. Each sets up .venv first; a second call only does what changed.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
NATIVE := -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'
SOURCES := $(shell find csrc $(NATIVE))
FORMATTED := $(SOURCES) $(shell find tests $(NATIVE))
STAMP := $(VENV)/.packages

SHELL := /bin/bash

.PHONY: bench gpu test lint format clean build sdist readme help

help:  ## print the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-8s %s\n", $$1, $$2}'

# torch comes first and alone: with it installed, no other package asks for another build of it.
$(STAMP): constraints.txt
	@echo "==> torch and the build tools, into $(VENV)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet $$(grep '^torch==' constraints.txt)
	@$(PIP) install --quiet -c constraints.txt setuptools cmake ninja pybind11
	@touch $@

build: $(VENV)/.built  ## build the native code and install hanops into .venv, editable

$(VENV)/.built: $(STAMP) pyproject.toml setup.py CMakeLists.txt $(SOURCES)
	@echo "==> hanops with its native code (a minute or two the first time), and the test and lint tools"
	@$(PY) setup.py --quiet build_ext --inplace
	@$(PIP) install --quiet --no-build-isolation -c constraints.txt -e '.[test,lint]'
	@touch $@

bench: build  ## the quick benchmark: HanStack against Linear + ReLU, eager Han layers and torch.compile
	@$(PY) -m pytest benchmarks --benchmark-only --suite quick --benchmark-json benchmarks/results/latest.json -q

# With PYTHON's own packages and no network; what is measured is rewritten after each row, RESUME=1 goes on.
DEVICE ?= cuda
OUT ?= $(if $(filter cpu,$(DEVICE)),build/rehearsal,benchmarks/results)
GPU_PYTHON = $(if $(filter cpu,$(DEVICE)),$(PY),$(PYTHON))
GPU_TESTS ?= $(if $(filter cpu,$(DEVICE)),tests/test_triton.py -k training,tests)

gpu: $(if $(filter cpu,$(DEVICE)),build)  ## on a machine with an NVIDIA GPU: build, test and measure (DEVICE=cpu rehearses)
	@echo "==> building what this machine can build"
	@$(GPU_PYTHON) setup.py --quiet build_ext --inplace || \
		echo "==> no native code: the ops run from Python, on Triton's kernels"
	@echo "==> tests on $(DEVICE)"
	@status=0; export TRITON_INTERPRET=$(if $(filter cpu,$(DEVICE)),1,0); \
	$(GPU_PYTHON) -m pytest $(GPU_TESTS) -q --device $(DEVICE) || status=$$?; \
	echo "==> measurements, to $(OUT)"; \
	$(GPU_PYTHON) -m pytest benchmarks/bench_gpu.py --benchmark-only -q --device $(DEVICE) --results $(OUT) \
		--seconds 480 $(if $(RESUME),--resume) || status=$$?; \
	exit $$status

test: build  ## all tests
	@$(PY) -m pytest -q --doctest-modules --durations=10

lint: build  ## formatting, lints and types
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/clang-format --dry-run --Werror $(FORMATTED)
	@$(VENV)/bin/mypy

format: build  ## rewrite the sources in the project's format
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/clang-format -i $(FORMATTED)

readme: build  ## run the quick benchmark and write its table into README.md
	@$(PY) -m pytest benchmarks --benchmark-only --suite quick --benchmark-json benchmarks/results/cpu-quick.json -q
	@$(PY) benchmarks/table.py benchmarks/results/cpu-quick.json --readme README.md

sdist: $(STAMP)  ## a source distribution in dist/, without a network
	@HANOPS_NO_NATIVE=1 $(PY) -c "from setuptools.build_meta import build_sdist; print(build_sdist('dist'))"

clean:  ## remove everything that a verb made
	@rm -rf $(VENV) build dist *.egg-info hanops/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
