"""emostream/machine.py"""

from __future__ import annotations

import platform
from importlib.metadata import version

from emostream import machine


def test_the_processor_has_the_name_that_the_system_knows(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU: fast @ 2 GHz\nprocessor\t: 1\nmodel name\t: Other\n")
    monkeypatch.setattr(machine, "_CPUINFO", cpuinfo)
    assert machine.cpu_name() == "Some CPU: fast @ 2 GHz"


def test_a_system_that_does_not_name_its_processor(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "missing")
    assert machine.cpu_name() == (platform.processor() or platform.machine())


def test_packages_that_are_not_installed_have_no_version():
    installed = machine.versions(["numpy", "no-such-package-anywhere"])
    assert installed == {"python": platform.python_version(), "numpy": version("numpy")}
