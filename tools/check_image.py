"""Follow deploy/Dockerfile without a container engine: each stage in a chroot, then the demo as the image's user.

    python tools/check_image.py --base FOLDER      # FOLDER: what debootstrap made of Debian 12
    python tools/check_image.py                    # calls debootstrap, which must be installed

Needs root and a package index. It knows the instructions that the file uses, and fails at any other. What a container
engine adds is not tested: image layers, the health check's schedule, devices, limits. Exit code 1 if a step fails or
the demo does not get its five labels on a read-only root.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITES = {"debian:12-slim": "bookworm"}
# in its own mount namespace, so that nothing stays mounted; $1: the root
MOUNTS = """mount --make-rprivate /
mount --bind "$1" "$1"
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
"""


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Name and text of each instruction, lines joined, comments left out."""
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, text.strip()) for name, _, text in (line.partition(" ") for line in joined.splitlines() if line)]


def variables(text: str) -> dict[str, str]:
    """The variables of an ENV instruction."""
    return dict(part.split("=", 1) for part in text.split())


class Image:
    """The stages of a Dockerfile as folders, and the configuration of the last one."""

    def __init__(self, folder: Path, base: Path, ca: Path | None, surroundings: dict[str, str] | None = None) -> None:
        self._folder, self._base, self._ca = folder, base, ca
        self._surroundings = surroundings or {}  # variables for an emulator, which are not part of the image
        self._stages: dict[str, Path] = {}
        self.root = base
        self.env: dict[str, str] = {}
        self.user = "0"
        self.commands: dict[str, list[str]] = {}

    def follow(self, name: str, text: str) -> None:
        """Carry out an instruction."""
        if name == "FROM":
            source, _, stage = text.partition(" AS ")
            if source not in SUITES:
                raise SystemExit(f"FROM {source}: not a system that is known here")
            self.root = self._folder / (stage or "last")
            self._stages[stage], self.env, self.user, self.commands = self.root, {}, "0", {}
            subprocess.run(["cp", "-a", self._base, self.root], check=True)
            shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")
        elif name == "RUN":
            self._run(text)
        elif name == "COPY":
            self._copy(text)
        elif name == "ENV":
            self.env |= variables(text)
        elif name == "USER":
            self.user = text
        elif name in ("ENTRYPOINT", "CMD"):
            self.commands[name] = json.loads(text)
        elif name != "HEALTHCHECK":
            raise SystemExit(f"{name} {text}: not known here")

    def _run(self, text: str) -> None:
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **self._surroundings, **self.env}
        if self._ca is not None:
            shutil.copy(self._ca, self.root / "root/ca.crt")
            env["PIP_CERT"] = "/root/ca.crt"
        script = f'{MOUNTS}exec chroot "$1" sh -ec "$2"'
        subprocess.run(["unshare", "--mount", "sh", "-ec", script, "sh", self.root, text], env=env, check=True)
        (self.root / "root/ca.crt").unlink(missing_ok=True)

    def _copy(self, text: str) -> None:
        *sources, target = text.split()
        place = self.root / target.lstrip("/")
        if sources[0].startswith("--from="):
            stage = self._stages[sources[0].removeprefix("--from=")]
            subprocess.run(["cp", "-a", stage / sources[1].lstrip("/"), place], check=True)
        elif sources == ["."]:
            kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
            place.mkdir(parents=True)
            subprocess.run(["cp", "-a", *kept, place], cwd=ROOT, check=True)
        else:
            place.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", *sources, place], cwd=ROOT, check=True)

    def start(
        self, arguments: list[str], entry: list[str] | None = None, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Start the image's entry point, or ``entry``, with these arguments, as its user, on a read-only root."""
        script = f"""{MOUNTS}
            mount -t tmpfs -o "size=16m,mode=700,uid=$2" tmpfs "$1/run/emostream"
            mount -o remount,bind,ro "$1"
            root=$1 user=$2
            shift 2
            exec setpriv --no-new-privs {shutil.which("chroot")} --userspec="$user:$user" --groups= "$root" "$@"
        """
        command = [*(entry or self.commands["ENTRYPOINT"]), *arguments]
        return subprocess.run(
            ["unshare", "--mount", "sh", "-ec", script, "sh", self.root, self.user, *command],
            env=self._surroundings | self.env, capture_output=True, text=True, timeout=timeout_s,
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Follow deploy/Dockerfile in a chroot and run the demo in it.")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="Debian 12 as debootstrap makes it")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="certificates that pip trusts, if not Debian's")
    options = parser.parse_args()
    if os.getuid() != 0:
        print("error: needs root, for chroot and mounts", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="emostream-image-") as folder:
        base = options.base
        if base is None:
            base = Path(folder) / "base"
            subprocess.run(["debootstrap", "--variant=minbase", *SUITES.values(), base], check=True)
        image = Image(Path(folder), base, options.ca)
        for name, text in instructions(ROOT / "deploy/Dockerfile"):
            print(f"{name} {text}", flush=True)
            image.follow(name, text)
        size = sum(path.lstat().st_size for path in (image.root / "opt/emostream").rglob("*") if not path.is_symlink())
        print(f"/opt/emostream: {size / 1e6:.0f} MB")
        done = image.start(["--stream", "demo", "--pace", "fast", "--log-format", "json"])
        print(done.stderr, done.stdout, sep="", end="")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        labels = [line for line in lines if line["kind"] == "label"]
        print(f"exit code {done.returncode}, {len(labels)} labels, as user {image.user}")
        return 0 if done.returncode == 0 and len(labels) == 5 else 1


if __name__ == "__main__":
    sys.exit(main())
