"""Labels in the formats of other tools: tables (CSV, Parquet), subtitles (WebVTT), annotations (ELAN, Praat)."""

from __future__ import annotations

import csv
import importlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emostream.errors import ConfigError
from emostream.files import OWNER_ONLY, write_atomically
from emostream.stream.emotion import Emotion, encode_emotion

COLUMNS = (
    "run", "stream", "source", "utterance", "start_s", "end_s", "label", "confidence", "uncertain", "valence",
    "arousal", "text", "speaker", "face", "overlap",
)  # fmt: skip
_FORMULA = tuple("=+-@＝＋－＠")  # the wide ones too: spreadsheets take them for the others
_CONTROL = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ufffe\uffff]+")  # not in XML, or ends of lines somewhere


def jsonl(labels: Sequence[Emotion]) -> bytes:
    """The public messages, one per line."""
    return b"".join(encode_emotion(label) + b"\n" for label in labels)


def table(labels: Sequence[Emotion]) -> list[dict[str, Any]]:
    """A row per label: COLUMNS, then each emotion's probability as ``p_NAME``, and as ``has_NAME`` the fraction of time
    for which there was sound, picture or words."""
    names = list(dict.fromkeys(name for label in labels for name in label.probabilities))
    return [
        {column: getattr(label, column) for column in COLUMNS}
        | {f"p_{name}": label.probabilities.get(name) for name in names}
        | {f"has_{name}": evidence.coverage for name, evidence in label.modalities.items()}
        for label in labels
    ]


def to_csv(labels: Sequence[Emotion]) -> bytes:
    """UTF-8 with a header line. A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    out = io.StringIO()
    rows = table(labels)
    writer = csv.DictWriter(out, rows[0].keys() if rows else COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) if isinstance(value, str) else value for key, value in row.items()})
    return out.getvalue().encode()


def to_parquet(labels: Sequence[Emotion]) -> bytes:
    """The columns of ``table``. Raises ConfigError if pyarrow is missing."""
    arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    out = arrow.BufferOutputStream()
    rows = table(labels) or [dict.fromkeys(COLUMNS)]
    parquet.write_table(arrow.Table.from_pylist(rows).slice(0, len(labels)), out)
    return bytes(out.getvalue().to_pybytes())


def to_vtt(labels: Sequence[Emotion]) -> bytes:
    """WebVTT: a cue for each utterance; its voice is the stream and speaker."""
    cues = ["WEBVTT\n"]
    for label in labels:
        text = _escaped(label.text or "…")
        voice = _escaped(f"{label.stream} {label.speaker}" if label.speaker else label.stream)
        cues.append(f"{_time(label.start_s)} --> {_time(label.end_s)}\n<v {voice}>[{_word(label)}] {text}\n")
    return "\n".join(cues).encode()


def to_eaf(labels: Sequence[Emotion]) -> bytes:
    """An ELAN annotation file with tiers ``emotion``, ``words``, ``confidence`` and ``speaker``. Raises ConfigError if
    pympi-ling is missing."""
    elan = need("pympi").Elan
    document = elan.Eaf()
    document.remove_tier("default")
    for tier in ("emotion", "words", "confidence", "speaker"):
        document.add_tier(tier)
        for label in labels:
            value = {
                "emotion": _word(label), "words": _line(label.text), "confidence": f"{label.confidence:.2f}",
                "speaker": _line(label.speaker or ""),
            }[tier]  # fmt: skip
            start_ms, end_ms = round(1000 * max(0.0, label.start_s)), round(1000 * label.end_s)
            document.add_annotation(tier, start_ms, max(start_ms + 1, end_ms), value)
    text = need("pympi.Elan").to_string(document)  # to_file would leave words in an extra file
    return b"<?xml version='1.0' encoding='UTF-8'?>\n" + str(text).encode()


def to_textgrid(labels: Sequence[Emotion]) -> bytes:
    """A Praat TextGrid with interval tiers ``emotion``, ``words`` and ``speaker``. Raises ConfigError if praatio is
    missing."""
    textgrid = need("praatio.textgrid")
    grid = textgrid.Textgrid()
    end_s = max((label.end_s for label in labels), default=0.1)
    for tier in ("emotion", "words", "speaker"):
        entries, last_s = [], 0.0
        for label in sorted(labels, key=lambda each: each.start_s):
            start_s = max(last_s, label.start_s)  # intervals of a tier may not overlap
            if label.end_s > start_s:
                value = {"emotion": _word(label), "words": label.text, "speaker": label.speaker or ""}[tier]
                entries.append((start_s, label.end_s, _line(value) or " "))
                last_s = label.end_s
        grid.addTier(textgrid.IntervalTier(tier, entries or [(0.0, end_s, " ")], 0.0, end_s))
    with tempfile.TemporaryFile() as file:  # unnamed, so that no words are left on the disk whatever happens
        grid.save(os.dup(file.fileno()), format="long_textgrid", includeBlankSpaces=True)
        file.seek(0)
        return file.read()


Writer = Callable[[Sequence[Emotion]], bytes]
WRITERS: dict[str, Writer] = {
    "jsonl": jsonl, "csv": to_csv, "parquet": to_parquet, "vtt": to_vtt, "eaf": to_eaf, "textgrid": to_textgrid,
}  # fmt: skip
OF_ONE = ("vtt", "eaf", "textgrid")  # formats with one file per recording


def form_of(path: Path) -> str:
    """The format that a file's name asks for. Raises ConfigError."""
    form = path.suffix.lower().removeprefix(".") or "jsonl"
    form = {"json": "jsonl", "ndjson": "jsonl"}.get(form, form)
    if form not in WRITERS:
        raise ConfigError(f"{path}: labels can be written as .{', .'.join(WRITERS)}")
    return form


