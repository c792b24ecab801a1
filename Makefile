# Two commands: `make demo` and `make test`. Both make .venv first if it is missing.
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/estl demo --output-dir runs/demo

# Two processes of one thread each take half the time of one with two threads. One that ends is not
# replaced: the next would begin with the test that ended it.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

# What trains nothing, starts no process and reads no many files: under a minute on two cores.
fast: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

# The numerical tests once more as an older processor computes: ATen without vectors, oneDNN with
# SSE 4.1, MKL as on any processor, one thread. (On AMD MKL does not obey MKL_ENABLE_INSTRUCTIONS.)
# This holds for bfloat16 too: autocast computes in it on any processor, so that tests under autocast
# need no bfloat16 instructions, and run here on the fallback where `make test` took the real ones.
# Slow tests stay out: inductor of torch 2.13 cannot compile for ATEN_CPU_CAPABILITY=default.
PARTS := neurons students supervision guidance evaluation
NUMERICAL := $(addprefix tests/,$(PARTS) data/test_augment.py data/test_simulator.py) \
  $(addprefix src/estl/,$(PARTS) data/augment.py data/simulator.py)
other-processor: .venv/installed
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=1 \
	  $(BIN)/pytest -n 2 -m "not slow" $(NUMERICAL)

# The fast tests with the lowest versions that pyproject.toml allows. Those warn about what came after
# them, so that warnings are no errors here.
lowest: .venv-lowest/installed
	.venv-lowest/bin/pytest -m "not slow" -o filterwarnings=default

# What takes its time, or memory, against the bound that it has. The machine must be idle. `estl bench` ends with 1,
# and make goes on, since some bounds do not hold (docs/benchmarks.md).
bench: .venv/installed
	-$(BIN)/estl bench --output-dir runs/bench
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/loading.py $(or $(ESTL_SHARED),../shared)/data/nmnist-pairs

check: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# SpikingJelly and snnTorch as test oracles and benchmark peers, what exports are read back by, and what
# sweeps on other machines need. Without --no-deps the peers would replace torch.
PEERS := export,slurm,postgresql
peers: .venv/peers

.venv/peers: .venv/installed requirements-peers.txt
	$(BIN)/pip install --quiet -c constraints.txt -e ".[$(PEERS)]"
	$(BIN)/pip install --quiet --no-deps -r requirements-peers.txt
	touch $@

# Sweeps and runs on clusters of two nodes, of which one is killed: Ray, which is large, and SLURM where its
# daemons are (apt-get install slurm-wlm) and this is root. Seven minutes.
cluster: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[ray,slurm]"
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/experiments/test_launch.py tests/experiments/test_slurm.py

# What the neurons would run on a GPU, by Triton, which needs none: 280 MB, beside the environment, since PyTorch
# does other things where it finds it. Five minutes.
TRITON := triton==3.9.0
gpu-code: .venv/installed
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/triton $(TRITON)
	PYTHONPATH=build/triton OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/neurons/test_gpu_code.py

# The documentation as a site, in build/site; a dead link fails.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

.venv/docs: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

# What `check`, `docs`, `peers` and `test` need in one go: pip then resolves and builds once.
everything:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,docs,$(PEERS)]"
	$(BIN)/pip install --quiet --no-deps -r requirements-peers.txt
	touch .venv/installed .venv/docs .venv/peers

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

.venv-lowest/installed: pyproject.toml .ci/lowest.py
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	$(PYTHON) .ci/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet -c .venv-lowest/constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .venv-lowest build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: demo test fast other-processor lowest bench check format peers cluster gpu-code docs everything clean
