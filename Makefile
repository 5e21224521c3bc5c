# Two commands do all the set-up, each from a bare machine with Python 3.11 to 3.14:
#   make demo   upscale the pictures in examples/ with the bundled weights (no torch)
#   make test   format check, lint, layers, types and the whole test suite
# For those who change something:
#   make format docs lock     write what can be written by a program; CONTRIBUTING.md says when
#   make test-slow bench      what takes minutes
PYTHON ?= python3
CORE := .venv
DEV := .venv-dev
PIP_FLAGS := --quiet --disable-pip-version-check
EXTRAS := client,cluster,codecs,heic,models,service,train,watch
LOCK := requirements-dev.lock

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow bench weights lint format docs lock clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(CORE)/installed
	@$(CORE)/bin/srgan upscale examples -o examples/upscaled
	@$(CORE)/bin/python -c "import pathlib; print('Your pictures:', pathlib.Path('examples/upscaled').resolve())"

test: lint
	$(DEV)/bin/pytest

# The jobs of several machines are tested with a real PostgreSQL, where one can be had.
test-slow: $(DEV)/installed
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql >/dev/null; } \
		|| echo "PostgreSQL is not here and cannot be installed: its tests will be skipped"
	$(DEV)/bin/pytest -m slow

# Half an hour on two idle cores. PARTS="engine load" measures these alone.
bench: $(DEV)/installed
	$(DEV)/bin/python benchmarks/bench.py $(PARTS)

# MINUTES of training in all, DATA a folder of photographs, BENCHMARKS a folder of folders with HR and LRx4.
weights: $(DEV)/installed
	$(DEV)/bin/python tools/make_weights.py --minutes $(MINUTES) --data $(DATA) --benchmarks $(BENCHMARKS)

lint: $(DEV)/installed
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	PYTHONPATH=.:service $(DEV)/bin/lint-imports --no-logo
	$(DEV)/bin/mypy

format: $(DEV)/installed
	$(DEV)/bin/ruff format .
	$(DEV)/bin/ruff check --fix .

# Pages that are made from the program itself; a test fails where they are not current.
docs: $(DEV)/installed
	$(DEV)/bin/python tools/make_docs.py

# The versions that `make test` installs. Pins that are there are kept where they still fit; UV="uv ..." names another
# uv, UPGRADE="--upgrade" or "--upgrade-package NAME" takes newer ones.
UV ?= uv
lock:
	$(UV) pip compile pyproject.toml --all-extras --group dev --universal --no-annotate --no-emit-index-url \
		--custom-compile-command "make lock" --output-file $(LOCK) --quiet $(UPGRADE)

clean:
	rm -rf $(CORE) $(DEV) examples/upscaled

# The environments are made once, and again when the dependencies change; each stands on its own.
# $(call environment,FOLDER,WHAT TO INSTALL,WHAT TO SAY)
define environment
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14) and 'srgan needs Python 3.11 to 3.14; say for example: make PYTHON=python3.12')"
	@echo "Creating $(1) ($(3)) ..."
	@$(PYTHON) -m venv $(1)
	@$(1)/bin/pip install $(PIP_FLAGS) --upgrade 'pip>=25.1'
	@$(1)/bin/pip install $(PIP_FLAGS) $(2)
	@touch $(1)/installed
endef

$(CORE)/installed: pyproject.toml
	$(call environment,$(CORE),--editable .,about 350 MB; half a minute)

# pip knows dependency groups from 25.1 on. LOCK= takes the newest versions instead of the tested ones.
$(DEV)/installed: pyproject.toml $(LOCK)
	$(call environment,$(DEV),--editable '.[$(EXTRAS)]' --group dev $(LOCK:%=--constraint %),with torch: 7 GB; some minutes)
