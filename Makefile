# `make demo` and `make test` set everything up in .venv by themselves, once; `make help` lists the rest.
#
#   make PYTHON=python3.12 test     another Python for .venv (3.11 or newer)
#   make TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu' test
#                                   another torch: PyPI's own Linux build brings some GB of CUDA libraries, this one none
#   make LSTMVID_CUDA=OFF test      AUTO (with CUDA if nvcc is found), ON or OFF; after `make clean` if it was built before
#   make LSTMVID_CUDA_ARCHS='80;90a' test   GPUs to compile for, instead of those in the machine, else all; likewise
#   make PYTEST_ARGS='-k peephole' test
#
# torch is taken from $(PYTHON) if that has 2.11 or newer; else it is installed into .venv.

PYTHON ?= python3
TORCH ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo torch || echo torch==2.13.0)
PYTEST_ARGS ?=
BENCH_ARGS ?=
export LSTMVID_CUDA LSTMVID_CUDA_ARCHS
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VENV := .venv
BIN := $(VENV)/bin
# By way of Python: with the torch of another environment, that environment's ruff is taken too, and has no command here.
RUFF := $(BIN)/python -m ruff
CLANG_FORMAT := $(BIN)/python -c 'import clang_format; clang_format.clang_format()'
# A process a core, each with one thread of torch's unless a test sets its own number.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8
INSTALLED := $(VENV)/.installed
SOURCES = $(shell find $(1) -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')
CSRC := $(call SOURCES,csrc)
HAS_TORCH := -c 'import torch; assert [int(n) for n in torch.__version__.split(".")[:2]] >= [2, 11]' 2>/dev/null

.DELETE_ON_ERROR:
.PHONY: help install demo bench test test-all lint format docs clean distclean

help: ## List what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Train on Moving MNIST for about three minutes, score, draw, compare speed; in runs/demo
	$(BIN)/lstmvid train --config configs/demo.yaml --resume
	$(BIN)/lstmvid evaluate runs/demo
	$(BIN)/lstmvid predict runs/demo
	$(BIN)/python benchmarks/unroll_speed.py --quick

bench: $(INSTALLED) ## Compare speed with torch.nn.LSTM (BENCH_ARGS='--quick' for a short run)
	$(BIN)/python benchmarks/unroll_speed.py $(BENCH_ARGS)

test: lint ## Style, layers and all quick tests
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-all: lint ## The slow tests too
	$(PYTEST) $(PYTEST_ARGS)

lint: $(INSTALLED) ## Check style without changing anything
	$(RUFF) check .
	$(RUFF) format --check .
	$(CLANG_FORMAT) --dry-run -Werror $(CSRC) $(call SOURCES,tests)

format: $(INSTALLED) ## Put everything into the project's style
	$(RUFF) check --fix .
	$(RUFF) format .
	$(CLANG_FORMAT) -i $(CSRC) $(call SOURCES,tests)

docs: $(INSTALLED) ## Write the API reference into build/docs
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[docs]'
	$(BIN)/python -m pdoc --math --output-directory build/docs lstmvid

clean: ## Remove what was built
	rm -rf build dist lstmvid.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks lstmvid/_C*.so $(INSTALLED)
	find . -path ./$(VENV) -prune -o -name __pycache__ -exec rm -rf {} +

distclean: clean ## Remove .venv too
	rm -rf $(VENV)

install: $(INSTALLED) ## Only set up .venv and build the package into it

# The three steps of the set-up. A file stands for each that is done, so that it isn't done again.

$(VENV)/.created:
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "lstmvid needs Python 3.11 or newer with venv and pip: '$(PYTHON)' isn't that. Name one: make PYTHON=python3.12"; \
	  exit 1; }
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then :; \
	elif $(PYTHON) $(HAS_TORCH); then \
	  echo "lstmvid: making $(VENV) around the torch that $(PYTHON) has"; \
	  $(PYTHON) -m venv --system-site-packages $(VENV) && \
	  $(PYTHON) -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
	    > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch_of_parent.pth; \
	else \
	  echo "lstmvid: making $(VENV)"; \
	  $(PYTHON) -m venv $(VENV); \
	fi
	@touch $@

$(VENV)/.torch: | $(VENV)/.created
	@$(BIN)/python $(HAS_TORCH) || { \
	  echo "lstmvid: installing $(TORCH)"; \
	  $(BIN)/python -m pip install $(TORCH); }
	@touch $@

# torch is there before anything that needs it: pip would choose a build of its own. The build requirements lie in .venv
# and not in pip's throw-away environment, so that a changed source is compiled within seconds and without a network.
$(INSTALLED): pyproject.toml setup.py CMakeLists.txt $(CSRC) | $(VENV)/.torch
	@echo "lstmvid: building the package and installing what its tests and its demo need (minutes at first, then seconds)"
	@$(BIN)/python -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > $(VENV)/build-requires.txt
	@$(BIN)/python -m pip install --quiet --requirement $(VENV)/build-requires.txt
	@$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[test]'
	@ls -t build/*/CMakeCache.txt | head -n 1 | xargs sed -n 's/^LSTMVID_SUMMARY:[A-Z]*=/lstmvid: built /p'
	@touch $@
