"""emostream/files.py"""

from __future__ import annotations

import hashlib
import os
import stat

import pytest

from emostream import files


@pytest.mark.parametrize(("data", "content"), [(b"\x00\xff", b"\x00\xff"), ("naïve\n", "naïve\n".encode()), ("", b"")])
def test_a_file_is_written_and_replaced(tmp_path, data, content):
    path = tmp_path / "file"
    for _ in range(2):
        files.write_atomically(path, data)
        assert path.read_bytes() == content
        path.write_bytes(b"something longer than before")
    assert os.listdir(tmp_path) == ["file"]


def test_its_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    files.write_atomically(tmp_path / "atomic", b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_names_the_file_that_was_wanted(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        files.write_atomically(tmp_path / "missing" / "file", b"")
    assert caught.value.filename == str(tmp_path / "missing" / "file")


def test_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert files.sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_json_is_indented_and_ends_in_a_newline():
    assert files.as_json({"a": [1]}) == b'{\n  "a": [\n    1\n  ]\n}\n'
