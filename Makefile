# Two commands for a newcomer: `make crystals`, `make test`. The rest is for those who stay.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
FORMULA ?= LiFeO2
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: crystals dev test slow docs release-check coverage lint format lowest clean

crystals: $(BIN)/python
	@echo "installing into $(VENV): 1.6 GB, some minutes in which pip says nothing"
	$(PIP) install -c constraints.txt ./packages/crystal-fidelity .
	$(BIN)/crystorus sample $(FORMULA) --z 1,2,4 --n 4 --out out/$(FORMULA)

# crystal-fidelity first: pip has to know it by then, no index has it. What is never imported is
# not compiled, which saves a minute.
dev: $(VENV)/installed
$(VENV)/installed: pyproject.toml packages/crystal-fidelity/pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV): some minutes in which pip says nothing"
	$(PIP) install --no-compile -c constraints.txt \
	  -e 'packages/crystal-fidelity[all,test]' -e '.[dev]'
	touch $@

# Each process has one thread: two that share the cores slow each other down.
test: dev
	OMP_NUM_THREADS=1 $(PYTEST) tests
	OMP_NUM_THREADS=1 $(PYTEST) packages/crystal-fidelity/tests

slow: test
	$(BIN)/python -m pytest tests -m slow
	$(BIN)/python -m pytest packages/crystal-fidelity/tests -m slow

# The tutorials are run, then all pages made; a warning or a link that leads nowhere is an error.
docs: dev
	OMP_NUM_THREADS=1 $(BIN)/python tools/tutorials.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	$(BIN)/python tools/check_site.py build/site

coverage: dev
	$(BIN)/python -m pytest tests --cov --cov-report=
	$(BIN)/python -m pytest packages/crystal-fidelity/tests --cov --cov-append --cov-report=term:skip-covered

lint: dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

format:
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Wheels and sdists, built, looked into, and installed alone in clean environments.
release-check:
	PYTHONS="$(or $(PYTHONS),$(PYTHON))" bash packaging/check.sh

# The lowest versions that the two pyproject.toml declare, in an environment of their own.
lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	@echo "installing into $(VENV)-lowest: some minutes in which pip says nothing"
	$(VENV)-lowest/bin/python -m pip --disable-pip-version-check --quiet install \
	  -c constraints-lowest.txt ./packages/crystal-fidelity .
	$(VENV)-lowest/bin/python tools/import_everything.py
	$(VENV)-lowest/bin/crystorus sample $(FORMULA) --quality fast --out out/lowest --overwrite

clean:
	rm -rf $(VENV) $(VENV)-lowest build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  "python %d.%d is too old: crystorus needs 3.11 or newer (make PYTHON=python3.12 ...)" % v[:2])'
	$(PYTHON) -m venv $(VENV)
