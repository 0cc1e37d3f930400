# Needs git, Python 3.11 or newer with venv and pip, and make. Everything is installed into .venv.
# Bytecode is compiled once here: without it the first start, and each one where Python may not write it, takes 6 s more.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
# --universal: one lock for every platform. No index is written into the locks: yours is used.
COMPILE := $(UV) pip compile -q --universal --generate-hashes --no-header --no-annotate --python-version 3.11
# Each test process gets one thread, or two processes would fight for the cores.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -n 2

# Tests of numbers whose last bits depend on the CPU's kernels.
NUMBERS := tests/ops tests/models/test_quantize.py tests/adapters/test_loftq.py tests/training/test_quantized_run.py

.PHONY: demo install dev test test-slow test-cpus test-wheel check docs lock

demo: install
	$(BIN)/fitune demo

install: .venv/.run
dev: .venv/.dev

test: dev
	$(PYTEST) --cov --cov-report= -m "not slow and not gpu and not wheel"

test-slow: dev
	$(PYTEST) -m "slow and not gpu"

# As on CPUs without bf16 and AMX instructions, and on those with AVX2 alone.
test-cpus: dev
	ONEDNN_MAX_CPU_ISA=AVX512_CORE $(PYTEST) -m "not gpu" $(NUMBERS)
	ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m "not gpu" $(NUMBERS)

# The wheel, built and used outside the clone.
test-wheel: dev
	$(PYTEST) -n 0 -m wheel tests/test_wheel.py

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python benchmarks/any_share.py --check > /dev/null
	$(BIN)/lint-imports
	$(BIN)/python -m fitune.cli.pages.docs --check

docs: dev
	$(BIN)/python -m fitune.cli.pages.docs

lock: $(UV)
	$(COMPILE) pyproject.toml -o locks/run.txt
	$(COMPILE) -c locks/run.txt pyproject.toml --group dev -o locks/dev.txt

$(UV):
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check uv

# TORCH_BACKEND=cpu (or cu128, auto, …) takes torch's wheels from PyTorch's own index: the lock's versions, not its hashes.
.venv/.run: locks/run.txt pyproject.toml | $(UV)
ifdef TORCH_BACKEND
	$(UV) pip install -q --compile-bytecode --python $(BIN)/python --torch-backend $(TORCH_BACKEND) \
	  --no-verify-hashes -c locks/run.txt -e .
else
	$(UV) pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -r locks/run.txt
	$(UV) pip install -q --python $(BIN)/python --no-deps -e .
endif
	touch $@

.venv/.dev: locks/dev.txt pyproject.toml | $(UV)
	$(UV) pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -r locks/dev.txt
	$(UV) pip install -q --python $(BIN)/python --no-deps -e .
	touch $@
