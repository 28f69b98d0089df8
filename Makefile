# Two commands for a newcomer: `make quickstart` and `make test`. Nothing but Python and make is needed.
VENV ?= .venv

python := $(VENV)/bin/python
# An environment that exists keeps its Python; a new one gets the newest that m1jax supports and that runs here.
ifneq ($(wildcard $(python)),)
override PYTHON := $(python)
else ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell constraints/newest_python)
endif
version := $(shell $(or $(PYTHON),false) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
constraints := constraints/$(version).txt
ifeq ($(wildcard $(constraints))$(filter clean,$(MAKECMDGOALS)),)
$(error $(if $(version),$(PYTHON) is Python $(version): m1jax supports Python $(sort $(basename $(notdir $(wildcard constraints/*.txt)))); run make clean and then make without PYTHON,No Python: see above))
endif
# What an installed extra leaves behind, so that it is installed once.
installed = $(VENV)/.installed-$(1)

.PHONY: quickstart test test-slow test-all test-optimized compat lint clean

quickstart: $(call installed,quickstart)
	$(VENV)/bin/m1 quickstart --config configs/quickstart.py --sft configs/sft_quickstart.py

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

# Where bits and zeros must be exact, the optimised programs are tested too: tests/conftest.py leaves XLA's optimisation out.
test-optimized: $(call installed,test)
	M1_TESTS_OPTIMIZED=1 $(pytest) tests/model/test_isolation.py tests/model/test_precision.py

# For another Python, with the same packages: the rooms that are mostly Python, and a model that trains.
compat: $(call installed,compat)
	$(pytest) -m 'not slow' tests/config tests/curriculum tests/model tests/optim tests/rows tests/train

lint: $(call installed,lint)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(VENV)/bin/shellcheck -x constraints/newest_python launch/*.sh launch/remote/*.sh

clean:
	rm -rf $(VENV) runs

$(call installed,%): pyproject.toml $(constraints) | $(python)
	$(python) -m pip install --quiet --editable '.[$*]' --constraint $(constraints)
	touch $@

$(python):
	@$(PYTHON) -c 'import sys; print("Python", sys.version.split()[0], "of", sys.executable, "in $(VENV)")'
	$(PYTHON) -m venv $(VENV)
