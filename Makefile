# Two commands for a newcomer: `make quickstart` and `make test`. Nothing but Python and make is needed.
PYTHON ?= python3
VENV ?= .venv

python := $(VENV)/bin/python
version := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
constraints := constraints/$(version).txt
# What an installed extra leaves behind, so that it is installed once.
installed = $(VENV)/.installed-$(1)

.PHONY: quickstart test test-slow test-all compat lint clean

quickstart: $(call installed,quickstart)
	$(VENV)/bin/m1 quickstart --config configs/quickstart.py

# One file is one worker's, so that what a file compiles and trains is made once; the longest files come first
# (tests/conftest.py), so that neither core waits for the other at the end.
pytest := $(python) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(call installed,test)
	$(pytest) -m 'not slow'

# Kills, several processes, real weights: what takes longer than about ten seconds a test.
test-slow: $(call installed,test)
	$(pytest) -m slow

# Both in one run, as CI does it: what they share is made once.
test-all: $(call installed,test)
	$(pytest)

# The rooms that lean most on jax, flax and orbax: a short run for another Python or jax. tests/conftest.py leaves XLA's
# optimisation out; where bits and zeros must be exact, the optimised programs are tested too.
compat: $(call installed,test)
	$(pytest) -m 'not slow' tests/kernels tests/model tests/optim tests/parallel tests/train
	M1_TESTS_OPTIMIZED=1 $(pytest) tests/model/test_isolation.py tests/model/test_precision.py

lint: $(call installed,lint)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(VENV)/bin/shellcheck -x launch/*.sh launch/remote/*.sh

clean:
	rm -rf $(VENV) runs

$(call installed,%): pyproject.toml $(constraints) | $(python)
	$(python) -m pip install --quiet --editable '.[$*]' --constraint $(constraints)
	touch $@

$(python):
	$(PYTHON) -m venv $(VENV)

constraints/%.txt:
	@echo "m1jax is tested on Python 3.11 and 3.12, not on $*: run make PYTHON=python3.12 …, or another of these." >&2
	@exit 2
