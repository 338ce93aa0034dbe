"""The page by https and wss: real certificates made by openssl, a real server, real clients."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from emostream.errors import ConfigError
from emostream.stream.config import Config, Page, load_config
from emostream.stream.nodes.page import _hosts, _served, address
from emostream.stream.page.server import make_app
from emostream.stream.page.state import PageState
from emostream.stream.page.tls import Certificate, _handshake
from tests.processes import Pipeline, command, free_port
from tests.test_page import TOKEN, payload

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
NAMES = "DNS:localhost,DNS:Box.Local,IP:127.0.0.1,IP:::1"
Make = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def make(tmp_path_factory) -> Make:
    """Makes a self-signed certificate and its key."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)

    def make(name: str, names: str = NAMES, days: int = 2) -> tuple[Path, Path]:
        certificate, key, request = (folder / f"{name}.{suffix}" for suffix in ("crt", "key", "csr"))
        extension = ("-addext", f"subjectAltName={names}") if names else ()
        kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}")
        openssl("req", *kind, "-keyout", key, "-out", request, *extension)
        signing = ("-signkey", key, "-days", days, "-copy_extensions", "copyall")  # "-days -1" is yesterday
        openssl("x509", "-req", "-in", request, *signing, "-out", certificate)
        key.chmod(0o600)
        return certificate, key

    return make


@pytest.fixture(scope="module")
def pair(make) -> tuple[Path, Path]:
    return make("good")


def trusting(certificate: Path) -> ssl.SSLContext:
    """A client's context that trusts this certificate, and checks the host's name."""
    return ssl.create_default_context(cafile=str(certificate))


@pytest.fixture
def served(pair) -> Iterator[tuple[int, PageState]]:
    """The page's own server on a free port, with TLS."""
    state, port = PageState(), free_port()
    page = Page(host="127.0.0.1", port=port, token=TOKEN, certificate=str(pair[0]), key=str(pair[1]))
    certificate = Certificate(page.certificate, page.key)
    app = make_app(state, TOKEN, _hosts(page, certificate.names), None, secure=True)
    with _served(app, page, certificate.context):
        yield port, state


