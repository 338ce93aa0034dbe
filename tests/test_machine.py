"""emostream/machine.py"""

from __future__ import annotations

import platform
from pathlib import Path

from emostream import machine


def test_the_processor_has_a_name(monkeypatch):
    assert machine.cpu_name()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor\t: 0\nmodel name\t: A CPU: fast\n")
    assert machine.cpu_name() == "A CPU: fast"


def test_where_the_system_does_not_name_it_the_architecture_stands_for_it(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor\t: 0\n")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert machine.cpu_name() == platform.machine()


def test_only_installed_packages_have_a_version():
    versions = machine.package_versions(["numpy", "emostream-none"])
    assert list(versions) == ["python", "numpy"]
    assert versions["python"] == platform.python_version()
