"""An unattended run: under a service manager, as any user, with scarce resources."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from emostream.errors import ConfigError, RunError
from emostream.files import cache_folder, user_path
from emostream.stream import limits
from tests.boxes import until
from tests.media import audio_only
from tests.processes import BIN, Pipeline, command, environment, free_port
from tests.sealed import as_stranger, need_root
from tests.test_notify import Manager

LONG = pytest.mark.long
FAST = ("--stream", "demo", "--pace", "fast", "--set", "speech.recognizer=none")


def endpoint() -> tuple[str, str]:
    return "--set", f"bus.emotion=tcp://127.0.0.1:{free_port()}"


@pytest.mark.process
def test_a_run_tells_its_manager_writes_json_and_leaves_no_core(tmp_path, short_path):
    manager = Manager(f"{short_path}/notify")
    env = {**environment(), **manager.environment(WATCHDOG_USEC="400000")}
    sound = audio_only(tmp_path / "talk.wav", 4.0)
    arguments = ("--stream", f"desk=file:{sound}", "--set", "speech.recognizer=none", "--log-format", "json")
    with Pipeline(*arguments, env=env) as run:
        begin = manager.wait_for("READY=1", 30)
        assert "WATCHDOG=1" in begin and any(state.startswith("STATUS=desk: ") for state in begin)
        supervisor = psutil.Process(run.process.pid)
        children = supervisor.children(recursive=True)
        assert len(children) > 2
        for process in (supervisor, *children):
            assert process.rlimit(psutil.RLIMIT_CORE)[0] == 0
        for child in children:
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & child.environ().keys()
        time.sleep(0.1)
        manager.states()
        run.process.send_signal(signal.SIGSTOP)  # a supervisor that hangs gives no sign of life
        time.sleep(0.1)
        manager.states()
        time.sleep(0.5)
        assert manager.states() == []
        run.process.send_signal(signal.SIGCONT)
        told = manager.wait_for("STOPPING=1", 30)
        assert "WATCHDOG=1" in told and any("1 labelled of 1 heard" in state for state in told), told
        assert run.finish(10) == 0
    lines = [json.loads(line) for line in run.output.splitlines()]
    for line in lines:
        assert line["time"].endswith("Z") and abs(datetime.fromisoformat(line["time"]).timestamp() - time.time()) < 60
        assert line["level"] and line["message"]
    kinds = [line["kind"] for line in lines]
    assert kinds.count("label") == kinds.count("summary") == 1 and "log" in kinds
    label = lines[kinds.index("label")]
    assert label["stream"] == "desk" and label["label"] in label["message"] and "text" not in label


def test_a_limit_is_an_error_of_one_line_before_anything_starts(monkeypatch):
    granted = {resource.RLIMIT_NOFILE: 1024, resource.RLIMIT_AS: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (granted[limit], granted[limit]))
    limits.check_files(300)
    with pytest.raises(RunError, match="1024 open files are too few for this run, which needs 1224"):
        limits.check_files(400)
    granted[resource.RLIMIT_AS] = 400_000_000
    with pytest.raises(RunError, match="400000000 bytes of address space are too few"):
        limits.check_address_space()


def test_core_dumps_are_off_unless_a_developer_wants_them(monkeypatch):
    set_to = []
    monkeypatch.setattr(resource, "setrlimit", lambda limit, values: set_to.append((limit, values)))
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (7, 9))
    limits.no_core_dumps()
    assert set_to == [(resource.RLIMIT_CORE, (0, 9))]
    monkeypatch.setenv("EMOSTREAM_CORE_DUMPS", "1")
    limits.no_core_dumps()
    assert len(set_to) == 1


def test_without_a_home_folder_paths_are_errors_of_one_line(monkeypatch):
    def no_home(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(ConfigError, match="~/x: this user has no home folder"):
        user_path("~/x")
    monkeypatch.setattr("platformdirs.user_cache_path", no_home)
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        cache_folder()


def limited(limit: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["prlimit", limit, BIN / "stream-run", *map(str, arguments), *endpoint()],
        capture_output=True, text=True, timeout=120, env=environment(),
    )  # fmt: skip


@pytest.mark.process
@pytest.mark.parametrize(
    "limit", [pytest.param("--nofile=14", marks=LONG), pytest.param("--nofile=30", marks=LONG), "--as=400000000"]
)
def test_too_little_is_one_line_and_an_exit_code(limit):
    done = limited(limit, *FAST)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")


@LONG
@pytest.mark.process
@pytest.mark.parametrize("limit", ["--nofile=40", "--as=700000000"])
def test_forty_files_or_700_mb_of_addresses_suffice(limit):
    done = limited(limit, *FAST)
    assert done.returncode == 0 and done.stdout.count("[av-]") == 5, done.stderr


@LONG
@pytest.mark.process
@pytest.mark.timeout(250)
def test_an_eighth_of_a_core_makes_labels_late_and_says_so():
    """Labels of sound, picture and words keep up with a fifth. If the machine is busy otherwise, sound is dropped as
    well, which is reported too."""
    need_root()
    group = cpu_group("emostream-test", 0.12)
    try:
        with Pipeline("--stream", "demo") as run:
            for process in (psutil.Process(run.process.pid), *psutil.Process(run.process.pid).children()):
                (group / "cgroup.procs").write_text(str(process.pid))
            assert run.finish(200) == 0
    finally:
        until(lambda: not (group / "cgroup.procs").read_text(), 20)  # what ends last is slow here, too
        group.rmdir()
    assert re.search("utterances: [4-9] labelled of", run.output), run.output
    assert re.search("speech.main: running [0-9.]+ s behind", run.output), run.output


def cpu_group(name: str, cores: float) -> Path:
    """A control group that gets so much of a core."""
    root = Path("/sys/fs/cgroup")
    group, file, quota = root / "cpu" / name, "cpu.cfs_quota_us", f"{100_000 * cores:.0f}"
    if not (root / "cpu").is_dir():
        group, file, quota = root / name, "cpu.max", f"{100_000 * cores:.0f} 100000"
    try:
        group.mkdir(exist_ok=True)
        (group / file).write_text(quota)
    except OSError as error:
        pytest.skip(f"no control group for the processor can be made here ({error})")
    return group


@LONG
@pytest.mark.process
@pytest.mark.timeout(400)
def test_any_user_on_a_read_only_system_gets_labels(tmp_path, short_path):
    need_root("unshare", "setpriv", "mountpoint")
    short_path.chmod(0o755)
    (place := short_path / "run").mkdir()
    for n, env in enumerate(({"XDG_RUNTIME_DIR": str(place)}, {"TMPDIR": str(place), "HOME": "/nonexistent"})):
        done = as_stranger(tmp_path / str(n), "stream-run", *FAST, *endpoint(), writable=place, **env)
        assert done.returncode == 0 and done.stdout.count("[av-]") == 5, done.stderr
    done = as_stranger(tmp_path / "l", "stream-label", FILE, "--set", "speech.recognizer=none", writable=place)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5, done.stderr
    done = as_stranger(tmp_path / "n", "stream-run", *FAST, *endpoint(), writable=place)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "bus.run_dir" in done.stderr


FILE = Path(__file__).parent.parent / "stream/sources/demo.mp4"


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("stream-models", ("list",), 0),
        pytest.param("stream-doctor", (), 0, marks=LONG),
        pytest.param("stream-models", ("pull", "yunet"), (1, 2), marks=LONG),
        pytest.param("stream-engines", ("inspect", "ekman7"), 0, marks=LONG),
    ],
)
@pytest.mark.parametrize("home", [None, pytest.param("private", marks=LONG)])
def test_a_stranger_without_a_home_gets_an_answer(tmp_path, name, arguments, code, home):
    need_root("unshare", "setpriv")
    (private := tmp_path / "private").mkdir(mode=0o700)
    done = as_stranger(tmp_path, name, *arguments, **({"HOME": str(private)} if home else {}))
    assert done.returncode in (code if isinstance(code, tuple) else (code,)), done.stderr
    assert "Traceback" not in done.stderr


@LONG
@pytest.mark.process
def test_a_full_disk_costs_the_output_alone(tmp_path, short_path):
    need_root("unshare", "setpriv", "mountpoint")
    short_path.chmod(0o755)
    (place := short_path / "run").mkdir()
    done = as_stranger(
        tmp_path / "h", "stream-run", *FAST, *endpoint(), "--jsonl", place / "labels", "--profile", place / "me",
        "--set", f"bus.run_dir={place}", writable=place, full=True,
    )  # fmt: skip
    assert done.returncode == 0 and f"labels not written to {place}/labels: 5" in done.stdout
    assert done.stderr.count("cannot be written (No space left on device)") == 2


@LONG
@pytest.mark.process
def test_a_standard_output_that_takes_nothing_is_one_line_at_the_end():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [BIN / "stream-run", *FAST, *endpoint()], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: the output: cannot be read or written (No space left on device)"


@pytest.mark.process
def test_an_error_in_json_is_json():
    done = command("stream-run", "--log-format", "json", "--set", "fusion.bundle=nowhere")
    line = json.loads(done.stderr)
    assert done.returncode == 1 and done.stdout == ""
    assert (line["level"], line["kind"], line["node"]) == ("error", "log", "run") and "nowhere" in line["message"]
