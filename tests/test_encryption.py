"""stream/encryption.py, and recordings that are encrypted"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyrage
import pytest
from mcap.reader import make_reader

from emostream.errors import ConfigError, EmostreamError, ModelError, SourceError
from emostream.stream.config import Config, Record, load_config
from emostream.stream.encryption import recipients
from emostream.stream.recorded import Recording, files_of, labels, sound_and_faces
from emostream.stream.recording import Recorder
from emostream.stream.sources.replay import ReplaySource
from tests.emotions import emotion_message
from tests.processes import ROOT, Pipeline, command
from tests.test_recording import FACTS, Clock, face, pcm, written

MAGIC = b"\x89MCAP0"


class Key:
    """A key pair like age-keygen's: the public key, and the file with the secret one."""

    def __init__(self, folder: Path, name: str = "owner") -> None:
        identity = pyrage.x25519.Identity.generate()
        self.public, self.file = str(identity.to_public()), folder / f"{name}.key"
        self.secret = str(identity)
        self.file.write_text(f"# created: 2026-01-01T00:00:00Z\n# public key: {self.public}\n{self.secret}\n")


@pytest.fixture
def key(tmp_path) -> Key:
    return Key(tmp_path)


def recorder(folder: Path, key: Key | str, clock: Clock | None = None, **settings: float) -> Recorder:
    public = key.public if isinstance(key, Key) else key
    config = Record(folder=str(folder), public_key=public, **settings)
    return Recorder(config, FACTS, lambda at_ns: at_ns, clock or Clock())


def sealed(folder: Path, key: Key | str, n: int = 30, clock: Clock | None = None) -> Path:
    one = recorder(folder, key, clock)
    for i in range(n):
        one.hear(pcm(i))
        one.see(face(i, people=i % 3))
    one.label(emotion_message(stream="desk", text="a secret sentence"))
    one.close()
    return one.path


def opened(path: Path, key: Key) -> bytes:
    """The content of a file, decrypted by pyrage."""
    return pyrage.decrypt(path.read_bytes(), [pyrage.x25519.Identity.from_str(key.secret)])


def test_it_is_a_recording_for_who_has_the_key(tmp_path, key):
    path = sealed(tmp_path / "r", key)
    assert path.name.endswith(".mcap.age") and path.stat().st_mode & 0o777 == 0o600
    reader = make_reader(io.BytesIO(opened(path, key)))
    summary = reader.get_summary()
    assert summary is not None and summary.statistics.message_count == 30 + 30 + 20 + 1
    assert [label.text for label in labels(path, "desk", str(key.file))] == ["a secret sentence"]
    plain = written(tmp_path / "plain")
    assert list(map(str, sound_and_faces(path, "desk", str(key.file)))) == list(
        map(str, sound_and_faces(plain, "desk"))
    )


@pytest.mark.process
def test_the_program_age_reads_it_and_we_read_what_it_writes(tmp_path):
    """With a pair of age-keygen."""
    if shutil.which("age") is None or shutil.which("age-keygen") is None:
        pytest.skip("age is not installed: apt-get install age")
    file = tmp_path / "its.key"
    subprocess.run(["age-keygen", "-o", file], check=True, capture_output=True)
    public = subprocess.run(["age-keygen", "-y", file], check=True, capture_output=True, text=True).stdout.strip()
    path = sealed(tmp_path / "r", public)
    assert Recording.of(path, str(file)).facts["run"] == FACTS["run"]
    done = subprocess.run(["age", "-d", "-i", file, path], capture_output=True, check=True)
    summary = make_reader(io.BytesIO(done.stdout)).get_summary()
    assert summary is not None and summary.statistics.message_count == 30 + 30 + 20 + 1
    plain = written(tmp_path / "plain")
    subprocess.run(["age", "-r", public, "-o", tmp_path / "by.age", plain], check=True)
    assert labels(tmp_path / "by.age", "desk", str(file)) == labels(plain, "desk")


def test_nothing_is_on_the_disk_until_it_is_encrypted(tmp_path, key):
    folder, clock = tmp_path / "r", Clock()
    one = recorder(folder, key, clock, minutes=10)
    for second in range(130):
        one.hear(pcm(second))
        one.label(emotion_message(stream="desk", text="a secret sentence"))
        one.tick()
        assert len(list(folder.iterdir())) == second // 60  # whole minutes, and no part of one
        clock.s += 1
    one.close()
    files = sorted(folder.iterdir())
    assert len(files) == 3 and all(path.name.endswith(".mcap.age") for path in files)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    for path in files:
        data = path.read_bytes()
        assert data.startswith(b"age-encryption.org/v1\n")
        assert not any(text in data for text in (MAGIC, b"secret", b"media_ns", FACTS["run"].encode()))
        assert Recording.of(path, str(key.file)).cut_short is False