def get(url: str, context: ssl.SSLContext | None, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=10, context=context
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


# Which addresses need it


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.168.1.2", "box.local", "127.0.0.2"])
def test_what_other_machines_can_reach_needs_it_and_one_line_says_what_to_type(host):
    with pytest.raises(ConfigError) as error:
        Config(page={"host": host, "port": 9000})
    line = str(error.value)
    assert "--set page.certificate=CERT.pem --set page.key=KEY.pem" in line and "\n" not in line
    assert "ssh -L 9000:127.0.0.1:9000" in line
    assert Config(page={"host": host, "certificate": "c.pem"}).page.host == host


def test_a_key_alone_and_a_host_that_is_none():
    with pytest.raises(ConfigError, match="key goes with certificate"):
        Config(page={"key": "k.pem"})
    for host in ("a b", "http://box", "box:80", "::1", ""):
        with pytest.raises(ConfigError, match="page"):
            Config(page={"host": host, "certificate": "c.pem"})


def test_paths_are_relative_to_the_configuration(tmp_path):
    (tmp_path / "config.toml").write_text('[page]\ncertificate = "c.pem"\nkey = "/k.pem"\n')
    page = load_config(tmp_path / "config.toml").page
    assert (page.certificate, page.key) == (f"{tmp_path}/c.pem", "/k.pem")


def test_hosts_and_the_address():
    page = Page(host="0.0.0.0", port=8800, certificate="c")
    assert address(page, ["*.example.org", "box.local"]) == "https://box.local:8800"
    assert _hosts(page, ["box.local"]) == {f"{name}:8800" for name in ("127.0.0.1", "localhost", "[::1]", "box.local")}
    usual = Page(host="box.local", port=443, certificate="c")
    assert {"box.local", "box.local:443"} <= _hosts(usual, []) and address(usual, []) == "https://box.local:443"
    assert "localhost" not in _hosts(Page(port=443), []) and address(Page(), []) == "http://127.0.0.1:8800"


# The files


@needs_openssl
@pytest.mark.process
def test_a_certificate_says_which_hosts_it_is_for(pair):
    assert Certificate(*map(str, pair)).names == ["localhost", "box.local", "127.0.0.1", "[::1]"]


@needs_openssl
@pytest.mark.process
def test_one_file_may_hold_both_and_a_key_that_all_can_read_is_told(pair, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(pair[0].read_bytes() + pair[1].read_bytes())
    both.chmod(0o600)
    assert not Certificate(str(both)).is_open()
    both.chmod(0o644)
    assert Certificate(str(both)).is_open()


@needs_openssl
@pytest.mark.process
def test_what_cannot_be_used_is_said_in_one_line(make, pair, tmp_path):
    certificate, key = pair
    expired, other, nameless = make("old", days=-1), make("other"), make("nameless", names="")
    (text := tmp_path / "text.pem").write_text("hello")
    (half := tmp_path / "half.pem").write_bytes(certificate.read_bytes()[:200])
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-aes128", "-passout", "pass:x", "-out", locked], check=True, timeout=30
    )
    cases = [
        (tmp_path / "no.pem", key, r"no\.pem: the page's certificate cannot be read \(No such file"),
        (certificate, tmp_path / "no.key", r"no\.key: the page's key cannot be read \(No such file"),
        (tmp_path, key, "cannot be read (Is a directory"),
        (text, key, r"text\.pem: is no certificate in PEM form"),
        (half, key, r"half\.pem: is no certificate in PEM form"),
        (certificate, text, r"text\.pem: cannot be used as key of"),
        (certificate, certificate, r"good\.crt: cannot be used as key of"),
        (certificate, other[1], r"other\.key: is not the key of .*good\.crt"),
        (certificate, locked, r"locked\.pem: is locked by a pass phrase; openssl pkey"),
        (*expired, r"old\.crt: certificate has expired"),
        (*nameless, r"nameless\.crt: names no host \(subjectAltName\)"),
    ]
    for one, two, text in cases:
        with pytest.raises(ConfigError) as error:
            Certificate(str(one), str(two))
        line = str(error.value)
        assert "\n" not in line and (text in line or re.search(text, line)), line


@needs_openssl
@pytest.mark.process
def test_a_renewed_certificate_is_used_and_one_that_cannot_be_is_not(make, tmp_path, caplog):
    def copy(pair: tuple[Path, Path]) -> None:
        for source, target in zip(pair, files, strict=True):
            shutil.copy(source, target)

    def served_names() -> list[str]:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        for one in (first, second):
            client.load_verify_locations(one[0])
        return [name for _, name in _handshake(certificate.context, client)["subjectAltName"]]

    first, second, expired = make("first", "DNS:one"), make("second", "DNS:two"), make("third", "DNS:three", days=-1)
    files = tmp_path / "c.pem", tmp_path / "k.pem"
    copy(first)
    certificate = Certificate(*map(str, files))
    assert served_names() == ["one"]
    with caplog.at_level(logging.INFO):
        certificate.renew()
        assert not caplog.messages  # nothing has changed
        copy(expired)
        certificate.renew()
        assert "certificate has expired" in caplog.messages[-1] and served_names() == ["one"]
        os.unlink(files[1])
        certificate.renew()
        assert "going on with the certificate of before" in caplog.messages[-1] and served_names() == ["one"]
        copy(second)
        certificate.renew()
    assert "renewed" in caplog.messages[-1] and served_names() == ["two"]


# The server


@needs_openssl
@pytest.mark.process
def test_https_with_the_token_host_and_origin_checked(pair, served):
    port, _ = served
    context, base = trusting(pair[0]), f"https://localhost:{port}"
    status, body = get(f"{base}/{TOKEN}/", context)
    assert status == 200 and b"<html" in body
    assert get(f"https://127.0.0.1:{port}/{TOKEN}/", context)[0] == 200
    assert get(f"{base}/{TOKEN}/", context, Host=f"BOX.local:{port}")[0] == 200  # a name of the certificate
    assert get(f"{base}/", context)[0] == 404 and get(f"{base}/{TOKEN}x/", context)[0] == 404
    for host in ("evil.example", f"evil.example:{port}", "box.local", f"0.0.0.0:{port}"):
        assert get(f"{base}/{TOKEN}/", context, Host=host)[0] == 403
    assert get(f"{base}/{TOKEN}/", context, Origin=base)[0] == 200
    for origin in (f"http://localhost:{port}", "https://evil.example", "null", "https://[", "https://localhost"):
        assert get(f"{base}/{TOKEN}/", context, Origin=origin)[0] == 403, origin


@needs_openssl
@pytest.mark.process
def test_wss(pair, served):
    port, state = served
    context, url = trusting(pair[0]), f"wss://localhost:{port}"
    with connect(f"{url}/{TOKEN}/ws?format=page", ssl=context, origin=f"https://localhost:{port}") as page:
        state.add(payload(text="over tls"))
        until = time.monotonic() + 10
        while not (labels := json.loads(page.recv(10))["labels"]):
            assert time.monotonic() < until
        assert labels[0]["text"] == "over tls"
    for path, origin in (("/ws", None), (f"/{TOKEN}/ws", f"http://localhost:{port}"), (f"/{TOKEN}/ws", "https://evil")):
        with pytest.raises(InvalidStatus), connect(url + path, ssl=context, origin=origin):
            pass


@needs_openssl
@pytest.mark.process
def test_nothing_is_answered_without_tls_or_by_old_tls_and_a_stranger_is_not_believed(pair, served, make):
    port, _ = served
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        get(f"http://localhost:{port}/{TOKEN}/", None)
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        get(f"https://localhost:{port}/{TOKEN}/", trusting(make("stranger")[0]))
    old = trusting(pair[0])
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with closing(socket.create_connection(("127.0.0.1", port), 5)) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname="localhost")


