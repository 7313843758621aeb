# The project's verbs. Each sets up .venv first; a second call only does what changed.
PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet -c constraints.txt
native = $(shell find $(1) -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# $(call given,A B): --a and --b with the values of these variables, where they are given
given = $(foreach name,$(1),$(if $($(name)),--$(shell echo $(name) | tr A-Z_ a-z-) "$($(name))"))

.PHONY: help build bench results report bench-compare gpu gpu-first gpu-second gpu-ship kernels cuda-check matrix \
	test test-all sanitize guard fuzz paper paper-part paper-full clients docs lint format wheel sdist clean

help:  ## print the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-13s %s\n", $$1, $$2}' Makefile

# torch comes first and alone: with it installed, no other package asks for another build of it.
.venv/.packages: constraints.txt
	@echo "==> torch and the build tools, into .venv" && { test -x $(PY) || $(PYTHON) -m venv .venv; }
	@$(PIP) $$(grep '^torch==' $<) && $(PIP) setuptools cmake ninja pybind11 && touch $@
.venv/.built: .venv/.packages pyproject.toml setup.py CMakeLists.txt $(call native,csrc)
	@echo "==> hanops with its native code (a minute or two the first time), and the tools of tests, lints and docs"
	@$(PY) setup.py --quiet build_ext --inplace
	@$(PIP) --no-build-isolation -e '.[test,lint,report,examples,docs]' && touch $@
build: .venv/.built  ## build the native code and install hanops into .venv, editable

BENCH = $(PY) -m pytest -q benchmarks --benchmark-only --benchmark-columns median,iqr,rounds $(call given,SUITE)
bench: build  ## the quick benchmark, SUITE=full for all of it: HanStack against dense layers, eager Han, torch.compile
	@$(BENCH) --benchmark-json benchmarks/results/latest.json
results: build  ## the benchmark of this machine; rewrites benchmarks/results/cpu.json, which git tracks
	@$(BENCH) --results benchmarks/results
report: build  ## plots and a page of all results; rewrites benchmarks/report, parts of README and performance.md
	@$(PY) -m benchmarks.report --readme README.md --docs docs/performance.md
bench-compare: $(if $(BASE),build)  ## this tree's times against revision BASE's; TESTS=all, SECONDS_PER_ROW, JSON
	@$(PY) -m benchmarks.compare $(or $(BASE),$(error give BASE=<rev>)) $(call given,TESTS SECONDS_PER_ROW JSON)

# On a GPU: PYTHON's own packages and no network. Two calls, of 6 and 4 minutes; benchmarks/gpu.py says what they run.
GPU = $(if $(filter cpu,$(DEVICE)),$(PY),$(PYTHON)) -m benchmarks.gpu $(call given,DEVICE OUT PROGRAMS)
gpu gpu-first gpu-second: $(if $(filter cpu,$(DEVICE)),build)
gpu:  ## test and measure on an NVIDIA GPU, to OUT: gpu-first and gpu-second; DEVICE=cpu rehearses
	@$(GPU) first second
gpu-first:  ## in 6 minutes: times of the kernels, sanitizers, CUDA tests, counters, main benchmarks
	@$(GPU) first
gpu-second:  ## in 4 minutes: Triton tests, more benchmarks, PROGRAMS="A B" (two builds) compared
	@$(GPU) second
gpu-ship: build  ## compile the profile program for another machine's GPU, to build/gpu; needs nvcc
	@$(PY) -m benchmarks.prepare --ship
kernels: build  ## compile every CUDA kernel for sm_80, sm_90 and sm_100; list registers, spills, loads in flight
	@$(PY) -m tests.kernels
cuda-check:  ## build with nvcc for CUDA's TORCH=2.11.0 (5 GB), test without a GPU; CUDA_PYTHON, ONLY=build, SHIP=DIR
	@$(PYTHON) -m tests.cuda_check $(call given,TORCH CUDA_PYTHON ONLY SHIP WORKERS)
matrix:  ## build, import and test with each torch and Python there is (11 GB); the table of docs/index.md; ROWS="A B"
	@$(PYTHON) -m tests.matrix $(call given,ROWS WORKERS)

TEST = $(PY) -m tests.emulation && $(PY) -m pytest -q --durations=10 -n $(or $(WORKERS),auto) --dist worksteal
test: build  ## the tests, in as many processes as there are cores, or in WORKERS
	@$(TEST)
test-all: build  ## also the tests that are left to CI: the Triton kernels compiled for every GPU and dtype
	@$(TEST) --all
sanitize: build  ## tests of the native code under address, undefined-behaviour and thread sanitizers; SUBSET=ci
	@$(PY) -m tests.sanitize $(SUBSET) $(call given,WORKERS)
guard: build  ## the CPU kernels in guarded memory, every case, and their gradients against float64, at all edges
	@$(PY) -m tests.guarded full sweep
fuzz: build  ## call the ops and modules with CASES (20000) hostile arguments drawn with SEED, on BACKEND (cpu)
	@$(PY) -m tests.fuzz $(call given,CASES SEED BACKEND)

paper: build  ## the papers' experiments, reduced to an hour of 2 idle cores, and docs/results.md; DATA=DIR of data sets
	@$(PY) -m examples.paper $(call given,DATA)
paper-part: $(if $(PART),build)  ## full runs of PART 1 to 6, each two hours of 2 idle cores at most; goes on; DATA=DIR
	@$(PY) -m examples.paper --part $(or $(PART),$(error give PART=1 to 6)) $(call given,DATA)
paper-full: build  ## full runs of all parts, and of image sets, for days; an interrupted call goes on; DATA=DIR
	@$(PY) -m examples.paper --full $(call given,DATA)

CLIENTS := build/clients/bin/python
INTO_CLIENTS = $(CLIENTS) -m pip --disable-pip-version-check install --quiet -c constraints.txt
build/clients/.packages: constraints.txt pyproject.toml
	@echo "==> torch and the packages of the extra clients, into build/clients"
	@test -x $(CLIENTS) || $(PYTHON) -m venv build/clients
	@$(INTO_CLIENTS) $$(grep '^torch==' $<) && $(INTO_CLIENTS) setuptools
	@HANOPS_NO_NATIVE=1 $(INTO_CLIENTS) --no-build-isolation -e '.[test,clients]' && touch $@
clients: build build/clients/.packages  ## a HanStack in timm, transformers ...; writes docs/clients.md
	@HF_HUB_OFFLINE=1 $(CLIENTS) -m pytest tests/clients -q --table

docs: build  ## the site, to build/site/index.html; writes the generated pages and figures anew
	@$(PY) -m docs.tools
lint: build  ## formatting, lints and types
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .
	@$(BIN)/clang-format --dry-run --Werror $(call native,csrc tests) && $(BIN)/mypy
format: build  ## rewrite the sources in the project's format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix . && $(BIN)/clang-format -i $(call native,csrc tests)
wheel:  ## wheels to dist/, native for torch TORCH and pure; every way to install is tried in an empty environment
	@$(PYTHON) -m tests.wheels $(call given,TORCH)
sdist: .venv/.packages  ## a source distribution in dist/, without a network
	@HANOPS_NO_NATIVE=1 $(PY) -c "from setuptools.build_meta import build_sdist; print(build_sdist('dist'))"
clean:  ## remove everything that a verb made
	@git worktree list --porcelain 2> /dev/null | awk -v here="worktree $$(pwd -P)/build/compare/" \
		'index($$0, here) == 1 {print substr($$0, 10)}' | xargs -rd '\n' -n 1 git worktree remove --force
	@rm -rf .venv build dist *.egg-info hanops/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
