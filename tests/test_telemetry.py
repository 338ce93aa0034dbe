"""Nothing leaves the machine and nothing is stored unless asked for: the commands in a trap (tests/trap.py).

ONNX Runtime sends telemetry some seconds after its first session, unless it is turned off before it is imported.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from emostream.stream.sources import DEMO
from tests.processes import BIN, ROOT
from tests.test_own import record
from tests.trap import HOME, RUNTIME, UNSHARE, Trap

pytestmark = pytest.mark.process

FACE = ROOT / "engines/bundles/ekman7/face.onnx"
WAIT_S = 14  # ONNX Runtime first tries after some ten seconds

# What the trap must catch: emostream without its precaution.
CONTROL = f"""
import os, time
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
import onnxruntime
session = onnxruntime.InferenceSession({str(FACE)!r}, providers=["CPUExecutionProvider"])
time.sleep({WAIT_S})
"""
LABEL = f"""
import sys, time
from emostream.stream.label_command import label
sys.argv = ["stream-label", {str(DEMO)!r}, "--out", "labels.jsonl"]
assert label() == 0
time.sleep({WAIT_S})
"""
# By name and by address, to any port; and files that are gone at the end
OTHERS = """
import contextlib, os, pathlib, socket, time, urllib.request
with contextlib.suppress(OSError):
    urllib.request.urlopen("http://example.com/")
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"statistics", ("198.51.100.7", 8125))
with contextlib.suppress(OSError):
    socket.create_connection(("203.0.113.9", 4317))
server = socket.create_server(("0.0.0.0", 7777))
runtime = os.environ["XDG_RUNTIME_DIR"]
paths = [pathlib.Path(name) for name in ("/tmp/a", "/var/tmp/b", "/dev/shm/c", "d", f"{runtime}/e")]
for path in paths:
    path.write_text("they said hello")
time.sleep(0.1)
for path in paths:
    path.unlink()
