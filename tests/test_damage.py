"""Damaged media files raise only our own errors, and take little time and memory."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from emostream.stream.sources.file import FileSource
from tests import media

_WITH_PICTURE = (".mp4", ".mkv", ".avi", ".ts")
_SOUND = (".webm", ".wav", ".mp3", ".ogg", ".flac")
_MOST_S = 5.0  # limit for a clip of two seconds, on a busy machine


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A clip of two seconds by suffix."""
    folder = tmp_path_factory.mktemp("whole")
    made = {suffix: media.talking_face(folder / f"x{suffix}", 2.0) for suffix in _WITH_PICTURE}
    made |= {suffix: media.write_media(folder / f"x{suffix}", speech=media.speech_samples(2.0)) for suffix in _SOUND}
    return {suffix: path.read_bytes() for suffix, path in made.items()}


@pytest.mark.process
@pytest.mark.parametrize("count", [20, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_damaged_files(whole: dict[str, bytes], tmp_path: Path, count: int):
    suffixes = list(whole)
    paths = [
        media.damaged(tmp_path / f"{seed}{suffixes[seed % len(suffixes)]}", whole[suffixes[seed % len(suffixes)]], seed)
        for seed in range(count)
    ]
    done = subprocess.run([sys.executable, "-m", "tests.damage", *paths], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout.splitlines()[-1:], done.stderr[-2000:])
    results = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    assert len(results) == count
    assert [(path, seconds) for path, seconds, _ in results if float(seconds) > _MOST_S] == []
    assert {outcome for _, _, outcome in results} == {"read", "SourceError"}
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_sound_that_damage_took_away_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, share: float):
    """FFmpeg silently skips clusters of a Matroska file that it does not understand."""
    source = FileSource(media.corrupt_middle(tmp_path / "hole.mkv", share), frozenset({"audio"}), 10)
    source.open()
    with caplog.at_level(logging.WARNING):
        assert list(source.items())
    source.close()
    assert "s of its sound are missing, first at 1." in caplog.text


def test_whole_sound_has_no_gap(whole: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for suffix, data in whole.items():
        (path := tmp_path / f"x{suffix}").write_bytes(data)
        source = FileSource(path, frozenset({"audio"}), 10)
        source.open()
        assert list(source.items())
        source.close()
    assert "missing" not in caplog.text
