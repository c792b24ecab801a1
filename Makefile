# Two commands: `make demo` and `make test`. Both make .venv first if it is missing.
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/estl train-teacher --dataset digits --epochs 30 --output-dir runs/demo/teacher
	$(BIN)/estl ablate --config digits_guided --teacher runs/demo/teacher --rungs 1,5 --seeds 0 \
	  --output-dir runs/demo

test: .venv/installed
	$(BIN)/pytest

fast: .venv/installed
	$(BIN)/pytest -m "not slow"

check: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# SpikingJelly and snnTorch as test oracles and benchmark peers. Without --no-deps they would
# replace torch.
peers: .venv/installed
	$(BIN)/pip install --no-deps -r requirements-peers.txt

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: demo test fast check format peers clean
