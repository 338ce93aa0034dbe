"""Every error that a user can meet and fix. Any other exception is a bug in emostream.

    EmostreamError
    ├── ConfigError       a setting, an option or a path given by the user cannot be used
    ├── RunError          a live run cannot begin, or cannot go on
    ├── SourceError       a file, device or URL cannot be opened or read
    │   └── UnreadableError   it was opened, and nothing in it can be decoded
    ├── ClusterError      Ray is missing, or its cluster cannot be reached or used
    ├── BusError          a ZeroMQ endpoint cannot be used
    ├── ControlError      a run cannot be steered, or cannot do what was asked
    ├── ModelError        a third-party model is missing or damaged
    ├── BundleError       a bundle is missing, damaged or of another format
    ├── BackendError      a graph cannot be built, loaded or run on a backend
    ├── CorpusError       training data is missing or does not have its corpus's layout
    │   └── Problems      many such faults at once
    └── ExportError       an exported graph's output differs from its torch module's

Each message says what is wrong, where, and how to fix it, so that a command can print it unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence


class EmostreamError(Exception):
    """Base class of every expected error. ``exit_code``: the exit code of a command that it ends."""

    exit_code = 1


class ConfigError(EmostreamError, ValueError):
    """The configuration cannot be used; one line per problem."""

    exit_code = 2


class RunError(EmostreamError):
    """A live run cannot begin, or could not go on. ``exit_code`` is 4 if a node failed repeatedly."""

    GAVE_UP = 4


class SourceError(EmostreamError):
    """A source cannot be opened or read."""


class UnreadableError(SourceError):
    """A source was opened, and nothing in it can be decoded."""


class ClusterError(EmostreamError):
    """A cluster cannot be reached or used, or the package for it is missing."""


class BusError(EmostreamError):
    """An endpoint cannot be used."""


class ControlError(EmostreamError):
    """A run does not answer, or cannot do what it was asked to."""


class ModelError(EmostreamError):
    """A third-party model is missing or damaged; the message says how to get it."""


class BundleError(EmostreamError):
    """A bundle is missing, damaged or of another format."""


class BackendError(EmostreamError):
    """A graph cannot be built, loaded or run on a backend."""


class CorpusError(EmostreamError):
    """Training data is missing or malformed."""


class Problems(CorpusError):
    """Everything that is wrong with a corpus, each problem with its row or file. Only the first ones are printed."""

    SHOWN = 50

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        super().__init__(where, problems)
        self.where, self.problems = where, list(problems)

    def __str__(self) -> str:
        count = len(self.problems)
        lines = [f"{self.where}: {count} problem{'s' if count != 1 else ''}"]
        lines += [f"  {problem}" for problem in self.problems[: self.SHOWN]]
        if count > self.SHOWN:
            lines.append(f"  and {count - self.SHOWN} more")
        return "\n".join(lines)


class ExportError(EmostreamError):
    """An exported graph's output differs from its torch module's."""
