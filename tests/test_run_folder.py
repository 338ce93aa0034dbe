"""stream/run_folder.py"""

from __future__ import annotations

import shutil
import stat
import subprocess
from contextlib import closing

import pytest
import zmq

from emostream.errors import BusError
from emostream.stream.bus import Publisher
from emostream.stream.clock import VirtualClock
from emostream.stream.run_folder import RunFolder, are_there, hold, ipc, make_run_dir


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def test_the_run_dir_is_private_to_the_user(short_path):
    first, second = (make_run_dir(str(short_path / "new" / "runs")) for _ in range(2))
    assert first != second
    assert first.parent == short_path / "new" / "runs"
    for folder in (first, first.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.process
@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="needs systemd-tmpfiles")
def test_what_cleans_temporary_folders_leaves_that_of_a_run_alone(context, short_path):
    held, left = make_run_dir(str(short_path)), make_run_dir(str(short_path))
    (left / "socket").touch()
    (config := short_path.with_suffix(".conf")).write_text(f"d {short_path} 0700 - - 0\n")
    with closing(hold(held)), closing(Publisher(context, ipc(held, "audio"), VirtualClock(), 10, False)):
        subprocess.run(["systemd-tmpfiles", "--clean", config], check=True)
        config.unlink()
        assert are_there(held, ["audio"]) and not are_there(held, ["audio", "video"]) and not left.exists()


def test_the_run_dir_is_in_the_users_runtime_folder_if_there_is_one(short_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    assert make_run_dir().parent == short_path
    (short_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(short_path / "t"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path / "gone"))
    assert make_run_dir().parent == short_path / "t"


def test_a_run_dir_that_cannot_be_made(short_path):
    (short_path / "file").write_text("")
    with pytest.raises(BusError, match=r"bus\.run_dir = .*file"):
        make_run_dir(str(short_path / "file"))


def test_a_run_dir_whose_path_is_too_long_for_sockets(short_path):
    with pytest.raises(BusError, match=r"too long for sockets; set bus\.run_dir"):
        make_run_dir(str(short_path / ("long" * 20)))


def test_the_longest_run_dir_that_is_allowed_has_room_for_a_node(context, short_path):
    parent = str(short_path / "x")
    parent += "x" * (70 - len(parent))
    folder = make_run_dir(parent)
    Publisher(context, ipc(folder, "capture." + "front-door" * 6), VirtualClock(), 10, False)
    with pytest.raises(BusError, match="too long"):
        make_run_dir(parent + "x")


def test_a_removal_is_noticed_once_and_not_what_a_node_that_ends_takes_with_it(short_path):
    folder = RunFolder(str(short_path))
    (socket := short_path / folder.path.name / ipc(folder.path, "audio").rpartition("/")[2]).touch()
    second_ns = 1_000_000_000
    assert not folder.notice_removal(["audio"], second_ns) and folder.can_be_joined("audio")
    socket.unlink()
    assert not folder.notice_removal(["audio"], 2 * second_ns)
    socket.touch()  # it was started again
    assert not folder.notice_removal(["audio"], 3 * second_ns)
    socket.unlink()
    seen = [folder.notice_removal(["audio"], round(at_s * second_ns)) for at_s in (4, 4.5, 5, 6)]
    assert seen == [False, False, True, False] and folder.removed
    socket.touch()
    assert not folder.can_be_joined("audio")
    folder.remove()
    assert not folder.path.exists()
