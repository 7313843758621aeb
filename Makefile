# The project's verbs. Each sets up .venv first; a second call only does what changed.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h')
STAMP := $(VENV)/.packages

.PHONY: bench test lint format clean build sdist readme help

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

test: build  ## all tests
	@$(PY) -m pytest -q --doctest-modules --durations=10

lint: build  ## formatting, lints and types
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/clang-format --dry-run --Werror $(SOURCES)
	@$(VENV)/bin/mypy

format: build  ## rewrite the sources in the project's format
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/clang-format -i $(SOURCES)

readme: build  ## run the quick benchmark and write its table into README.md
	@$(PY) -m pytest benchmarks --benchmark-only --suite quick --benchmark-json benchmarks/results/cpu-quick.json -q
	@$(PY) benchmarks/table.py benchmarks/results/cpu-quick.json --readme README.md

sdist: $(STAMP)  ## a source distribution in dist/, without a network
	@HANOPS_NO_NATIVE=1 $(PY) -c "from setuptools.build_meta import build_sdist; print(build_sdist('dist'))"

clean:  ## remove everything that a verb made
	@rm -rf $(VENV) build dist *.egg-info hanops/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
