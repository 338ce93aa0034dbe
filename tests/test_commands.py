"""emostream/commands.py: one place for exit codes."""

from __future__ import annotations

import subprocess

import pytest

from emostream.commands import STOPPED, exit_code
from emostream.errors import ConfigError, SourceError
from tests.processes import BIN


def fails(error: BaseException) -> int:
    def body() -> int:
        raise error

    return exit_code(body)


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
@pytest.mark.parametrize("command", ["stream-models list", "stream-run --stream demo --pace fast"])
def test_a_closed_pipe_and_a_full_disk(command, tmp_path):
    command = f"{BIN}/{command}" + (f" --set bus.emotion=ipc://{tmp_path}/bus" if "run" in command else "")
    piped = subprocess.run(["bash", "-c", f"set -o pipefail; {command} | head -1"], capture_output=True, text=True)
    assert piped.returncode == 0 and "Traceback" not in piped.stderr, piped.stderr
    full = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True)
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    assert "No space left" in full.stderr
