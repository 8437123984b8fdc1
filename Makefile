# The two commands a newcomer needs: `make demo` and `make test`. Each makes the virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-slow lint large wheel clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spectrim needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/spectrim demo -o demo-out

# One process a core, each with one thread: more threads than cores wait for each other.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow --timeout 3000

lint: setup
	$(BIN)/ruff check src tests benchmarks experiments examples && $(BIN)/ruff format --check src tests benchmarks experiments examples

# Twelve gibibytes through survey, plan and trim in under two of memory: an hour on two cores, 20 GB of disk.
large: setup
	$(BIN)/python benchmarks/large_checkpoint.py --gib 12 --work large-checkpoint --output benchmarks/results/large_checkpoint.json

wheel: setup
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) dist build demo-out
