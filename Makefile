# Two commands for a newcomer: `make crystals`, `make test`. The rest is for those who stay.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
FORMULA ?= LiFeO2

.PHONY: crystals test slow lint format clean

crystals: $(BIN)/python
	$(PIP) install -c constraints.txt ./packages/crystal-fidelity .
	$(BIN)/crystorus sample $(FORMULA) --z 1,2,4 --n 4 --candidates 8 --quality fast --out out/$(FORMULA)

test: $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[dev]' -e 'packages/crystal-fidelity[all,test]'
	$(BIN)/python -m pytest tests
	$(BIN)/python -m pytest packages/crystal-fidelity/tests

slow: test
	$(BIN)/python -m pytest tests -m slow
	$(BIN)/python -m pytest packages/crystal-fidelity/tests -m slow

lint: $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[dev]' -e 'packages/crystal-fidelity[all,test]'
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format:
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  "python %d.%d is too old: crystorus needs 3.11 or newer (make PYTHON=python3.12 ...)" % v[:2])'
	$(PYTHON) -m venv $(VENV)
