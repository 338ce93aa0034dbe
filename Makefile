# Each target does its own set-up, in a virtual environment of the project's own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint bench gpu-check lock demo bundle clean

run: $(VENV)/.ready-to-run
	$(BIN)/stream-run --config config.toml

test: $(VENV)/.ready-to-test lint
	$(BIN)/python -m pytest

lint: $(VENV)/.ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "emostream needs Python 3.11 or newer; name one: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# --no-deps: the lock is complete, and Silero VAD's package would bring torch, which nothing live needs
$(VENV)/.ready-to-run: $(BIN)/python requirements.lock pyproject.toml
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.ready-to-test: $(VENV)/.ready-to-run requirements-dev.lock
	$(BIN)/python -m pip install --quiet -r requirements-dev.lock
	@touch $@

# Every benchmark, briefly, into docs/benchmarks.md; long runs: .venv/bin/python -m benchmarks.report --full
bench: $(VENV)/.ready-to-test
	$(BIN)/python -m benchmarks.report

# For a machine with a GPU and the CUDA toolkit; elsewhere it says what is missing and exits 3
gpu-check: $(VENV)/.ready-to-run
	@if nvidia-smi -L >/dev/null 2>&1 && command -v nvcc >/dev/null; then $(BIN)/python -m pip install --quiet --editable '.[gpu]'; fi
	@$(BIN)/python -m engines gpu-check; code=$$?; [ $$code -eq 0 ] || echo "gpu-check: exit code $$code" >&2; exit $$code

# Exact versions anew, from what pyproject.toml allows today
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet --upgrade pip
	build/lock/bin/pip install --quiet '.[offline]' && build/lock/bin/pip install --quiet --no-deps silero-vad
	build/lock/bin/pip freeze --exclude emostream > requirements.lock
	build/lock/bin/pip install --quiet torch==2.13.0 && build/lock/bin/pip install --quiet '.[offline,train,ray,openvino,engines,bench,dev]' tensorrt-rtx-cu13
	build/lock/bin/pip freeze --exclude emostream | sed 's/^\(torch==[0-9.]*\)+.*/\1/' > requirements-dev.lock
	rm -rf build/lock

# The demo clip anew (needs Debian's flite)
demo: $(VENV)/.ready-to-test
	$(BIN)/python -m pip install --quiet scikit-image==0.26.0
	$(BIN)/python tools/make_demo.py stream/sources/demo.mp4

# The default bundle anew, from the corpora in DATA
bundle: $(VENV)/.ready-to-test
	$(BIN)/python -m train fit --preset ekman7 --data $(DATA) --out engines/bundles/ekman7

clean:
	rm -rf $(VENV) build .pytest_cache .hypothesis .ruff_cache .mypy_cache