def test_memory_is_bounded(tmp_path, key, monkeypatch):
    monkeypatch.setattr("emostream.stream.recording._MOST_HELD", 200_000)
    one = recorder(tmp_path / "r", key)
    for i in range(600):
        one.hear(pcm(i))
        one.tick()
        assert one._file.tell() < 200_000 + 100_000  # and a chunk
    one.close()
    files = sorted((tmp_path / "r").iterdir())
    assert len(files) > 2
    assert sum(len(content_of(path, key)) for path in files) == 600


def content_of(path: Path, key: Key) -> list[object]:
    return list(sound_and_faces(path, "desk", str(key.file)))


def test_files_of_one_run_are_read_as_one(tmp_path, key):
    folder, clock = tmp_path / "r", Clock()
    one = recorder(folder, key, clock)
    for i in range(90):
        one.hear(pcm(i))
        one.tick()
        clock.s += 2
    one.close()
    assert len(list(folder.iterdir())) == 3
    for place in (folder, folder / "*0123abcd*"):
        source = ReplaySource(str(place), frozenset({"audio"}), str(key.file))
        source.open()
        assert [item.media_ns for item in source.items()] == [32_000_000 * i for i in range(90)]
    with pytest.raises(SourceError, match="there are no such recordings"):
        files_of(folder / "*ffff*")
    other = Recorder(Record(folder=str(folder)), {**FACTS, "run": "9999"}, lambda at_ns: at_ns)
    other.hear(pcm(0))
    other.close()
    with pytest.raises(SourceError, match="is of another run than the files before it"):
        ReplaySource(str(folder), frozenset(), str(key.file)).open()


def test_several_may_read_it(tmp_path, key):
    other = Key(tmp_path, "other")
    file = tmp_path / "readers.txt"
    file.write_text(f"# who may read\n{key.public}\n\n  {other.public}\n")
    path = sealed(tmp_path / "r", str(file))
    assert [content_of(path, reader) != [] for reader in (key, other)] == [True, True]


def test_what_cannot_be_opened_is_told_in_a_line(tmp_path, key):
    path, other = sealed(tmp_path / "r", key, 300), Key(tmp_path, "other")
    assert path.stat().st_size > 400_000
    whole, cut = path.read_bytes(), tmp_path / "cut.mcap.age"
    for data, reader, says in [
        (whole, "", "is encrypted; give the file of its secret key: --identity"),
        (whole, other.file, "is encrypted for another key"),
        (whole, tmp_path / "none", "the key cannot be read"),
        (whole, path, "is no file of secret keys"),
        (whole[:200_000], key.file, "is cut off or damaged"),
        (whole[:-1], key.file, "is cut off or damaged"),
        (whole[:250_000] + bytes([whole[250_000] ^ 1]) + whole[250_001:], key.file, "is cut off or damaged"),
        (whole[:70], key.file, "is no file of age, or its start"),
        (b"", key.file, "is no file of age, or its start"),
        (b"no age", key.file, "is no file of age, or its start"),
    ]:
        cut.write_bytes(data)
        with pytest.raises(EmostreamError, match=says) as caught:
            Recording.of(cut, str(reader))
        assert "\n" not in str(caught.value) and key.secret not in str(caught.value)
    empty = tmp_path / "empty.key"
    empty.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no secret key"):
        Recording.of(path, str(empty))
    with pytest.raises(SourceError, match="is no MCAP file"):
        cut.write_bytes(pyrage.encrypt(b"something else", [pyrage.x25519.Recipient.from_str(key.public)]))
        Recording.of(cut, str(key.file))


def test_what_is_no_key_is_refused(tmp_path, key):
    for text, says in [
        ("age1" + "q" * 58, "is no public key of age"),
        (key.public[:-1], "is no public key of age"),
        ("somebody", "is neither a key of age"),
        (str(tmp_path), "is neither a key of age"),
        (str(key.file), "holds a secret key"),
    ]:
        with pytest.raises(ConfigError, match=says) as caught:
            recipients(text)
        assert key.secret not in str(caught.value)
    (tmp_path / "none.txt").write_text("# nobody\n")
    with pytest.raises(ConfigError, match="holds no public key"):
        recipients(str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="is a secret key; give the public one") as caught:
        load_config(None, [f"record.public_key={key.secret}"])
    assert key.secret[15:] not in str(caught.value)


@pytest.mark.process
def test_a_run_with_a_bad_key_does_not_begin(tmp_path):
    arguments = ("--stream", "demo", "--record", tmp_path / "r", "--set", "record.public_key=age1nobody")
    done = command("stream-run", *arguments)
    assert done.returncode == 2 and "is no public key of age" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_key_stands_as_it_is_and_a_file_of_keys_beside_its_configuration(tmp_path, key):
    for text, expected in [(key.public, key.public), ("readers.txt", str(tmp_path / "readers.txt")), ("", "")]:
        config = tmp_path / "c.toml"
        config.write_text(f'[record]\npublic_key = "{text}"\nidentity = "me.key"\n')
        record = load_config(config).record
        assert (record.public_key, record.identity) == (expected, str(tmp_path / "me.key"))


