"""Draws contact sheets with matplotlib.

Nothing is shown by colour alone: labels are written out, each label has its own row, and uncertain ones are hatched and
have a question mark.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from typing import Any

import numpy as np
from matplotlib import font_manager, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from emostream import __version__
from emostream.stream.emotion import Emotion
from emostream.stream.sheet.collect import Said, Sheet
from emostream.stream.sheet.layout import (
    CROP,
    DPI,
    FOOT,
    HEAD,
    LANE,
    LEFT,
    LINE,
    OVERVIEW,
    RIGHT,
    ROW_GAP,
    WAVE,
    WIDTH,
    WORDS,
    Layout,
    Row,
)

log = logging.getLogger(__name__)

_INK, _QUIET, _RULE, _SAID = "#1d1c1a", "#6b665e", "#dedad2", "#efece6"
_SMALL = 6.5  # font size in points
_GROUND = to_rgb("#f6f4f0")  # the colour of probability 0
# the live page's colours on a light background
_COLOURS = {
    "anger": "#b3261e", "disgust": "#3d6b1f", "fear": "#7b3fa0", "joy": "#8a5a00",
    "neutral": "#55524c", "sadness": "#1f5fa8", "surprise": "#00696e",
}  # fmt: skip
# for words in scripts that matplotlib's own font lacks
_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Devanagari", "WenQuanYi Zen Hei")
_TICKS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)


def draw(sheet: Sheet) -> list[bytes]:
    """Draw a sheet's pages, each a PNG of at most 1800 by 2546 pixels."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in _FONTS if name in installed)]
    with rc_context({"hatch.linewidth": 0.5, "font.family": fonts}), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layout = Layout(sheet)
        pictures = [_Page(layout, number).draw() for number in range(1, len(layout.pages) + 1)]
    if any("missing from" in str(warning.message) for warning in caught):
        log.warning("%s: letters that no installed font has are boxes on its sheet", sheet.name)
    return pictures


