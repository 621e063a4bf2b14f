# `make demo` and `make test` need Python >= 3.11, make and an internet connection the first time; nothing else.

# The interpreter that the virtual environment is made from: make test PYTHON=python3.12
PYTHON ?= python3

# On Linux, PyPI's torch brings several GB of CUDA libraries. For the CPU build (same version, same results), give
# pip the index of CPU builds that PyTorch's own installation page names:
#     PIP_EXTRA_INDEX_URL=<that index> make demo TORCH=torch==2.13.0+cpu
# A wheel file at hand does as well: make demo TORCH=/path/to/torch-2.13.0+cpu-….whl
TORCH ?= torch==2.13.0

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-bare test-lowest lint clean

help: ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile

demo: $(INSTALLED) ## the whole way on Python's own documentation, ending with a table (5 minutes)
	$(BIN)/knnstore demo

test: lint ## lint, types and the whole suite
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

# The tests that ask for an optional program or for rights.
BARE = $(shell grep -rlE 'shutil\.which|needs_namespaces|load_kernel|small_disk|seaweed_command|geteuid' tests --include='test_*.py')

test-bare: $(INSTALLED) ## the tests that ask for optional programs or rights, without these
	tools/without_programs.sh $(BIN)/pytest -rs -n auto --dist loadfile -p no:cacheprovider $(BARE)

# From store to score, searches, generation, a cluster and a bucket: what the libraries are used for, in a few minutes.
# torch is the one of TORCH: give an older build for CPUs, from PyTorch's own index, to try the bound of pyproject.toml.
LOWEST := .venv-lowest/bin
LOWEST_TESTS := tests/test_three_commands.py tests/cli/test_cli_manners.py tests/index/test_index_search.py \
	tests/generation tests/suffixes tests/cluster/test_cluster_runner.py tests/objects/test_object_paths.py

test-lowest: ## a part of the suite with the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST)/python tools/lowest.py cloud seq2seq figures > .venv-lowest/lowest.txt
	$(LOWEST)/python -m pip install -r .venv-lowest/lowest.txt "$(TORCH)" pytest hypothesis psutil flask flask-cors 'moto[s3]'
	$(LOWEST)/python -m pip install --no-deps --editable .
	$(LOWEST)/pytest $(LOWEST_TESTS)

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean: ## remove the virtual environment and every cache
	rm -rf .venv .venv-lowest .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by itself: the other packages then find it there and don't ask for another build.
# The stamp is touched last, so an install that was cut short is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "knnstore needs Python 3.11 or newer, and there is no $(PYTHON): install it, or name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "knnstore needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1): name a newer one, such as make test PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) can't make virtual environments (it has no venv or no ensurepip): on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install -c constraints.txt --editable '.[test]'
	@touch $@
