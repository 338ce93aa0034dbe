"""The command ``stream-replay``: what the labels of a recording would be with another bundle or setting."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence

from emostream.commands import make_parser
from emostream.errors import ModelError
from emostream.stream.cli import add_config_options
from emostream.stream.config import load_config
from emostream.stream.emotion import Emotion
from emostream.stream.label import Labeller


def replay() -> int:
    """stream-replay: label a recording again, and compare."""
    parser = make_parser(
        "stream-replay", "Label a recording of stream-run --record again, from its sound and faces, and compare."
    )
    parser.add_argument(
        "recording",
        metavar="FILE",
        help="or a folder, or a pattern, 'DIR/*RUN*'; with #NAME: another stream than the first",
    )
    parser.add_argument(
        "--compare",
        metavar="BUNDLE",
        help="label it with this bundle; by default, with the configured bundle and settings",
    )
    parser.add_argument(
        "--identity", metavar="FILE", help="secret key of an encrypted recording, of age-keygen (record.identity)"
    )
    add_config_options(parser)
    options = parser.parse_args()
    changes = list(options.set)
    if options.compare is not None:
        changes.append(f"fusion.bundle={options.compare}")
    if options.identity is not None:
        changes.append(f"record.identity={json.dumps(options.identity)}")
    config = load_config(options.config, changes)
    logging.basicConfig(level=config.log.level.upper(), format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        from emostream.stream.recorded import labels
    except ImportError as error:
        raise ModelError(f"recordings need packages ({error.name}): pip install 'emostream[record]'") from error
    from emostream.stream.sources.replay import ReplaySource

    source = ReplaySource(options.recording, frozenset(), config.record.identity)
    source.open()
    before = labels(source.paths, source.stream, config.record.identity)
    with Labeller(config) as labeller:
        after = list(labeller.label_recording(options.recording))
    rows = pairs(before, after, source.first_ns / 1e9)
    changed = 0
    for old, new in rows:
        differs = old is None or new is None or old.label != new.label
        changed += differs
        print(f"{'*' if differs else ' '} {line(old, new, source.first_ns / 1e9)}")
    print(f"{changed} of {len(rows)} would change: {_bundle(before)} → {_bundle(after)}", file=sys.stderr)
    return 0


def pairs(
    before: Sequence[Emotion], after: Sequence[Emotion], first_s: float
) -> list[tuple[Emotion | None, Emotion | None]]:
    """Pairs of labels of the same utterance, matched by time; times of ``before`` are ``first_s`` later."""
    left = list(after)
    rows: list[tuple[Emotion | None, Emotion | None]] = []
    for old in before:
        start_s, end_s = old.start_s - first_s, old.end_s - first_s
        near = [new for new in left if min(end_s, new.end_s) > max(start_s, new.start_s)]
        new = max(near, key=lambda new: min(end_s, new.end_s) - max(start_s, new.start_s), default=None)
        if new is not None:
            left.remove(new)
        rows.append((old, new))
    rows += [(None, new) for new in left]
    return sorted(rows, key=lambda row: row[1].start_s if row[1] is not None else _start(row[0], first_s))


def line(old: Emotion | None, new: Emotion | None, first_s: float) -> str:
    """A row as text for the user."""
    either = new or old
    assert either is not None
    off_s = 0.0 if new is not None else first_s
    start_s, end_s = either.start_s - off_s, either.end_s - off_s
    was, now = ("(none)" if each is None else f"{each.label} {each.confidence:.0%}" for each in (old, new))
    return f"{start_s:7.2f}-{end_s:6.2f} s  {was:14} → {now:14}  {either.text}".rstrip()


def _start(old: Emotion | None, first_s: float) -> float:
    return 0.0 if old is None else old.start_s - first_s


def _bundle(labels: Sequence[Emotion]) -> str:
    return labels[0].bundle if labels else "(no labels)"
