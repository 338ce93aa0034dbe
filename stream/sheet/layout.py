"""The layout of a contact sheet's pages, in points; time runs to the right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import RendererAgg

from emostream.stream.sheet.collect import Said, Sheet

DPI = 150
WIDTH, _MOST_HEIGHT = 864.0, 1222.0  # of a page: at most 1800 by 2546 pixels, the proportions of A4
_MOST_PAGES = 20
LEFT, RIGHT = 66.0, 18.0
HEAD, OVERVIEW, FOOT, ROW_GAP = 52.0, 96.0, 40.0, 20.0
CROP, WAVE, LANE, LINE, _TICKS = 42.0, 36.0, 8.5, 9.5, 16.0  # heights within a row
WORDS, _MOST_WORD_LINES = 7.5, 3  # font size; lines
_LEAST_ROOM = 20.0  # for words


class Ruler:
    """Measures the width of text, in points."""

    def __init__(self) -> None:
        self._renderer: Any = RendererAgg(1, 1, DPI)  # type: ignore[no-untyped-call]
        self._widths: dict[tuple[str, float, bool], float] = {}

    def width(self, text: str, size: float, bold: bool = False) -> float:
        key = (text, size, bold)
        if key not in self._widths:
            font = font_manager.FontProperties(size=size, weight="bold" if bold else "normal")
            self._widths[key] = self._renderer.get_text_width_height_descent(text, font, False)[0] * 72 / DPI
        return self._widths[key]

    def fitting(self, text: str, room: float, size: float, bold: bool = False) -> str:
        """The text, shortened if there is not enough room."""
        if self.width(text, size, bold) <= room:
            return text
        while text and self.width(text + "…", size, bold) > room:
            text = text[:-1].rstrip()
        return text + "…"

    def wrapped(self, text: str, room: float, size: float, lines: int) -> list[str]:
        """The text in at most this many lines; whatever does not fit is left out."""
        out: list[str] = []
        used = 0.0
        space = self.width(" ", size)
        for word in text.split():
            width = self.width(word, size)
            if out and used + space + width <= room:
                out[-1] += f" {word}"
                used += space + width
            elif len(out) < lines:
                out.append(word)
                used = width
            else:
                out[-1] += "…"
                break
        return [self.fitting(line, room, size) for line in out]


@dataclass(frozen=True)
class Place:
    """An utterance's position in its row, in points; the room for its captions; the lines of its words."""

    said: Said
    x: float
    width: float
    room: float
    words: list[str]


@dataclass(frozen=True)
class Row:
    start_s: float
    end_s: float
    places: list[Place]


class Layout:
    """The rows of each page, and the heights of their parts, which are the same on all pages."""

    def __init__(self, sheet: Sheet) -> None:
        self.sheet, self.ruler = sheet, Ruler()
        self.labels = sheet.labels
        self.wave = sheet.waveform()
        self.peak = float(np.abs(self.wave.peaks).max(initial=0.0))
        self.has_words = any(said.label.text for said in sheet.said)
        self.has_who = any(said.label.speaker or said.label.face is not None for said in sheet.said)
        self.has_unsure = any(said.label.uncertain for said in sheet.said)
        self.label_lines = 2 + self.has_who if sheet.said else 0
        self.crop_height = CROP + 3 if sheet.has_picture and sheet.said else 0.0
        self.word_lines = _MOST_WORD_LINES if self.has_words else 0
        per_page = self._rows_per_page(HEAD + OVERVIEW + FOOT)
        self.row_s, rows = sheet.rows(per_page * _MOST_PAGES)
        self.points_per_s = (WIDTH - LEFT - RIGHT) / self.row_s
        self.rows = [self._placed(start_s, end_s) for start_s, end_s in rows]
        self.word_lines = max((len(place.words) for row in self.rows for place in row.places), default=0)
        per_page = self._rows_per_page(HEAD + OVERVIEW + FOOT)
        if len(rows) <= self._rows_per_page(HEAD + FOOT):
            per_page = len(rows)
        self.pages = [self.rows[i : i + per_page] for i in range(0, len(rows), per_page)]

    @property
    def row_height(self) -> float:
        wave = WAVE + 4 if self.sheet.has_sound else 4
        lines = self.label_lines + self.word_lines
        return self.crop_height + wave + lines * LINE + len(self.labels) * LANE + _TICKS

    def _placed(self, start_s: float, end_s: float) -> Row:
        """A row with its utterances placed. An utterance's captions may extend to the start of the next one."""
        said = [each for each in self.sheet.said if start_s <= each.label.start_s < end_s]
        lefts = [LEFT + (each.label.start_s - start_s) * self.points_per_s for each in said]
        places = []
        for each, x, next_x in zip(said, lefts, [*lefts, WIDTH - 1][1:], strict=True):
            width = max(1.0, (min(each.label.end_s, end_s) - each.label.start_s) * self.points_per_s)
            room = max(width, next_x - x - 6)
            words = self.ruler.wrapped(each.label.text, room - 6, WORDS, _MOST_WORD_LINES) if room > _LEAST_ROOM else []
            places.append(Place(each, x, width, room, words))
        return Row(start_s, end_s, places)

    def _rows_per_page(self, besides: float) -> int:
        return max(1, int((_MOST_HEIGHT - besides + ROW_GAP) // (self.row_height + ROW_GAP)))