# In a run


@needs_openssl
@pytest.mark.process
def test_a_run_with_a_certificate_that_cannot_be_used_does_not_begin(make, pair):
    expired = make("late", days=-1)
    for certificate, key, text in ((*expired, "certificate has expired"), (pair[0], expired[1], "is not the key of")):
        settings = {"host": "0.0.0.0", "port": free_port(), "certificate": certificate, "key": key}
        changes = [word for name, value in settings.items() for word in ("--set", f"page.{name}={value}")]
        done = command("stream-run", "--page", *changes, "--set", f"bus.emotion=tcp://127.0.0.1:{free_port()}")
        lines = [line for line in done.stderr.splitlines() if line]
        assert done.returncode == 2 and len(lines) == 1 and text in lines[0], done.stderr
        assert not done.stdout


@needs_openssl
@pytest.mark.process
def test_a_run_is_seen_from_other_addresses_by_https(pair):
    port = free_port()
    settings = {"host": "0.0.0.0", "port": port, "certificate": pair[0], "key": pair[1], "token": TOKEN}
    changes = [word for name, value in settings.items() for word in ("--set", f"page.{name}={value}")]
    with Pipeline("--config", "config.toml", "--page", *changes) as run:
        until = time.monotonic() + 60
        while f"https://localhost:{port}/{TOKEN}/" not in run.output:
            assert time.monotonic() < until and run.process.poll() is None, run.output
            time.sleep(0.1)
        context = trusting(pair[0])
        assert get(f"https://localhost:{port}/{TOKEN}/", context)[0] == 200
        with connect(f"wss://localhost:{port}/{TOKEN}/ws", ssl=context) as messages:
            assert "schema" in json.loads(messages.recv(30))
        run.interrupt()
    assert run.process.returncode == 0, run.output
