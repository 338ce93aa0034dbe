"""engines/trt/cache.py: what makes an engine stale, and that only an engine built here is ever loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import multiprocessing
import os
import re
import resource
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from emostream.engines.bundle import FACE
from emostream.engines.options import Device, Options, ahead_of_time
from emostream.engines.trt import build, cache
from emostream.engines.trt.build import Report
from emostream.engines.trt.cache import Origin
from emostream.engines.trt.profiles import of_bundle
from emostream.errors import BackendError

GPU = Device("Pretended GPU", "SM86", "CUDA 13.2")
PROFILE = {"x": ((1, 1), (2, 5), (4, 9))}
RTX = Options("tensorrt_rtx")
ORIGIN = Origin("ab", PROFILE, RTX, "1.7.1", GPU, "code")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"a graph")
    return path


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """Fake builds, one entry each, which need no GPU; their engines are never executed."""
    made: list[Options] = []

    def compile(path, profile, options, trt, times=None, progress=None):
        made.append(options)
        if times is not None:
            times += b"one more"
        blob = f"engine {len(made)}".encode() * 100
        digest = hashlib.sha256(blob).hexdigest()
        return blob, Report(3, options.precision, len(blob), digest, 0.1, options.runtime, trt.__version__)

    monkeypatch.setattr(build, "compile", compile)
    monkeypatch.setattr(cache, "load_module", lambda runtime: SimpleNamespace(__version__="1.7.1"))
    return made


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "engines"


def engine(graph: Path, directory: Path, options: Options = RTX, device: Device = GPU, profile=PROFILE) -> Path:
    return cache.engine(graph, profile, options, device, directory)


CHANGES = {
    "graph": {"graph_sha256": "cd"},
    "profile": {"profile": {"x": ((1, 1), (2, 5), (4, 10))}},
    "runtime": {"options": Options("tensorrt")},
    "precision": {"options": Options("tensorrt_rtx", "fp16")},
    "compute": {"options": Options("tensorrt_rtx", "fp32", ("SM86",))},
    "max_batch": {"options": Options("tensorrt_rtx", max_batch=4)},
    "version": {"runtime_version": "1.7.2"},
    "GPU": {"device": dataclasses.replace(GPU, name="Another GPU")},
    "capability": {"device": dataclasses.replace(GPU, compute="SM89")},
    "driver": {"device": dataclasses.replace(GPU, driver="CUDA 13.3")},
    "builder": {"builder": "other code"},
}


def test_the_key_depends_on_every_part():
    keys = {cache.key(dataclasses.replace(ORIGIN, **change)) for change in CHANGES.values()} | {cache.key(ORIGIN)}
    assert len(keys) == len(CHANGES) + 1
    changed = {name for change in CHANGES.values() for name in change}
    assert changed == {field.name for field in dataclasses.fields(Origin)}
    options = {field.name for field in dataclasses.fields(Options)}
    assert options <= set(CHANGES)  # a new option must be added to CHANGES


@pytest.mark.process
def test_the_key_is_the_same_in_another_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(cache.key, [ORIGIN]) == cache.key(ORIGIN)


def test_the_builders_version_is_that_of_its_code(monkeypatch, tmp_path):
    versions = set()
    for changed in ("", "build.py", "precision.py"):
        for name in ("build.py", "precision.py"):
            (tmp_path / name).write_text(f"# {name} changed" if name == changed else "")
        monkeypatch.setattr(build, "__file__", str(tmp_path / "build.py"))
        versions.add(build.version.__wrapped__())
    assert len(versions) == 3


def test_built_once_and_found_again(graph, directory, builds):
    path = engine(graph, directory)
    assert path.parent == directory and path.read_bytes() == b"engine 1" * 100
    assert engine(graph, directory) == path
    assert len(builds) == 1
    recorded = cache.entry(path)
    assert recorded.graph == "graph.onnx" and recorded.report.layers == 3
    assert recorded.origin.device == GPU and recorded.origin.profile == PROFILE
    assert recorded.key == cache.key(recorded.origin)
    for made in (path, path.with_suffix(".json")):
        assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not list(directory.glob("*.part"))


def test_engines_for_other_gpus_and_options_stand_side_by_side(graph, directory, builds):
    first = engine(graph, directory)
    others = [
        engine(graph, directory, device=dataclasses.replace(GPU, name="Another GPU")),
        engine(graph, directory, Options("tensorrt_rtx", "fp16")),
    ]
    assert len({first, *others}) == 3
    assert engine(graph, directory) == first
    assert len(builds) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda graph: graph.write_bytes(b"trained anew"), "graph sha256"),
        (dataclasses.replace(GPU, driver="CUDA 13.3"), "device"),
        ({"x": ((1, 1), (2, 5), (4, 10))}, "profile"),
    ],
)
def test_a_stale_engine_is_replaced_with_one_log_line(graph, directory, builds, caplog, change, said):
    caplog.set_level(logging.INFO)
    first = engine(graph, directory)
    caplog.clear()
    more = {}
    if callable(change):
        change(graph)
    else:
        more = {"device" if isinstance(change, Device) else "profile": change}
    assert engine(graph, directory, **more) == first
    assert first.read_bytes() == b"engine 2" * 100
    assert len(list(directory.glob("*.engine"))) == 1
    (record,) = [record for record in caplog.records if record.name == "emostream.engines.trt.cache"]
    assert f"building an engine, as it is stale: {said} changed" in record.getMessage()


def forge(path: Path) -> None:
    """Another engine whose entry matches its bytes, but has another origin."""
    blob = b"forged" * 10
    text = path.with_suffix(".json").read_text()
    recorded = cache.entry(path)
    path.write_bytes(blob)
    text = text.replace(recorded.report.sha256, hashlib.sha256(blob).hexdigest())
    text = text.replace(f'"size_bytes": {recorded.report.size_bytes}', f'"size_bytes": {len(blob)}')
    path.with_suffix(".json").write_text(text.replace("CUDA 13.2", "CUDA 12.0"))


def link(path: Path) -> None:
    other = path.parent.parent / "elsewhere"
    path.rename(other)
    path.symlink_to(other)


DAMAGE = {
    "truncated": (lambda path: os.truncate(path, 10), "damaged: 10 of 800 bytes"),
    "tampered": (lambda path: path.write_bytes(b"E" + path.read_bytes()[1:]), "damaged: its bytes are not those"),
    "empty": (lambda path: path.write_bytes(b""), "damaged: 0 of"),
    "gone": (lambda path: path.unlink(), "there is none"),
    "no entry": (lambda path: path.with_suffix(".json").unlink(), "there is none"),
    "entry cut": (lambda path: os.truncate(path.with_suffix(".json"), 40), "cannot be trusted: "),
    "forged": (forge, "stale: device changed"),
    "others may write": (lambda path: path.chmod(0o666), "cannot be trusted: .* only its user can write"),
    "a link": (link, "cannot be trusted: .* only its user can write"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_or_foreign_engine_is_built_again_with_one_log_line(graph, directory, builds, caplog, name):
    damage, said = DAMAGE[name]
    path = engine(graph, directory)
    damage(path)
    caplog.set_level(logging.INFO)
    caplog.clear()
    assert engine(graph, directory) == path
    assert path.read_bytes() == b"engine 2" * 100 and not path.is_symlink()
    (record,) = [record for record in caplog.records if record.name == "emostream.engines.trt.cache"]
    assert re.search(said, record.getMessage())
    assert engine(graph, directory) == path and len(builds) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file another user's")
def test_an_engine_of_another_user_is_not_loaded(graph, directory, builds):
    path = engine(graph, directory)
    os.chown(path, 65534, 65534)
    engine(graph, directory)
    assert len(builds) == 2 and path.stat().st_uid == 0
    os.chown(directory, 65534, 65534)
    with pytest.raises(
        BackendError, match="belongs to another user, who could change engines there; set EMOSTREAM_CACHE"
    ):
        engine(graph, directory)


def test_a_directory_that_others_may_write_is_closed_to_them(graph, directory, builds, caplog):
    directory.mkdir(parents=True)
    directory.chmod(0o777)
    engine(graph, directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    assert "other users could write here; their permission is removed" in caplog.text


def test_no_engine_is_taken_from_a_bundle(graph, tmp_path, builds):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BackendError, match="inside a bundle, from which no engine is loaded"):
        engine(graph, tmp_path / "engines")
    assert not builds and not (tmp_path / "engines").exists()


def test_a_build_that_fails_leaves_nothing(graph, directory, builds, monkeypatch):
    path = engine(graph, directory)
    path.write_bytes(b"damaged")

    def fail(*_):
        raise BackendError("TensorRT cannot take this graph")

    monkeypatch.setattr(build, "compile", fail)
    with pytest.raises(BackendError, match="cannot take this graph"):
        engine(graph, directory)
    assert [file.name for file in directory.iterdir()] == ["builder.lock"]


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that other users can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """A user who is not root, so that permissions apply."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def test_a_directory_that_cannot_be_written(outside, builds, unprivileged):
    (graph := Path(tempfile.mkdtemp()) / "graph.onnx").write_bytes(b"a graph")
    os_error = "no engine can be kept there .*ermission denied.*; set EMOSTREAM_CACHE"
    if os.geteuid() == outside.stat().st_uid:
        outside.chmod(0o500)
    for directory in (outside, outside / "engines"):
        with pytest.raises(BackendError, match=os_error):
            engine(graph, directory)
    assert not builds
    shutil.rmtree(graph.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to write first and to be somebody else then")
def test_a_cache_that_can_only_be_read_serves(outside, builds):
    (graph := outside / "graph.onnx").write_bytes(b"a graph")
    path = engine(graph, outside / "engines")
    for made in (outside / "engines", *(outside / "engines").iterdir()):
        made.chmod(0o755)
    os.seteuid(65534)
    try:
        assert engine(graph, outside / "engines") == path
    finally:
        os.seteuid(0)
    assert len(builds) == 1


def test_a_full_disk(graph, directory, builds):
    """No file may grow beyond 300 bytes: the engine does not fit, as on a full disk, and leaves nothing behind."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(BackendError, match=r"no room for an engine .* bytes free\); set EMOSTREAM_CACHE"):
            engine(graph, directory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in directory.iterdir()] == ["builder.lock"]
    engine(graph, directory)
    assert len(builds) == 2


def _slow_engine(graph: Path, directory: Path, made: Path, ready) -> None:
    def compile(path, profile, options, trt, times=None, progress=None):
        with made.open("a") as file:
            file.write("built\n")
        time.sleep(0.3)  # so that the others start meanwhile
        return b"engine", Report(3, "fp32", 6, hashlib.sha256(b"engine").hexdigest(), 0.1, "tensorrt_rtx", "1.7.1")

    build.compile = compile
    cache.load_module = lambda runtime: SimpleNamespace(__version__="1.7.1")
    ready.wait(30)
    assert cache.engine(graph, PROFILE, RTX, GPU, directory).read_bytes() == b"engine"


@pytest.mark.process
def test_two_processes_at_once_build_once(graph, directory, tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(3)
    folder = tmp_path / "made"
    processes = [context.Process(target=_slow_engine, args=(graph, directory, folder, ready)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert folder.read_text() == "built\n"


def test_a_killed_builder_holds_no_lock_and_its_partial_file_is_overwritten(graph, directory, builds):
    path = engine(graph, directory)
    path.rename(path.with_name(path.name + ".part"))
    assert engine(graph, directory) == path
    assert not list(directory.glob("*.part"))


class TestTactics:
    """Timings of kernels, kept for TensorRT from one build to the next."""

    TRT = Options("tensorrt")

    def times(self, directory: Path) -> Path:
        (found,) = directory.glob("tactics-*")
        return found

    def test_are_reused_from_graph_to_graph(self, graph, directory, builds):
        engine(graph, directory, self.TRT)
        (other := graph.with_name("other.onnx")).write_bytes(b"another")
        engine(other, directory, self.TRT)
        assert self.times(directory).read_bytes()[64:] == b"one more" * 2

    @pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"x" * 80), lambda file: file.chmod(0o666)])
    def test_are_measured_again_if_damaged(self, graph, directory, builds, caplog, damage):
        engine(graph, directory, self.TRT)
        damage(self.times(directory))
        engine(graph, directory, dataclasses.replace(self.TRT, precision="fp16"))
        assert self.times(directory).read_bytes()[64:] == b"one more"
        assert "tactics are timed again" in caplog.text

    def test_are_not_kept_for_rtx_which_times_nothing(self, graph, directory, builds):
        engine(graph, directory)
        assert not list(directory.glob("tactics-*"))


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("EMOSTREAM_CACHE", str(tmp_path))
    assert cache.root() == tmp_path / "engines"
    monkeypatch.delenv("EMOSTREAM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.root() == tmp_path / "xdg/emostream/engines"


def test_a_missing_graph(tmp_path, builds):
    with pytest.raises(BackendError, match="none.onnx: cannot be read"):
        engine(tmp_path / "none.onnx", tmp_path / "engines")


def test_a_real_engine(bundle, directory):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed; it is for x86-64 only")
    options = Options("tensorrt_rtx", "fp32", ("SM86",))
    asked = (
        bundle.path(FACE),
        of_bundle(bundle.manifest, FACE),
        options,
        ahead_of_time(options.compute),
        directory,
    )
    path = cache.engine(*asked)
    before = path.stat()
    assert cache.engine(*asked) == path and path.stat().st_mtime_ns == before.st_mtime_ns
    assert before.st_size > 1e6
