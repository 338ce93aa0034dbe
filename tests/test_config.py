"""stream/config.py"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.errors import ConfigError, SourceError
from emostream.stream.config import Config, Stream, check_tracks, load_config, parse_stream
from emostream.stream.source_spec import SourceSpec


def _problems(tmp_path: Path, toml: str = "", changes: list[str] | None = None, **options) -> list[str]:
    """The lines of the error that this configuration raises."""
    path = tmp_path / "config.toml"
    path.write_text(toml, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, changes or [], **options)
    return str(caught.value).splitlines()


# Reading


def test_nothing_configured_runs_the_demo():
    config = load_config(None)
    assert [(stream.name, stream.source) for stream in config.streams] == [("demo", "demo")]
    assert config.pace == "realtime"


def test_the_file_changes_what_it_names_and_nothing_else(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[speech]\nhangover_ms = 600\n[[streams]]\nname = "door"\nsource = "camera:1"\n')
    config = load_config(path)
    assert config.speech.hangover_ms == 600
    assert config.speech.model_copy(update={"hangover_ms": 400}) == Config().speech
    assert config.video == Config().video
    assert config.streams == [Stream(name="door", source="camera:1")]


def test_the_shipped_configuration_is_valid():
    shipped = Path(__file__).parent.parent / "config.toml"
    if not shipped.exists():
        pytest.skip("no config.toml beside the tests")
    assert load_config(shipped).pace in ("realtime", "fast")


def test_a_configuration_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        load_config(None).pace = "fast"


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read \(No such file"):
        load_config(tmp_path / "nowhere.toml")


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize("data", [b"[speech\n", b"a = ", b"pace = fast", b"\xff\xfe"])
def test_a_file_that_is_no_toml(tmp_path, data):
    path = tmp_path / "broken.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML"):
        load_config(path)


# Unknown keys and bad values


@pytest.mark.parametrize(
    ("toml", "key", "known"),
    [
        ("speeches = 1", "speeches", "speech"),
        ("[speech]\nhangover = 300", "speech.hangover", "hangover_ms"),
        ("[video]\nFPS = 5", "video.FPS", "fps"),
        ('[[streams]]\nsource = "demo"\ndevice = 1', "streams[0].device", "source"),
        ("[log.file]\nname = 1", "log.file", "level"),
    ],
)
def test_an_unknown_key_is_named_with_those_that_are_known(tmp_path, toml, key, known):
    (line,) = _problems(tmp_path, toml)
    assert f"config.toml: {key} is no known key" in line
    assert known in line.partition("known there: ")[2].split(", ")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("speech.threshold=1.5", "speech.threshold = 1.5"),
        ("speech.threshold=0", "speech.threshold = 0"),
        ("speech.hangover_ms=63", "speech.hangover_ms = 63"),
        ("speech.max_utterance_s=16", "speech.max_utterance_s = 16"),
        ("speech.recognizer=whisper", "'vosk'"),
        ("speech.language=english", "speech.language = 'english'"),
        ("video.fps=0", "video.fps = 0"),
        ("video.fps=nan", "video.fps"),
        ("video.fps=inf", "video.fps"),
        ("video.fps=ten", "video.fps = 'ten'"),
        ("audio.block_ms=2.5", "audio.block_ms = 2.5"),
        ("bus.queue=0", "bus.queue = 0"),
        ("fusion.backend=cuda", "onnxruntime"),
        ("fusion.threads=0", "fusion.threads = 0"),
        ("fusion.prior=even", "use one of: training, balanced, conversation, drama"),
        ("fusion.prior={joy = -0.2}", "the share of joy is -0.2"),
        ("fusion.prior={joy = 0.7, fear = 0.4}", "the shares sum to 1.1"),
        ("window.length_s=0", "window.length_s = 0"),
        ("pace=slow", "'realtime' or 'fast'"),
        ("log.level=loud", "'debug'"),
        ("speech=5", "speech = 5"),
        ("streams=[]", "streams"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(tmp_path, change, says):
    (line,) = _problems(tmp_path, changes=[change])
    assert line.startswith(f"{tmp_path}/config.toml: {change.partition('=')[0]}")
    assert says in line


def test_all_problems_are_reported_at_once(tmp_path):
    lines = _problems(
        tmp_path, '[speech]\nthreshold = 2\nbogus = 1\n[video]\nfps = -1\n[[streams]]\nname = "a b"\nsource = "demo"\n'
    )
    assert len(lines) == 4
    for key in ("speech.threshold", "speech.bogus", "video.fps", "streams[0].name"):
        assert any(f"config.toml: {key}" in line for line in lines)


# Rules across keys


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[speech]\npause_ms = 400", "pause_ms (400) must be less than hangover_ms (400)"),
        ('[[streams]]\nname = "a"', "streams[0]: give either source, or audio and/or video"),
        ('[[streams]]\nsource = "demo"\naudio = "demo"', "streams[0]: give either source"),
        ('[[streams]]\naudio = "camera:0"', "camera gives no audio"),
        ('[[streams]]\naudio = "demo"\nvideo = "microphone"', "microphone no video"),
        ('[[streams]]\nsource = "demo"\n[[streams]]\nsource = "camera"', "different names; twice: main"),
        ('pace = "fast"\n[[streams]]\nsource = "camera:0"', 'pace = "fast" is for files; camera:0 is live'),
        ('pace = "fast"\n[[streams]]\naudio = "file:a.wav"\nvideo = "rtsp://x/y"', "rtsp://x/y is live"),
    ],
)
def test_keys_that_contradict_each_other(tmp_path, toml, says):
    (line,) = _problems(tmp_path, toml)
    assert says in line


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://127.0.0.1", "tcp://:5556", "tcp://*", "tcp://*:0", "tcp://*:65536", "tcp://::1:5556", "tcp://[::1]", "ipc://",
        "tcp://[::1:5556", "tcp://127.0.0.1:5556;x", "tcp://user@a/b:1", "udp://127.0.0.1:5556", "inproc://labels", "",
    ],
)  # fmt: skip
def test_an_endpoint_that_is_none(tmp_path, endpoint):
    (line,) = _problems(tmp_path, changes=[f"bus.emotion={endpoint}"])
    assert f"bus.emotion = {endpoint!r}: must be ipc://PATH, tcp://127.0.0.1:PORT" in line


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://127.0.0.1:5556",
        "tcp://127.1.2.3:80",
        "tcp://localhost:1",
        "tcp://[::1]:5556",
        "ipc:///tmp/x",
        "ipc://x:1",
    ],
)
def test_endpoints_of_this_machine_need_no_keys(endpoint):
    bus = load_config(None, [f"bus.emotion={endpoint}"]).bus
    assert bus.emotion == endpoint and not bus.needs_keys


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://*:5556", "tcp://0.0.0.0:5556", "tcp://192.168.1.2:5556", "tcp://128.0.0.1:5556", "tcp://example.org:5556",
        "tcp://[::]:5556", "tcp://[fe80::1%eth0]:5556", "tcp://[::ffff:10.0.0.1]:1", "tcp://eth0:5556", "tcp://lo:5556",
        "tcp://127.0.0.1.example.org:5556", "tcp://localhost.example.org:1", "tcp://127.1:5556", "tcp://127.0.0.1%25:1",
        "tcp://127.0.0.999:5556", "tcp://0:5556",
    ],
)  # fmt: skip
def test_endpoints_that_others_might_reach_need_keys(endpoint):
    assert load_config(None, [f"bus.emotion={endpoint}"]).bus.needs_keys


# --set


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("speech.hangover_ms=600", 600),
        (" speech.hangover_ms = 600", 600),
        ("speech.threshold=0.25", 0.25),
        ("speech.vosk_model=/models/vosk en", "/models/vosk en"),
        ("speech.vosk_model=a=b", "a=b"),
        ('speech.vosk_model="5"', "5"),
        ("speech.vosk_model=", ""),
        ("pace=fast", "fast"),
    ],
)
def test_set(change, value):
    config = load_config(None, [change])
    section, _, key = change.partition("=")[0].strip().rpartition(".")
    assert getattr(getattr(config, section) if section else config, key) == value


def test_later_changes_win_over_earlier_ones_and_over_the_file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[video]\nfps = 5\ndetector = 'haar'\n")
    config = load_config(path, ["video.fps=6", "video.fps=7"])
    assert (config.video.fps, config.video.detector) == (7, "haar")


@pytest.mark.parametrize("change", ["", "video.fps", "=5", " =5", "pace.x=1", "video.fps.x=1"])
def test_changes_that_cannot_be_made(tmp_path, change):
    (line,) = _problems(tmp_path, 'pace = "fast"\n[video]\nfps = 5\n', [change])
    assert f"--set {change}: " in line


def test_an_unknown_key_in_a_change(tmp_path):
    (line,) = _problems(tmp_path, changes=["video.frames=5"])
    assert "video.frames is no known key; known there: blazeface_models, detector, fps" in line


@given(st.text(max_size=30))
def test_a_bad_change_raises_nothing_but_config_error(change):
    try:
        load_config(None, [change])
    except ConfigError as error:
        assert str(error)


# Streams from the command line


@pytest.mark.parametrize(
    ("text", "stream"),
    [
        ("demo", {"name": "main", "source": "demo"}),
        ("file:talk.mp4", {"name": "main", "source": "file:talk.mp4"}),
        ("door=camera:1", {"name": "door", "source": "camera:1"}),
        ("microphone:USB 2,camera:0", {"name": "main", "audio": "microphone:USB 2", "video": "camera:0"}),
        ("hall=microphone,rtsp://10.0.0.1/a?b=c", {"name": "hall", "audio": "microphone", "video": "rtsp://10.0.0.1/a?b=c"}),
        ("rtsp://10.0.0.1/a?b=c,d", {"name": "main", "source": "rtsp://10.0.0.1/a?b=c,d"}),
        ("file:one, two.mp4", {"name": "main", "source": "file:one, two.mp4"}),
        ("file:a=b.mp4", {"name": "main", "source": "file:a=b.mp4"}),
        ("x=file:a=b.wav,file:c.mp4", {"name": "x", "audio": "file:a=b.wav", "video": "file:c.mp4"}),
    ],
)  # fmt: skip
def test_parse_stream(text, stream):
    assert parse_stream(text).model_dump(exclude_none=True) == stream


@pytest.mark.parametrize("text", ["", "a=", "=demo", "ftp://x", "camera:0,microphone", "file:", "a b=demo"])
def test_text_that_names_no_stream(text):
    with pytest.raises(ConfigError, match="--stream"):
        parse_stream(text)


@given(st.text(max_size=30))
def test_parse_stream_raises_nothing_but_config_error(text):
    try:
        stream = parse_stream(text)
    except ConfigError:
        return
    assert stream.sources


def test_streams_of_the_command_line_replace_those_of_the_file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[[streams]]\nname = "old"\nsource = "camera:0"\n')
    config = load_config(path, streams=["demo", "b=file:x.mp4"], pace="fast")
    assert [stream.name for stream in config.streams] == ["main", "b"]
    assert config.pace == "fast"


def test_two_streams_without_a_name(tmp_path):
    (line,) = _problems(tmp_path, streams=["demo", "file:x.mp4"])
    assert "streams need different names; twice: main" in line


# Sources


@pytest.mark.parametrize(
    ("text", "kind", "location", "live", "media"),
    [
        ("demo", "demo", "", False, {"audio", "video"}),
        ("demo:two", "demo", "two", False, {"audio", "video"}),
        ("file:rtsp://x", "file", "rtsp://x", False, {"audio", "video"}),
        ("file:a:b.mp4", "file", "a:b.mp4", False, {"audio", "video"}),
        ("microphone", "microphone", "", True, {"audio"}),
        ("microphone:USB: 2", "microphone", "USB: 2", True, {"audio"}),
        ("camera", "camera", "", True, {"video"}),
        ("camera:1", "camera", "1", True, {"video"}),
        ("http://x/y.mp4", "url", "http://x/y.mp4", True, {"audio", "video"}),
        ("rtsps://x:5/y", "url", "rtsps://x:5/y", True, {"audio", "video"}),
    ],
)
def test_a_source_is_parsed(text, kind, location, live, media):
    source = SourceSpec.parse(text)
    assert (str(source), source.kind, source.location) == (text, kind, location)
    assert (source.is_live, source.media) == (live, media)
    assert source.scheme == (text.partition(":")[0] if kind == "url" else "")


@pytest.mark.parametrize("text", ["", "demo:1", "file:", "microphone:", "cameras", "ftp://x", "rtsp://", " demo"])
def test_text_that_names_no_source(text):
    with pytest.raises(ValueError, match=r"is no source; use demo\[:two\], file:PATH"):
        SourceSpec.parse(text)


def test_the_sources_of_a_stream_by_medium():
    def named(**sources):
        return [(medium, str(source)) for medium, source in Stream(**sources).sources]

    assert named(source="demo") == [("audio", "demo"), ("video", "demo")]
    assert named(source="microphone") == [("audio", "microphone")]
    assert named(source="camera:2") == [("video", "camera:2")]
    assert named(video="camera") == [("video", "camera")]
    assert named(audio="microphone", video="demo") == [("audio", "microphone"), ("video", "demo")]


def test_the_settings_can_be_written_as_toml_and_read_again(tmp_path):
    """A file may spell out the built-in settings."""
    sections = Config().model_dump(exclude_none=True, exclude={"streams", "pace"})
    lines = []
    for name, section in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    path = tmp_path / "config.toml"
    path.write_text("\n".join(lines))
    assert tomllib.loads(path.read_text())
    assert load_config(path) == Config()


# Secrets in sources


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://admin:hunter2@cam.local:554/1", "rtsp://admin:***@cam.local:554/1"),
        ("rtsp://admin:p@ss:w@cam.local/1", "rtsp://admin:***@cam.local/1"),
        ("http://host/live?user=a&token=s3cret&x=1", "http://host/live?user=a&token=***&x=1"),
        ("http://host/live?api_key=s3cret#t=1", "http://host/live?api_key=***#t=1"),
        ("rtsp://cam.local/1", "rtsp://cam.local/1"),
        ("file:/home/a@b:c/x.mp4", "file:/home/a@b:c/x.mp4"),
    ],
)
def test_a_sources_secrets_are_not_shown(source, shown):
    spec = SourceSpec.parse(source)
    assert (str(spec), repr(spec), f"{spec}", spec.address) == (shown, shown, shown, source.removeprefix("file:"))


def test_a_source_may_take_its_secrets_from_the_environment(monkeypatch):
    spec = SourceSpec.parse("rtsp://{CAM}@host/{N}")
    monkeypatch.setenv("CAM", "admin:hunter2")
    with pytest.raises(SourceError, match="the environment has no N"):
        _ = spec.address
    monkeypatch.setenv("N", "1")
    assert spec.address == "rtsp://admin:hunter2@host/1" and str(spec) == "rtsp://{CAM}@host/{N}"


def test_errors_of_the_configuration_show_no_secret(tmp_path):
    with pytest.raises(ConfigError) as raised:
        load_config(streams=["not a name=rtsp://admin:hunter2@host/1"])
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ConfigError) as raised:
        Config(streams=[{"source": "gopher://admin:hunter2@host/1"}])
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("tracks", ["nonsense", "audio:0", "audio:1;video:1", "audio:1\n", "sound:1"])
def test_what_chooses_no_tracks_is_one_line(tracks):
    with pytest.raises(ConfigError, match="tracks are chosen as") as error:
        check_tracks(tracks)
    assert "\n" not in str(error.value)
    for fine in ("", "audio:2", "audio:deu, video:1"):
        check_tracks(fine)
