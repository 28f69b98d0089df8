# Two commands for a newcomer: `make quickstart` and `make test`. Nothing but Python and make is needed.
PYTHON ?= python3
VENV ?= .venv

python := $(VENV)/bin/python
version := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
constraints := constraints/$(version).txt
# What an installed extra leaves behind, so that it is installed once.
installed = $(VENV)/.installed-$(1)

.PHONY: quickstart test test-slow compat lint clean

quickstart: $(call installed,quickstart)
	$(VENV)/bin/m1 quickstart --config configs/quickstart.py

test: $(call installed,test)
	$(python) -m pytest -n 2 --dist loadfile -m 'not slow'

# Kills, several processes, real weights: what takes longer than about ten seconds a test. CI runs both.
test-slow: $(call installed,test)
	$(python) -m pytest -m slow

# The rooms that lean most on jax, flax and orbax: a short run for another Python or jax.
compat: $(call installed,test)
	$(python) -m pytest -n 2 --dist loadfile -m 'not slow' tests/kernels tests/model tests/optim tests/parallel tests/train

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