class _Page:
    def __init__(self, layout: Layout, number: int) -> None:
        self._layout, self._number, self._sheet = layout, number, layout.sheet
        self._ruler, self._rows = layout.ruler, layout.pages[number - 1]
        self._several = len(layout.pages) > 1
        height = HEAD + OVERVIEW * self._several + len(self._rows) * (layout.row_height + ROW_GAP) - ROW_GAP + FOOT
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=DPI)
        self._canvas = FigureCanvasAgg(figure)
        self._axes = figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._axes.set_autoscale_on(False)
        self._axes.set_xlim(0, WIDTH)
        self._axes.set_ylim(height, 0)
        self._height = height

    def draw(self) -> bytes:
        """This page as a PNG."""
        self._head()
        top = HEAD
        if self._several:
            self._overview(top)
            top += OVERVIEW
        for row in self._rows:
            self._row(top, row)
            top += self._layout.row_height + ROW_GAP
        self._foot()
        out = io.BytesIO()
        self._canvas.figure.savefig(
            out, format="png", facecolor="white", metadata={"Software": f"emostream {__version__}"}
        )
        return out.getvalue()

    # The page around the rows

    def _head(self) -> None:
        sheet, said = self._sheet, self._sheet.said
        pages = f"page {self._number} of {len(self._layout.pages)}" if self._several else ""
        room = WIDTH - LEFT - RIGHT - self._ruler.width(pages, 8) - 10
        self._text(LEFT, 24, self._ruler.fitting(sheet.name, room, 13, bold=True), 13, bold=True)
        self._text(WIDTH - RIGHT, 24, pages, 8, _QUIET, align="right")
        counts = Counter(each.label.label for each in said)
        parts = [_clock(sheet.length_s, sheet.length_s, 0.1 if sheet.length_s < 60 else 1)]
        parts.append(" and ".join(["sound"] * sheet.has_sound + ["picture"] * sheet.has_picture))
        parts.append(f"{len(said)} utterance{'s' * (len(said) != 1)}")
        if said:
            parts[-1] += ": " + ", ".join(f"{label} {count}" for label, count in counts.most_common())
            parts.append(f"{sum(each.label.uncertain for each in said) or 'none'} uncertain")
        self._text(LEFT, 39, "   ·   ".join(parts), 8.5, _QUIET)

    def _overview(self, top: float) -> None:
        """The whole recording, with this page's part marked."""
        sheet, labels = self._sheet, self._layout.labels
        scale = (WIDTH - LEFT - RIGHT) / sheet.length_s
        first, last = self._rows[0].start_s, self._rows[-1].end_s
        bottom = top + 14 + len(labels) * 6.5
        self._box(LEFT + first * scale, top - 2, (last - first) * scale, bottom - top + 4, _SAID)
        if sheet.has_sound:
            self._waveform(top, 12, 0.0, sheet.length_s, scale, _QUIET)
        self._text(LEFT - 5, top + 9, "whole", _SMALL, _QUIET, align="right")
        for i, name in enumerate(labels):
            y = top + 14 + i * 6.5
            self._axes.plot([LEFT, WIDTH - RIGHT], [y + 3.25] * 2, color=_RULE, linewidth=0.4, zorder=1)
            self._text(LEFT - 5, y + 5.3, name, 6, _QUIET, align="right")
            these = [each.label for each in sheet.said if each.label.label == name]
            lefts = [LEFT + label.start_s * scale for label in these]
            rights = [
                x + max(1.2, (label.end_s - label.start_s) * scale) for x, label in zip(lefts, these, strict=True)
            ]
            boxes = [_corners(x, y + 0.9, end, y + 5.6) for x, end in zip(lefts, rights, strict=True)]
            faces = ["white" if label.uncertain else _colour(name) for label in these]
            marks = PolyCollection(boxes, facecolors=faces, edgecolors=_colour(name), linewidths=0.6, zorder=2)
            self._axes.add_collection(marks, autolim=False)
        self._ticks(bottom + 1, 0.0, sheet.length_s, scale)

    def _foot(self) -> None:
        said, y = self._sheet.said, self._height - 22
        legend = []
        if said:
            legend.append("label rows: probability while the utterance was heard, and at its end; outlined: the label")
        if self._layout.has_unsure:
            legend.append(f"hatched, dashed, ?: uncertain{' (above: hollow)' * self._several}")
        if self._layout.peak:
            legend.append(f"full height of the sound: {20 * np.log10(self._layout.peak):.0f} dBFS")
        self._text(LEFT, y, "   ·   ".join(legend), _SMALL, _QUIET)
        if said:
            for i in range(21):
                self._box(WIDTH - RIGHT - 90 + 3 * i, y - 6, 3, 6.5, _mixed(_INK, i / 20))
            self._text(WIDTH - RIGHT - 93, y, "0%", _SMALL, _QUIET, align="right")
            self._text(WIDTH - RIGHT, y, "100%", _SMALL, _QUIET, align="right")
        made = [f"emostream {__version__}"]
        if said:
            made += [f"bundle {said[0].label.bundle}", said[0].label.backend]
        self._text(LEFT, self._height - 12, "   ·   ".join(made), _SMALL, _QUIET)

    # A row

    def _row(self, top: float, row: Row) -> None:
        layout, scale = self._layout, self._layout.points_per_s
        labels_y = top + layout.crop_height
        wave_y = labels_y + layout.label_lines * LINE + 3
        lanes_y = wave_y + (WAVE + 4 if self._sheet.has_sound else 0)
        words_y = lanes_y + len(layout.labels) * LANE
        for place in row.places:
            x, width, label = place.x, place.width, place.said.label
            if layout.crop_height:
                self._faces(x, top, max(width, min(place.room, CROP)), place.said)
            self._caption(x, labels_y, place.room, label)
            if self._sheet.has_sound:
                self._span(x, wave_y, width, label)
            self._lanes(x, lanes_y, width, label)
            for i, line in enumerate(place.words):
                self._text(x, words_y + (i + 1) * LINE - 1, line, WORDS)
        right = LEFT + (row.end_s - row.start_s) * scale
        for i, name in enumerate(layout.labels):
            y = lanes_y + i * LANE
            self._text(LEFT - 5, y + LANE - 2, name, _SMALL, _QUIET, align="right")
            self._axes.plot([LEFT, right], [y + LANE / 2] * 2, color=_RULE, linewidth=0.5, zorder=1)
        if self._sheet.has_sound:
            self._text(LEFT - 5, wave_y + WAVE / 2 + 2, "sound", _SMALL, _QUIET, align="right")
            self._waveform(wave_y, WAVE, row.start_s, row.end_s, scale)
        self._ticks(words_y + layout.word_lines * LINE + 3, row.start_s, row.end_s, scale)

    def _span(self, x: float, y: float, width: float, label: Emotion) -> None:
        colour = _colour(label.label)
        self._box(x, y, width, WAVE, to_rgba(colour, 0.13), zorder=1)
        if label.uncertain:
            self._axes.add_patch(
                Rectangle((x, y), width, WAVE, fill=False, hatch="////", edgecolor=to_rgba(colour, 0.35), linewidth=0)
            )
        self._axes.plot([x, x + width], [y, y], color=colour, linewidth=1.6, linestyle="--" if label.uncertain else "-")

    def _faces(self, x: float, y: float, width: float, said: Said) -> None:
        """Draw as many crops as the utterance has room for, or an empty frame if it has none."""
        size = min(CROP, max(width, 10.0))
        bottom = y + (size if self._is_narrow(said.label, width) else CROP)
        if not said.crops:
            self._box(x, bottom - size, size, size, "none", edge=_RULE, zorder=2)
            text = self._first_fitting(size, "no face")
            self._text(x + size / 2, bottom - size / 2 + 2, text, _SMALL, _QUIET, align="center")
            return
        count = max(1, min(len(said.crops), int((width + 2) // (size + 2))))
        chosen = [said.crops[int((i + 0.5) * len(said.crops) / count)] for i in range(count)]
        for i, crop in enumerate(chosen):
            left = x + i * (size + 2)
            extent = (left, left + size, bottom, bottom - size)
            self._axes.imshow(
                crop, cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto", interpolation="bilinear", zorder=3
            )
        self._axes.set_xlim(0, WIDTH)
        self._axes.set_ylim(self._height, 0)

    def _caption(self, x: float, y: float, room: float, label: Emotion) -> None:
        """Write the label, its confidence, and whose voice and face it is. Without enough room, it is written
        upwards."""
        word, colour = label.label + "?" * label.uncertain, _colour(label.label)
        if self._is_narrow(label, room):
            self._text(x + 5, y + self._layout.label_lines * LINE, word, _SMALL, colour, bold=True, upwards=True)
            return
        size = next(size for size in (8.5, 7.5, _SMALL) if self._ruler.width(word, size, bold=True) <= room)
        self._text(x, y + 7.5, word, size, colour, bold=True)
        share = f"{label.confidence:.0%}"
        sure = f"{share} uncertain" if label.uncertain else share
        self._text(x, y + LINE + 7.5, self._first_fitting(room, sure, share), 7, _INK)
        face = f"face {label.face}" if label.face is not None else ""
        both = " · ".join(filter(None, (label.speaker, face)))
        self._text(x, y + 2 * LINE + 7, self._first_fitting(room, both, label.speaker or face), _SMALL, _QUIET)

    def _is_narrow(self, label: Emotion, room: float) -> bool:
        """Whether the label, written from left to right, would be too small to read."""
        return self._ruler.width(label.label + "?" * label.uncertain, _SMALL, bold=True) > room

    def _first_fitting(self, room: float, *texts: str) -> str:
        return next((text for text in texts if self._ruler.width(text, 7) <= room), "")

    def _lanes(self, x: float, y: float, width: float, label: Emotion) -> None:
        """Draw how probable each label was while the utterance was heard, and its final label."""
        names = list(label.probabilities)
        running = [each for each in self._sheet.estimates.get(label.utterance, []) if each[0] < label.end_s]
        running.append((label.end_s, list(label.probabilities.values())))
        squares, colours, left = [], [], x
        for until_s, probabilities in running:
            right = min(x + width, x + (until_s - label.start_s) * self._layout.points_per_s)
            for i, (name, value) in enumerate(zip(names, probabilities, strict=True)):
                top = y + i * LANE
                squares.append(_corners(left, top, right, top + LANE))
                colours.append(_mixed(_colour(name), value))
            left = right
        self._axes.add_collection(
            PolyCollection(squares, facecolors=colours, linewidths=0, antialiased=False, zorder=2), autolim=False
        )
        top = y + names.index(label.label) * LANE
        style = (0, (2, 1.5)) if label.uncertain else "-"
        self._axes.add_patch(
            Rectangle((x, top), width, LANE, fill=False, edgecolor=_INK, linewidth=0.8, linestyle=style, zorder=4)
        )

    # What they are made of

    def _waveform(
        self, y: float, height: float, start_s: float, end_s: float, scale: float, colour: str = _INK
    ) -> None:
        wave = self._layout.wave.cut(start_s, end_s)
        middle, half = y + height / 2, height / 2 / max(self._layout.peak, 1e-4)
        if not len(wave.peaks):
            return
        step = max(1, int(len(wave.peaks) // (2 * WIDTH)))  # of the bins that share a point, only the loudest counts
        starts = np.arange(0, len(wave.peaks), step)
        low = np.minimum.reduceat(wave.peaks[:, 0], starts)
        high = np.maximum.reduceat(wave.peaks[:, 1], starts)
        left = LEFT + (wave.edges_s[starts, 0] - start_s) * scale
        right = LEFT + (wave.edges_s[np.append(starts[1:], len(wave.peaks)) - 1, 1] - start_s) * scale
        thin = 0.18  # silence is this thick, so that gaps can be told from it
        top, bottom = middle - high * half - thin, middle - low * half + thin
        gaps = np.flatnonzero(left[1:] - right[:-1] > 0.5) + 1
        shapes = []
        for part in np.split(np.arange(len(starts)), gaps):
            x = np.stack([left[part], right[part]], axis=1).ravel()
            above, below = np.repeat(top[part], 2), np.repeat(bottom[part], 2)
            shapes.append(np.stack([np.concatenate([x, x[::-1]]), np.concatenate([above, below[::-1]])], axis=1))
        self._axes.add_collection(PolyCollection(shapes, facecolors=colour, linewidths=0, zorder=3), autolim=False)

    def _ticks(self, y: float, start_s: float, end_s: float, scale: float) -> None:
        step_s = next((step for step in _TICKS_S if step * scale >= 44), _TICKS_S[-1])
        self._axes.plot([LEFT, LEFT + (end_s - start_s) * scale], [y, y], color=_QUIET, linewidth=0.6)
        for i in range(int(np.ceil(start_s / step_s - 1e-6)), int((end_s + 1e-6) // step_s) + 1):
            at = LEFT + (i * step_s - start_s) * scale
            self._axes.plot([at, at], [y, y + 3], color=_QUIET, linewidth=0.6)
            self._text(at, y + 10.5, _clock(i * step_s, self._sheet.length_s, step_s), _SMALL, _QUIET, align="center")

    def _box(
        self, x: float, y: float, width: float, height: float, face: Any, edge: str = "none", zorder: float = 2
    ) -> None:
        self._axes.add_patch(
            Rectangle((x, y), width, height, facecolor=face, edgecolor=edge, linewidth=0.6, zorder=zorder)
        )

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        colour: str = _INK,
        *,
        bold: bool = False,
        align: str = "left",
        upwards: bool = False,
    ) -> None:
        """``x`` and ``y``: start of the baseline. For text written upwards, ``y`` is its lower end."""
        self._axes.text(
            x, y, text, size=size, color=colour, weight="bold" if bold else "normal", ha=align,
            va="bottom" if upwards else "baseline", rotation=90 if upwards else 0, parse_math=False, zorder=5,
        )  # fmt: skip


def _corners(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _colour(label: str) -> str:
    return _COLOURS.get(label, _INK)


def _mixed(colour: str, share: float) -> tuple[float, float, float]:
    """Mix a colour with the light background; the higher the share, the more of the colour."""
    red, green, blue = (ground + share * (full - ground) for ground, full in zip(_GROUND, to_rgb(colour), strict=True))
    return red, green, blue


def _clock(time_s: float, length_s: float, step_s: float) -> str:
    """A time as 1:02:03, or 2:03 if the recording is shorter than an hour; with tenths if steps are that short."""
    tenths = round(time_s * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest // 10:02d}" + (f".{rest % 10}" if step_s < 1 else "")
    return f"{hours}:{minutes:02d}:{seconds}" if length_s >= 3600 else f"{minutes}:{seconds}"
