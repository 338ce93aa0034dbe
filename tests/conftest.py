"""Fixtures for all tests, and an environment in which results are the same on any machine."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when numpy is imported
    os.environ[_name] = "1"
os.environ.pop("EMOSTREAM_MODELS", None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background jobs; child processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import cv2
import numpy as np
import pytest
from _pytest.assertion import rewrite
from hypothesis import settings

from emostream.engines.bundle import Bundle, open_bundle
from emostream.stream.cores.classifier import Classifier
from emostream.stream.speech.vad import SileroVad, load_vad
from tests import media

cv2.setNumThreads(1)
settings.register_profile("tests", deadline=None, max_examples=50, derandomize=bool(os.environ.get("CI")))
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def no_models_of_this_user(tmp_path_factory: pytest.TempPathFactory):
    """Models that the user has downloaded, and keys, must not affect a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session")
def speech_samples() -> np.ndarray:
    """4 s of the demo: (64000,) int16 at 16 kHz, speech from 0.5 to 3.2 s."""
    return media.speech_samples(4.0)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return open_bundle("ekman7")


@pytest.fixture(scope="session")
def classifier(bundle: Bundle) -> Classifier:
    return Classifier(bundle, "onnxruntime")


@pytest.fixture(scope="session")
def vad() -> SileroVad:
    return load_vad()


@pytest.fixture(autouse=True)
def no_process_without_the_mark(request: pytest.FixtureRequest):
    """``make check`` leaves out the tests marked ``process``, and guarantees that the others start none."""
    if request.node.get_closest_marker("process") is not None:
        yield
        return

    start = subprocess.Popen.__init__

    def refuse(process: object, command: object = None, *others: Any, **options: Any) -> None:
        if isinstance(command, list) and command[0] in ("uname", "fc-list"):  # platform's and matplotlib's, once
            return start(process, command, *others, **options)
        pytest.fail("this test starts a process: mark it with @pytest.mark.process")

    # not the test's own monkeypatch, which would then outlive its other fixtures and undo their changes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", refuse)
        patch.setattr(BaseProcess, "start", refuse)
        yield


@pytest.fixture
def short_path():
    """A short path, as sockets need; pytest's folders are longer."""
    with tempfile.TemporaryDirectory(prefix="e") as folder:
        yield Path(folder)


def pytest_configure(config: pytest.Config) -> None:
    """Compile the tests before xdist's workers start, each of which would compile all of them (8 s of processor time in
    a fresh checkout), since they import the same files at the same time."""
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", 0) or sys.dont_write_bytecode:
        return
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        compiled = rewrite.get_cache_dir(path) / f"{path.stem}{rewrite.PYC_TAIL}"
        if rewrite._read_pyc(path, compiled) is None:
            source_hash, code = rewrite._rewrite_test(path, config)
            rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, source_hash, compiled)


_FIRST = ("pipeline", "page", "recording", "own", "control", "health", "site")  # each takes half a minute


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests start processes come first, the longest at the very start: they mostly wait, and tests that
    only compute fill that time and the end (with xdist's ``--dist loadfile --no-loadscope-reorder``)."""
    starting = {item.path for item in items if item.get_closest_marker("process") is not None}

    def place(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.stem.removeprefix("test_")
        return _FIRST.index(name) if name in _FIRST else len(_FIRST), item.path not in starting

    items.sort(key=place)  # stable, so the order within a file stays


def pytest_collection_finish() -> None:
    gc.freeze()  # modules and tests live to the end, so garbage collection can skip them
