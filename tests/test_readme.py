"""The README's lines in other languages do what it says."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import zmq

from emostream.stream.public import EmotionPublisher
from tests.emotions import emotion_message
from tests.processes import ROOT, free_port

pytestmark = pytest.mark.process


def lines(language: str, endpoint: str) -> str:
    block = re.search(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None and len(block[1].splitlines()) <= 8
    return block[1].replace("tcp://127.0.0.1:5556", endpoint)


def first_line(command: list[str | Path], endpoint: str, folder: Path) -> str:
    """What the program prints first while labels are published."""
    with zmq.Context() as context, subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as program:
        publisher = EmotionPublisher(context, endpoint)
        assert program.stdout is not None
        until = time.monotonic() + 20
        while not select.select([program.stdout], [], [], 0.05)[0]:
            publisher.send(emotion_message())
            assert time.monotonic() < until
        line = program.stdout.readline()
        program.kill()
        publisher.close()
    return line.strip()


def test_cpp(tmp_path):
    if shutil.which("g++") is None or subprocess.run(["pkg-config", "--exists", "libzmq"], check=False).returncode:
        pytest.skip("g++, pkg-config or libzmq3-dev is not installed")
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    (tmp_path / "listen.cpp").write_text(lines("cpp", endpoint))
    subprocess.run(["g++", "-Wall", "-Werror", "listen.cpp", "-lzmq"], cwd=tmp_path, check=True)
    assert json.loads(first_line([tmp_path / "a.out"], endpoint, tmp_path))["label"] == "joy"


def test_node(tmp_path):
    places = (ROOT / "node_modules", Path(os.environ.get("NODE_PATH", "node_modules")))
    modules = next((place for place in places if (place / "zeromq").is_dir()), None)
    if shutil.which("node") is None or modules is None:
        pytest.skip("Node or its package zeromq is not installed (npm install zeromq@6)")
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    (tmp_path / "listen.js").write_text(lines("js", endpoint))
    (tmp_path / "node_modules").symlink_to(modules)
    assert first_line(["node", "listen.js"], endpoint, tmp_path) == "joy"
