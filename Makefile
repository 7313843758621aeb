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

.PHONY: bench bench-compare results report paper paper-full gpu gpu-first gpu-second gpu-ship kernels test sanitize \
	guard fuzz docs lint format clean build sdist help

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
	@echo "==> hanops with its native code (a minute or two the first time), and the tools of tests, lints and docs"
	@$(PY) setup.py --quiet build_ext --inplace
	@$(PIP) install --quiet --no-build-isolation -c constraints.txt -e '.[test,lint,report,examples,docs]'
	@touch $@

SUITE ?= quick
BENCH = $(PY) -m pytest benchmarks --benchmark-only --suite $(SUITE) --benchmark-columns=median,iqr,rounds -q

bench: build  ## the quick benchmark, SUITE=full for all of it: HanStack against dense layers, eager Han, torch.compile
	@$(BENCH) --benchmark-json benchmarks/results/latest.json

results: build  ## the benchmark of this machine; rewrites benchmarks/results/cpu.json, which git tracks
	@$(BENCH) --results benchmarks/results

report: build  ## plots and a page of all results; rewrites benchmarks/report, parts of README.md and docs/performance.md
	@$(PY) -m benchmarks.report --readme README.md --docs docs/performance.md

bench-compare: $(if $(BASE),build)  ## this tree's times against those of revision BASE; TESTS=all, SECONDS_PER_ROW, JSON
	@test -n "$(BASE)" || { echo "bench-compare: say which revision: make bench-compare BASE=<rev>" >&2; exit 2; }
	@$(PY) -m benchmarks.compare "$(BASE)" $(if $(TESTS),--tests $(TESTS)) \
		$(if $(SECONDS_PER_ROW),--seconds $(SECONDS_PER_ROW)) $(if $(JSON),--json "$(JSON)")

# On a GPU: PYTHON's own packages and no network. Two calls, of 6 and 4 minutes; benchmarks/gpu.py says what they run.
DEVICE ?= cuda
OUT ?= $(if $(filter cpu,$(DEVICE)),build/rehearsal,benchmarks/results)
GPU = $(if $(filter cpu,$(DEVICE)),$(PY),$(PYTHON)) -m benchmarks.gpu
GPU_OPTIONS = --out "$(OUT)" $(if $(filter cpu,$(DEVICE)),--rehearse) $(if $(PROGRAMS),--programs $(PROGRAMS))
REHEARSED = $(if $(filter cpu,$(DEVICE)),build)

gpu: $(REHEARSED)  ## test and measure on an NVIDIA GPU, to OUT: gpu-first and gpu-second; DEVICE=cpu rehearses
	@$(GPU) first second $(GPU_OPTIONS)

gpu-first: $(REHEARSED)  ## in 6 minutes: times of the kernels, sanitizers, CUDA tests, counters, main benchmarks
	@$(GPU) first $(GPU_OPTIONS)

gpu-second: $(REHEARSED)  ## in 4 minutes: Triton tests, more benchmarks, PROGRAMS="A B" (two builds) compared
	@$(GPU) second $(GPU_OPTIONS)

gpu-ship: build  ## compile the profile program for another machine's GPU, to build/gpu; needs nvcc
	@$(PY) -m benchmarks.prepare --ship

kernels: build  ## compile every CUDA kernel for sm_80, sm_90 and sm_100; list registers, spills, loads in flight
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake --build build/cmake --target kernels_sm_80 kernels_sm_90 kernels_sm_100 > build/cmake/kernels.log || \
		{ cat build/cmake/kernels.log; exit 1; }
	@$(PY) -m hanops.profiling.resources build/cmake/cuda/sm_{80,90,100}/*.txt

TORCH ?= 2.11.0
.PHONY: cuda-check
cuda-check:  ## build with nvcc against CUDA's TORCH=2.11.0 (5 GB), test without a GPU; CUDA_PYTHON, ONLY=build, SHIP=DIR
	@$(PYTHON) -m tests.cuda_check --torch $(TORCH) $(if $(CUDA_PYTHON),--python $(CUDA_PYTHON)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(SHIP),--out $(SHIP)) --workers $(WORKERS)

WORKERS ?= 2

test: build  ## all tests, in WORKERS processes (2)
	@$(PY) -m pytest -q --doctest-modules --durations=10 -n $(WORKERS) --dist worksteal

sanitize: build  ## tests of the native code under address, undefined-behaviour and thread sanitizers; SUBSET=ci
	@WORKERS=$(WORKERS) $(PY) -m tests.sanitize $(SUBSET)

guard: build  ## the CPU kernels in guarded memory, every case, and their gradients against float64, at all edges
	@$(PY) -m tests.guarded full && $(PY) -m tests.guarded sweep

SEED ?= 1
CASES ?= 20000
BACKEND ?= cpu

fuzz: build  ## call the ops and modules with CASES (20000) hostile arguments drawn with SEED, on BACKEND (cpu)
	@$(PY) -m tests.fuzz --backend $(BACKEND) --cases $(CASES) --seed $(SEED)

# DATA: a folder with the regression tables (CSV), and folders mnist, cifar10, cifar100, stl10: what is there is used.
paper: build  ## the papers' experiments, reduced to fit an hour on 2 cores, and docs/results.md; DATA=DIR
	@$(PY) -m examples.paper $(if $(DATA),--data "$(DATA)")

paper-full: build  ## the papers' experiments as they are, for days; an interrupted call goes on; DATA=DIR
	@$(PY) -m examples.paper --full $(if $(DATA),--data "$(DATA)")

docs: build  ## the site, to build/site/index.html; writes the generated pages and figures anew
	@$(PY) -m docs.tools

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
