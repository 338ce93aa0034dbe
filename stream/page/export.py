"""The labels on the page as a file: JSON lines, CSV or WebVTT."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from emostream.stream.page.state import Labelled

FORMATS = {"jsonl": "application/x-ndjson", "csv": "text/csv", "vtt": "text/vtt"}


def exported(labels: Sequence[Labelled], form: str) -> str:
    """``form``: of FORMATS."""
    if form == "jsonl":
        return "".join(f"{label.payload}\n" for label in labels)
    return _csv(labels) if form == "csv" else _vtt(labels)


def _csv(labels: Sequence[Labelled]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("run", "stream", "utterance", "start_s", "end_s", "label", "confidence", "uncertain", "text"))
    for label in labels:
        e = label.emotion
        text = f"'{e.text}" if e.text[:1] in "=+-@" and e.text else e.text  # no formula for a spreadsheet
        row = (e.run, e.stream, e.utterance, e.start_s, e.end_s, e.label, round(e.confidence, 3), e.uncertain, text)
        writer.writerow(row)
    return out.getvalue()


def _vtt(labels: Sequence[Labelled]) -> str:
    cues = ["WEBVTT\n"]
    for label in labels:
        e = label.emotion
        text = (e.text or "…").replace("&", "&amp;").replace("<", "&lt;").replace("-->", "→")
        sure = "?" if e.uncertain else ""
        cues.append(f"{_time(e.start_s)} --> {_time(e.end_s)}\n<v {e.stream}>[{e.label}{sure}] {text}\n")
    return "\n".join(cues)


def _time(seconds: float) -> str:
    minutes, rest = divmod(max(0.0, seconds), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours:02d}:{minutes:02d}:{rest:06.3f}"