def file_names(recordings: Sequence[Path]) -> dict[Path, str]:
    """A unique name for each recording's output, all in one folder: the file name, preceded by as many parent folders
    as needed, "a_talk.mp4". Two paths of the same file get the same name."""
    parts = {path: Path(os.path.abspath(path)).parts[1:] for path in recordings}
    depths = dict.fromkeys(recordings, 1)
    while True:
        names = {path: "_".join(parts[path][-depth:]) for path, depth in depths.items()}
        files: dict[str, set[tuple[str, ...]]] = {}
        for path, name in names.items():
            files.setdefault(name.casefold(), set()).add(parts[path])  # some file systems ignore case
        deeper = [
            path for path, name in names.items() if len(files[name.casefold()]) > 1 and depths[path] < len(parts[path])
        ]
        if not deeper:
            break
        for path in deeper:
            depths[path] += 1
    for number, path in enumerate(recordings):  # such as /a_b/talk.mp4 and /a/b/talk.mp4
        if len(files[names[path].casefold()]) > 1:
            names[path] = f"{number + 1}_{names[path]}"
    return names


class Export:
    """Labels of several recordings, written into one file when all are done, or into a file per recording when it is
    done.

    ``path``: a file, or of ``OF_ONE`` a folder for several ``recordings``. ``journal``: where the labels of what
    becomes one file are to be kept meanwhile, as JSON lines. Raises ConfigError at once if it cannot be written, or a
    package for the format is missing."""

    def __init__(self, path: Path, form: str, recordings: Sequence[Path]) -> None:
        self._path, self._form = path, form
        self._labels: list[Emotion] = []
        self._names = file_names(recordings)
        self._folder = path if form in OF_ONE and (len(recordings) > 1 or path.is_dir()) else None
        if self._folder is not None and path.suffix:
            raise ConfigError(f"{path}: .{form} is for one recording; name a folder and --format {form}")
        self.journal = path.with_name(f"{path.name}.jsonl") if self._folder is None else None
        if self.journal is not None and path.exists() and not path.is_file():
            raise ConfigError(f"{path}: is no file; write JSON lines there, with --format jsonl")
        WRITERS[form]([])
        try:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            else:
                write_atomically(probe := path.with_name(f".{path.name}.try"), b"", OWNER_ONLY)
                probe.unlink()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error

    def add(self, label: Emotion) -> None:
        self._labels.append(label)

    def end_recording(self, recording: Path) -> None:
        """A recording is done. Raises OSError."""
        if self._folder is not None:
            suffix = "TextGrid" if self._form == "textgrid" else self._form
            name = f"{self._names[recording]}.{suffix}"
            write_atomically(self._folder / name, WRITERS[self._form](self._labels), OWNER_ONLY)
            self._labels = []

    def close(self) -> None:
        """Write what is one file, as far as it goes. Raises OSError."""
        if self._folder is None:
            write_atomically(self._path, WRITERS[self._form](self._labels), OWNER_ONLY)


def need(name: str, what: str = "this format") -> Any:
    """The package that ``what`` needs. Raises ConfigError if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{what} needs a package ({error.name}): pip install 'emostream[export]'") from error


def _word(label: Emotion) -> str:
    return _line(label.label) + "?" * label.uncertain


def _line(text: str) -> str:
    """A text as one line without control characters, which other tools would stumble over."""
    return _CONTROL.sub(" ", text).strip()


def _cell(text: str) -> str:
    line = _line(text)
    return f"'{line}" if line.startswith(_FORMULA) else line


def _escaped(text: str) -> str:
    return _line(text).replace("&", "&amp;").replace("<", "&lt;").replace("-->", "→")


def _time(seconds: float) -> str:
    minutes, rest = divmod(max(0.0, seconds), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours:02d}:{minutes:02d}:{rest:06.3f}"
