"""Files are written whole or not at all."""

import hashlib
import os

import pytest

from emostream.files import sha256, write_atomically


@pytest.mark.parametrize("data", [b"\x00bytes", "text with an ä"])
def test_what_is_written_replaces_the_file(tmp_path, data):
    path = tmp_path / "file"
    path.write_text("old")
    write_atomically(path, data)
    raw = data.encode() if isinstance(data, str) else data
    assert path.read_bytes() == raw and list(tmp_path.iterdir()) == [path]
    assert sha256(path) == hashlib.sha256(raw).hexdigest()


def test_a_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
