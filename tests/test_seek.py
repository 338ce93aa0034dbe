"""stream/sources/file.py: files that are read from a place within them"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import av
import pytest

from emostream.stream.sources import DEMO
from emostream.stream.sources.file import FileSource
from tests import media


def copied(path: Path) -> Path:
    """The demo's packets in another container."""
    with av.open(str(path), "w") as out, av.open(str(DEMO)) as clip:
        streams = (*clip.streams.video, *clip.streams.audio)
        tracks = {track.index: out.add_stream_from_template(track) for track in streams}
        for packet in clip.demux(*streams):
            if packet.dts is not None:
                packet.stream = tracks[packet.stream.index]
                out.mux(packet)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["copy.mp4", "copy.mkv", "copy.ts"])
@pytest.mark.parametrize("medium", ["audio", "video"])
def test_a_file_is_read_from_a_place_before_the_time_that_was_sought(tmp_path, name, medium):
    """A seek must land not far before: a restarted node must not decode an hour first. Times stay those of the file."""
    path = copied(tmp_path / name)
    whole, part = (FileSource(path, frozenset({medium}), 10) for _ in range(2))
    times = []
    for source, media_s in ((whole, None), (part, 18)):
        source.open()
        if media_s is not None:
            source.seek(media_s * 1_000_000_000)
        times.append([item.media_ns for item in source.items()])
        source.close()
    assert times[0][0] < 1e9 and 6e9 < times[1][0] <= 18.1e9
    assert times[1][-1] == pytest.approx(times[0][-1], abs=2e8)
    if medium == "audio":
        assert set(times[1]) <= set(times[0])


def test_a_file_that_cannot_be_sought_is_read_from_its_start(tmp_path):
    fifo = tmp_path / "sound.wav"
    os.mkfifo(fifo)
    sound = media.audio_only(tmp_path / "whole.wav", 2.0)
    writer = threading.Thread(target=lambda: fifo.write_bytes(sound.read_bytes()), daemon=True)
    writer.start()
    source = FileSource(fifo, frozenset({"audio"}), 10)
    source.open()
    source.seek(1_000_000_000)
    chunks = list(source.items())
    source.close()
    assert chunks[-1].media_end_ns == pytest.approx(2e9, abs=1e7)
