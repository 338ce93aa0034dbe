"""emostream/commands.py: one place for exit codes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from types import SimpleNamespace

import pytest

from emostream import commands
from emostream.commands import STOPPED, exit_code
from emostream.errors import ConfigError, SourceError
from tests.processes import BIN, ROOT, environment

COMMANDS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])


def fails(error: BaseException) -> int:
    def body() -> int:
        raise error

    return exit_code(body)


def mostly_long(*names: str) -> list:
    """All commands; only these are in the normal run."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.long) for name in COMMANDS]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SourceError("x: no such file"), 1, "error: x: no such file\n"),
        (ConfigError("fps = 0: too small"), 2, "error: fps = 0: too small\n"),
        (KeyboardInterrupt(), STOPPED, "stopped\n"),
    ],
)
def test_expected_errors_are_a_line_and_a_code(error, code, said, capsys):
    assert fails(error) == code
    assert capsys.readouterr().err == said


def test_other_errors_are_faults():
    with pytest.raises(ZeroDivisionError):
        fails(ZeroDivisionError())


@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [
        "stream-models list",
        pytest.param("stream-run --stream demo --pace fast --set speech.recognizer=none", marks=pytest.mark.long),
    ],
)
def test_a_closed_pipe_and_a_full_disk(command, tmp_path):
    command = f"{BIN}/{command}" + (f" --set bus.emotion=ipc://{tmp_path}/bus" if "run" in command else "")
    piped = subprocess.run(["bash", "-c", f"set -o pipefail; {command} | head -1"], capture_output=True, text=True)
    assert piped.returncode == 0 and "Traceback" not in piped.stderr, piped.stderr
    full = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True)
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    assert "No space left" in full.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    "closed", ["2>&-", "<&- >&- 2>&-", *(pytest.param(x, marks=pytest.mark.long) for x in ("<&-", ">&-"))]
)
def test_a_command_without_standard_streams(closed, tmp_path):
    """A daemon, or pythonw: neither a traceback nor a file in the place of a stream."""
    code = (
        "import os; from emostream import commands; commands._fill_standard_streams(); os.open(__file__, os.O_RDONLY)"
    )
    script = tmp_path / "script.py"
    script.write_text(f"{code}; import sys; print(1); print(2, file=sys.stderr); sys.exit(min(3, os.dup(0)))\n")
    done = subprocess.run(["bash", "-c", f"{sys.executable} {script} {closed}"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "" if ">&-" in closed.split(" ") else "1\n"), done.stderr
    assert done.stderr == ("" if "2>&-" in closed else "2\n")
    done = subprocess.run(["bash", "-c", f"{BIN}/stream-models list {closed}"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    done = subprocess.run(["bash", "-c", f"{BIN}/stream-models nonsense {closed}"], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout


@pytest.mark.process
@pytest.mark.parametrize("name", mostly_long("stream-run", "stream-train"))
def test_the_version_into_a_closed_pipe_and_a_full_disk(name):
    """Output is buffered, as by default, so the error comes when Python flushes."""
    buffered = {key: value for key, value in environment().items() if key != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed, open("/dev/full", "wb") as full:
        for out, code, said in ((closed, 0, ""), (full, 1, "No space left")):
            done = subprocess.run(
                [BIN / name, "--version"], stdout=out, stderr=subprocess.PIPE, text=True, env=buffered
            )
            assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.process
@pytest.mark.parametrize("name", mostly_long("stream-run"))
def test_ctrl_c_while_a_command_is_imported(name):
    """No traceback, whenever Ctrl-C comes: NumPy turns it into an ImportError."""
    script = name.replace("-", "_")
    code = f"from emostream.commands import {script}; print('begun', flush=True); {script}()"
    arguments = {"stream-run": ["--stream", "demo"], "stream-label": [ROOT / "stream/sources/demo.mp4"]}
    rng = random.Random(name)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments.get(name, [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        assert process.stdout.readline() == b"begun\n"
        time.sleep(rng.uniform(0.01, 0.6))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert b"Traceback" not in said and process.returncode in (0, 1, 2, STOPPED, -signal.SIGINT), said.decode()


def test_another_error_that_ctrl_c_made_is_ctrl_c(monkeypatch, capsys):
    monkeypatch.setattr("emostream.commands._stopped", True)
    assert fails(ImportError("multiarray failed to import")) == STOPPED
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("code", [0, 2, 3])
def test_the_exit_of_argparse_is_a_code(code):
    assert fails(SystemExit(code)) == code


@pytest.mark.parametrize(
    ("module", "given", "threads"), [("stream", "", "1"), ("stream", "2", "2"), ("train", "", None)]
)
def test_commands_take_one_thread_for_linear_algebra(monkeypatch, module, given, threads):
    for name in commands.THREADS:
        monkeypatch.setenv(name, given)  # so that it is restored
        if not given:
            monkeypatch.delenv(name)
    seen: list[str | None] = []
    loaded = SimpleNamespace(main=lambda: seen.append(os.environ.get("OMP_NUM_THREADS")) or 0)
    monkeypatch.setitem(sys.modules, f"emostream.{module}.nothing", loaded)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        commands._script(f"{module}.nothing", "main")()
    assert ended.value.code == 0 and seen == [threads]
