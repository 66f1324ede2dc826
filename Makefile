# Each target sets up what it needs; run any of them first in a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# pytest keeps the assertions that it has rewritten as byte code; else each process rewrites them.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

.PHONY: setup demo test test-all test-torchao lint docs wheel format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "==> Setting up $(VENV) with pinned dependencies (about two minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@echo "==> A wrapped Qwen3-VL with and without the mask bug: examples/find_the_mask_bug.py"
	@$(BIN)/python examples/find_the_mask_bug.py

test: $(STAMP)
	@echo "==> Tests, but for the slow ones (make test-all)"
	@$(PYTEST) -m "not slow and not covers"

test-all: $(STAMP)
	@echo "==> All tests, with coverage"
	@$(PYTEST) --cov --cov-report=term:skip-covered

test-torchao: $(STAMP)
	@echo "==> Models that torchao quantised (transformers imports it wherever it is installed)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torchao
	@$(PYTEST) tests/unit/adapters/quantised

lint: $(STAMP)
	@echo "==> Formatting"
	@$(BIN)/ruff format --check .
	@echo "==> Lint rules"
	@$(BIN)/ruff check .
	@echo "==> Types"
	@$(BIN)/mypy
	@echo "==> Import contracts"
	@$(BIN)/lint-imports

docs: $(STAMP)
	@echo "==> Documents: site/index.html"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@$(BIN)/mkdocs build --quiet --strict

wheel: $(STAMP)
	@echo "==> The wheel: dist/"
	@rm -rf dist
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
	@$(BIN)/python .ci/check_wheel.py dist/*.whl

format: $(STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) site dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage
