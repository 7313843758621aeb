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

.PHONY: bench bench-compare results report paper paper-full gpu gpu-build gpu-test gpu-tools gpu-bench kernels test \
	sanitize guard lint format clean build sdist help

help:  ## print the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-13s %s\n", $$1, $$2}'

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
	@$(PIP) install --quiet --no-build-isolation -c constraints.txt -e '.[test,lint,report,examples]'
	@touch $@

SUITE ?= quick
BENCH = $(PY) -m pytest benchmarks --benchmark-only --suite $(SUITE) --benchmark-columns=median,iqr,rounds -q

bench: build  ## the quick benchmark, SUITE=full for all of it: HanStack against dense layers, eager Han, torch.compile
	@$(BENCH) --benchmark-json benchmarks/results/latest.json

results: build  ## the benchmark of this machine, for the report: benchmarks/results/cpu.json
	@$(BENCH) --results benchmarks/results

report: build  ## make benchmarks/report from benchmarks/results: a page, plots, and the README's part of it
	@$(PY) benchmarks/report.py --readme README.md

bench-compare: $(if $(BASE),build)  ## this tree's times against those of revision BASE; TESTS=all, SECONDS_PER_ROW, JSON
	@test -n "$(BASE)" || { echo "bench-compare: say which revision: make bench-compare BASE=<rev>" >&2; exit 2; }
	@$(PY) benchmarks/compare.py "$(BASE)" $(if $(TESTS),--tests $(TESTS)) \
		$(if $(SECONDS_PER_ROW),--seconds $(SECONDS_PER_ROW)) $(if $(JSON),--json "$(JSON)")

# On a GPU: PYTHON's own packages and no network. What is measured is rewritten after each row, RESUME=1 goes on.
DEVICE ?= cuda
OUT ?= $(if $(filter cpu,$(DEVICE)),build/rehearsal,benchmarks/results)
GPU_PYTHON = $(if $(filter cpu,$(DEVICE)),$(PY),$(PYTHON))
GPU_TESTS ?= $(if $(filter cpu,$(DEVICE)),tests/test_han_stack_backward.py -k training,tests)
GPU_CMAKE = PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake
CAPABILITY = $(GPU_PYTHON) -c "import torch; c = torch.cuda.get_device_capability(); print(f'{c[0]}.{c[1]}')"

gpu:  ## on a machine with an NVIDIA GPU, all of the following; DEVICE=cpu rehearses
	@status=0; for verb in gpu-build gpu-test gpu-tools gpu-bench; do \
		$(MAKE) --no-print-directory $$verb || status=$$?; \
	done; exit $$status

gpu-build: $(if $(filter cpu,$(DEVICE)),build)  ## build the native code for this machine's GPU
	@echo "==> building what this machine can build"
	@export TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-$$($(CAPABILITY) 2>/dev/null)}"; \
	$(GPU_PYTHON) setup.py --quiet build_ext --inplace || \
		echo "==> no native code: the ops run from Python, on Triton's kernels"

gpu-test: gpu-build  ## test every path on the GPU
	@echo "==> tests on $(DEVICE)"
	@TRITON_INTERPRET=$(if $(filter cpu,$(DEVICE)),1,0) $(GPU_PYTHON) -m pytest $(GPU_TESTS) -q --device $(DEVICE)

gpu-tools: gpu-build  ## run the CUDA kernels under compute-sanitizer and Nsight Compute, where they are
	@echo "==> NVIDIA's tools, to $(OUT)"
	@if test $(DEVICE) = cpu; then program=emulated_profile; options=; else program=han_stack_profile; \
		case $$($(CAPABILITY)) in 8.*) options=80;; 9.*) options=90;; *) options=100;; esac; fi; \
	$(GPU_CMAKE) -S . -B build/cmake $${options:+-DHANOPS_PROFILE=$$options} > build/cmake/profile.log && \
	$(GPU_CMAKE) --build build/cmake --target $$program >> build/cmake/profile.log || \
		{ tail -20 build/cmake/profile.log; exit 1; }; \
	$(GPU_PYTHON) benchmarks/gpu_tools.py build/cmake/$$program --results $(OUT) \
		$(if $(filter cpu,$(DEVICE)),--rehearse)

gpu-bench: gpu-build  ## measure on the GPU, for at most 8 minutes
	@echo "==> measurements, to $(OUT)"
	@TRITON_INTERPRET=$(if $(filter cpu,$(DEVICE)),1,0) $(GPU_PYTHON) -m pytest benchmarks/bench_han_stack.py \
		--benchmark-only --benchmark-columns=median,iqr,rounds -q --device $(DEVICE) --suite $(SUITE) \
		$(if $(filter cpu,$(DEVICE)),--rehearse) --results $(OUT) --seconds 480 $(if $(RESUME),--resume)

kernels: build  ## compile every CUDA kernel for sm_80, sm_90 and sm_100; list registers, stack frames and spills
	@$(GPU_CMAKE) --build build/cmake --target kernels_sm_80 kernels_sm_90 kernels_sm_100 > build/cmake/kernels.log || \
		{ cat build/cmake/kernels.log; exit 1; }
	@$(PY) csrc/cuda/resources.py build/cmake/cuda/sm_80.txt build/cmake/cuda/sm_90.txt build/cmake/cuda/sm_100.txt

WORKERS ?= 2

test: build  ## all tests, in WORKERS processes (2)
	@$(PY) -m pytest -q --doctest-modules --durations=10 -n $(WORKERS) --dist worksteal

sanitize: build  ## tests of the native code under address, undefined-behaviour and thread sanitizers; SUBSET=ci
	@WORKERS=$(WORKERS) $(PY) tests/sanitize.py $(SUBSET)

guard: build  ## the CPU kernels in guarded memory, every case, and their gradients against float64, at all edges
	@$(PY) tests/guarded.py full && $(PY) tests/guarded.py sweep

# DATA: a folder with the regression tables (CSV), and folders mnist, cifar10, cifar100, stl10: what is there is used.
paper: build  ## the papers' experiments, reduced to fit an hour on 2 cores, and docs/results.md; DATA=DIR
	@$(PY) examples/paper.py $(if $(DATA),--data "$(DATA)")

paper-full: build  ## the papers' experiments as they are, for days; an interrupted call goes on; DATA=DIR
	@$(PY) examples/paper.py --full $(if $(DATA),--data "$(DATA)")

lint: build  ## formatting, lints and types
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/clang-format --dry-run --Werror $(FORMATTED)
	@$(VENV)/bin/mypy

format: build  ## rewrite the sources in the project's format
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/clang-format -i $(FORMATTED)

sdist: $(STAMP)  ## a source distribution in dist/, without a network
	@HANOPS_NO_NATIVE=1 $(PY) -c "from setuptools.build_meta import build_sdist; print(build_sdist('dist'))"

clean:  ## remove everything that a verb made
	@here=$$(pwd -P)/build/compare/; git worktree list --porcelain 2>/dev/null | sed -n 's/^worktree //p' | \
		while read -r tree; do case "$$tree" in "$$here"*) git worktree remove --force "$$tree";; esac; done
	@rm -rf $(VENV) build dist *.egg-info hanops/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