"""
NOTHING = {"names": [], "packets": [], "sent": [], "listens": [], "seen": {}, "left": {}, "found": {}}


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    done = subprocess.run([*UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    if os.geteuid() != 0 or done.returncode:
        pytest.skip(f"needs root, unshare and ip for a network namespace: {done.stderr.decode().strip()}")


@pytest.mark.long
def test_stream_label_sends_nothing_and_leaves_its_labels_and_the_trap_would_catch_more(tmp_path):
    control = Trap(tmp_path / "control", sys.executable, "-c", CONTROL)
    label = Trap(tmp_path / "label", sys.executable, "-c", LABEL)
    caught = control.report()
    assert "mobile.events.data.microsoft.com" in caught["names"] and caught["left"]
    assert any(packet.startswith("tcp 127.0.0.1 443") for packet in caught["packets"])
    labels = {f"{HOME}/labels.jsonl": "0o600"}
    assert label.report() == NOTHING | {"seen": labels, "left": labels}


def test_the_trap_catches_whatever_is_sent_or_written(tmp_path):
    caught = Trap(tmp_path / "others", sys.executable, "-c", OTHERS, needles=[b"said hello"]).report()
    assert caught["names"] == ["example.com"]
    assert {"tcp 127.0.0.1 80", "udp 198.51.100.7 8125", "tcp 203.0.113.9 4317"} <= set(caught["packets"])
    assert bytes.fromhex(caught["sent"][0]).startswith(b"GET / HTTP")
    assert caught["listens"] == ["tcp 0.0.0.0 7777"]
    paths = {"/tmp/a", "/var/tmp/b", "/dev/shm/c", f"{HOME}/d", f"{RUNTIME}/e"}
    assert set(caught["seen"]) == paths == set(caught["found"]) and not caught["left"]


RUN = ["stream-run", "--stream", "demo", "--set", "bus.emotion=tcp://127.0.0.1:5999"]
OUTPUTS = ["--jsonl", HOME / "labels.jsonl", "--profile", HOME / "me.profile"]
# Patterns of allowed files and their modes: during a command, and after it
RUN_FOLDER = {
    rf"{RUNTIME}/emostream-\w+": "0o700",
    rf"{RUNTIME}/emostream": "0o700",
    rf"{RUNTIME}/emostream/control-[0-9a-f]{{12}}": "0o600",
    rf"{RUNTIME}/emostream-\w+/(in-use(\.new)?|[0-9a-f]{{12}})": ".*",
}
CACHE = HOME / ".cache/emostream"
LONG = {
    "stream-run": (RUN, RUN_FOLDER, {}),
    "stream-run with outputs": (
        [*RUN, *OUTPUTS],
        RUN_FOLDER | {rf"{HOME}/\.me\.profile(\.try)?\.\w+\.part|{HOME}/me\.profile\.try": "0o600"},
        {rf"{HOME}/labels\.jsonl": "0o600", rf"{HOME}/me\.profile": "0o600"},
    ),
    "stream-label": (["stream-label", *[DEMO] * 2], {}, {}),
    "stream-engines inspect": (["stream-engines", "inspect", "ekman7"], {}, {}),
    "stream-engines compare": (
        ["stream-engines", "compare", "ekman7", "--runs", "3"],
        {r"/dev/shm/sem\.mp-\w+": "0o600"},
        {},
    ),
    # PortAudio asks JACK and PulseAudio for their microphones; where they are installed, their libraries leave these
    "stream-doctor": (["stream-doctor"], {}, {rf"/dev/shm/jack.*|{RUNTIME}/pulse": ".*"}),
    "stream-train fit": (
        ["stream-train", "fit", "--corpus", "manifest", "--data", "mine.csv", "--steps", "12", "--out", "mine"],
        {rf"{CACHE}/train/[\w-]+/.+\.part": "0o600", rf"{HOME}/mine/\..+\.part": ".*"},
        {
            rf"{HOME}/\.cache|{CACHE}|{CACHE}/(train|torch)": ".*",
            rf"{CACHE}/train/[\w-]+": "0o700",
            rf"{CACHE}/train/[\w-]+/[0-9a-f]{{2}}": ".*",
            rf"{CACHE}/train/[\w-]+/.+\.(safetensors|json)": "0o600",
            rf"{HOME}/mine(/[\w-]+\.(onnx|txt|safetensors|json))?": ".*",
        },
    ),
}


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", LONG)
def test_no_command_sends_or_leaves_anything_but_what_is_documented(tmp_path, name):
    (program, *words), during, after = LONG[name]
    trapped = tmp_path / "trap"
    trapped.mkdir()
    if "mine.csv" in words:
        words[words.index("mine.csv")] = record(trapped)
    report = Trap(trapped, BIN / program, *words).report()
    assert unlike(report.pop("seen"), during | after) == {}
    left = report.pop("left")
    assert unlike(left, after) == {}
    if program != "stream-doctor":
        assert all(any(re.fullmatch(pattern, path) for path in left) for pattern in after)
    assert report.pop("listens") == (["tcp 127.0.0.1 5999"] if program == "stream-run" else [])
    assert report == {"names": [], "packets": [], "sent": [], "found": {}}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_ray_that_is_started_here_asks_nobody_and_leaves_nothing(tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "trap").mkdir()
    words = ["stream-label", DEMO, "--ray", "local", "--jobs", "1", "--set", "speech.recognizer=none"]
    report = Trap(tmp_path / "trap", BIN / words[0], *words[1:]).report()
    assert (report["names"], report["sent"], report["left"]) == ([], [], {})
    assert all(re.fullmatch(r"tcp 127\.0\.0\.1 \d{4,5}", packet) for packet in report["packets"])
    modes = {path: mode for path, mode in report["seen"].items() if re.fullmatch(r"/tmp/[^/]+", path)}
    assert len(modes) == 1 and set(modes.values()) == {"0o700"}


def unlike(files: dict[str, str], patterns: dict[str, str]) -> dict[str, str]:
    """The files, with their modes, that no pattern allows."""

    def allowed(path: str, mode: str) -> bool:
        return any(re.fullmatch(one, path) and re.fullmatch(modes, mode) for one, modes in patterns.items())

    return {path: mode for path, mode in files.items() if not allowed(path, mode)}
