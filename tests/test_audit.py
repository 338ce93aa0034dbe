"""tools/audit.py: if the service cannot be reached, that is reported and is not a failure."""

from __future__ import annotations

import importlib.util
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.processes import ROOT, free_port

_spec = importlib.util.spec_from_file_location("audit", ROOT / "tools/audit.py")
assert _spec is not None and _spec.loader is not None
audit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(audit)

pytestmark = pytest.mark.process


@pytest.fixture
def service():
    """A service that answers with the given text."""

    class Answer(BaseHTTPRequestHandler):
        text = ""

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.text.encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", Answer
        server.shutdown()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"vulnerabilities": [{"id": "CVE-2018-18074"}]}', ""),
        ('{"vulnerabilities": []}', "knows of no vulnerabilities"),
        ("[]", "gives no answer"),
        ("<html>", "gives no answer"),
    ],
)
def test_a_service_that_knows_nothing_is_not_believed(service, text, why):
    url, answer = service
    answer.text = text
    assert (why in audit.missing(url)) if why else audit.missing(url) == ""


def test_the_skip_is_told_and_fails_nothing(tmp_path, capsys):
    lock = tmp_path / "requirements.lock"
    assert audit.main([str(lock), "--service", f"http://127.0.0.1:{free_port()}/"]) == 0
    assert "audit of requirements.lock SKIPPED" in capsys.readouterr().err


def test_what_is_found_is_a_failure(service, tmp_path, monkeypatch):
    url, answer = service
    answer.text = '{"vulnerabilities": [1]}'
    for code in (0, 1):
        monkeypatch.setattr(audit, "audit", lambda lock, folder, code=code: code)
        assert audit.main([str(tmp_path / "requirements.lock"), "--service", url]) == code


def test_ci_audits():
    assert "make audit" in (ROOT / ".ci/run").read_text()
