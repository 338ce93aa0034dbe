"""Nothing leaves the machine: the commands in a network namespace whose resolver notes every name.

ONNX Runtime sends telemetry some seconds after its first session, unless it is turned off before it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emostream.stream.sources import DEMO
from tests.processes import BIN, ROOT

pytestmark = pytest.mark.process

FACE = ROOT / "engines/bundles/ekman7/face.onnx"
WAIT_S = 14  # ONNX Runtime first tries after some ten seconds

# As emostream would be without its precaution: what the trap must catch.
CONTROL = f"""
import os, time
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
import onnxruntime
session = onnxruntime.InferenceSession({str(FACE)!r}, providers=["CPUExecutionProvider"])
time.sleep({WAIT_S})
"""
LIBRARY = f"""
import emostream, time
with emostream.Labeller() as labeller:
    assert len(list(labeller.label({str(DEMO)!r}))) == 5
    time.sleep({WAIT_S})
"""


class Trap:
    """A command in a namespace of its own; ``report`` waits for its end."""

    def __init__(self, folder: Path, *command: object) -> None:
        folder.mkdir()
        (folder / "home").mkdir()
        self._report = folder / "report.json"
        self._process = subprocess.Popen(
            ["unshare", "-nm", sys.executable, ROOT / "tests/trap.py", self._report, folder / "home", *command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        )  # fmt: skip

    def report(self) -> dict:
        output, _ = self._process.communicate(timeout=110)
        assert self._report.is_file(), output
        report = json.loads(self._report.read_text())
        assert report.pop("code") == 0, output
        return report


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    done = subprocess.run(["unshare", "-nm", "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    if os.geteuid() != 0 or done.returncode:
        pytest.skip(f"needs root, unshare and ip for a network namespace: {done.stderr.decode().strip()}")


def test_the_library_sends_nothing_and_the_trap_would_catch_it(tmp_path):
    control = Trap(tmp_path / "control", sys.executable, "-c", CONTROL)
    library = Trap(tmp_path / "library", sys.executable, "-c", LIBRARY)
    caught = control.report()
    assert "mobile.events.data.microsoft.com" in caught["names"] and caught["files"]
    assert library.report() == {"names": [], "sent": [], "files": []}


LONG = {
    "stream-run": ["stream-run", "--stream", "demo", "--set", "bus.emotion=tcp://127.0.0.1:5999"],
    "stream-label": ["stream-label", *[DEMO] * 8],
    "stream-engines compare": ["stream-engines", "compare", "ekman7", "--runs", "60"],
}


@pytest.mark.long
@pytest.mark.parametrize("command", LONG.values(), ids=LONG)
def test_no_command_sends_anything(tmp_path, command):
    report = Trap(tmp_path / "command", BIN / command[0], *command[1:]).report()
    assert report == {"names": [], "sent": [], "files": []}