def test_a_full_disk_leaves_no_part(tmp_path, key):
    one = recorder(tmp_path / "r", key)
    for i in range(300):
        one.hear(pcm(i))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            one.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(one.path) and list((tmp_path / "r").iterdir()) == []


def test_parts_that_a_killed_run_left_go(tmp_path, key):
    folder = tmp_path / "r"
    folder.mkdir()
    old, new = (folder / f".emostream-20260101T000000Z-0123abcd-{n:04}.mcap.age.part" for n in (1, 2))
    mine = folder / ".mine.part"
    for path in (old, new, mine):
        path.write_bytes(b"")
    for path in (old, mine):
        os.utime(path, (0, 0))
    sealed(folder, key)
    assert not old.exists() and new.exists() and mine.exists()


_WRITER = """
import sys, time
from pathlib import Path
from tests.test_encryption import recorder
from tests.test_recording import pcm

one, i = recorder(Path(sys.argv[1]), sys.argv[2], minutes=0.05 / 60), 0
one._now = time.time
print("go", flush=True)
while True:
    one.hear(pcm(i))
    one.tick()
    i += 1
"""


@pytest.mark.process
def test_a_kill_at_any_moment_leaves_whole_minutes_and_no_plain_byte(tmp_path, key):
    rng = random.Random(7)
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, folder, key.public], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        try:
            assert writer.stdout is not None and writer.stdout.readline() == "go\n"
            until = time.monotonic() + 20
            while len(list(folder.glob("*.age"))) < 3:
                assert time.monotonic() < until
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.1))
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
        times = [at_ns for path in files_of(folder) for at_ns, _ in content_of(path, key)]  # type: ignore[misc]
        assert times == [32_000_000 * i for i in range(len(times))]
        for path in folder.iterdir():
            assert path.suffix == ".age" or path.name.endswith(".age.part")
            assert MAGIC not in path.read_bytes() and b"media_ns" not in path.read_bytes()
        assert all(opened(path, key).endswith(MAGIC + b"\r\n") for path in files_of(folder))


@pytest.mark.long
@pytest.mark.process
@pytest.mark.realtime
def test_a_run_is_recorded_encrypted_with_pictures_and_a_kill_costs_what_was_held(tmp_path, key):
    folder = tmp_path / "r"
    settings = {"public_key": key.public, "video": "true", "minutes": "0.03"}
    changes = [text for name, value in settings.items() for text in ("--set", f"record.{name}={value}")]
    with Pipeline("--stream", "desk=demo", "--record", folder, "--set", "speech.recognizer=none", *changes) as run:
        run.subscriber.wait_for("utterance", 1, 40)
        os.kill(run.node("record"), signal.SIGKILL)
        before = set(folder.glob("*.age"))
        until = time.monotonic() + 20
        while not set(folder.glob("*.age")) - before:
            assert time.monotonic() < until, run.output
            time.sleep(0.05)
        run.interrupt()
    assert run.process.returncode == 0, run.output
    assert "recording sound, faces and pictures, encrypted: " in run.output and "record: crashed" in run.output
    assert before and all(path.name.endswith(".mcap.age") for path in folder.iterdir())
    found: dict[str, list[dict]] = {}
    for path in files_of(folder):
        reader = make_reader(io.BytesIO(opened(path, key)))
        for _, channel, message in reader.iter_messages():
            found.setdefault(channel.topic, []).append(json.loads(message.data))
    wanted = {f"/desk/{kind}" for kind in ("sound", "face", "faces", "speech", "window", "picture", "boxes")}
    assert wanted | {"/status", "/log"} <= found.keys()
    assert any("crashed" in line["message"] and line["level"] == 4 for line in found["/log"])
    assert any(line["name"] == "fusion" for line in found["/log"])  # of the start
    pictures = [picture["media_ns"] for picture in found["/desk/picture"]]
    assert len({at_ns // 200_000_000 for at_ns in pictures}) == len(pictures) > 3
    assert any(boxes["points"] for boxes in found["/desk/boxes"])
    done = command("stream-replay", folder, "--identity", key.file, "--set", "speech.recognizer=none")
    assert done.returncode == 0 and "would change" in done.stderr, done.stderr


def test_without_the_package_it_is_told_how_to_get_it(key, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyrage", None)
    with pytest.raises(ModelError, match=r"pip install 'emostream\[record\]'"):
        recipients(key.public)


def test_without_a_key_the_settings_are_as_they_were():
    assert (Config().record.public_key, Config().record.video, Config().record.identity) == ("", False, "")
