"""A face drawn by a program: brows, lids, cheeks, nose and mouth move, so it can show the basic emotions and speak.

The unit of length is that of a picture 300 high and 260 wide, in which the head is 132 wide; x grows to the right and y
downwards, as the viewer sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

HEIGHT, WIDTH = 300, 260
FINE = 2  # the picture is drawn at this many times its size
SUBPIXELS = 4  # fractional bits of OpenCV's coordinates

Points = Sequence[Sequence[float]] | np.ndarray
Colour = tuple[float, float, float]

SKIN: Colour = (222, 176, 146)
SHADOW: Colour = (150, 96, 74)
LIGHT: Colour = (247, 214, 190)
BLUSH: Colour = (226, 140, 120)
LIP: Colour = (176, 92, 88)
UPPER_LIP: Colour = (155, 81, 77)
HAIR: Colour = (62, 42, 34)
LINE: Colour = (74, 44, 36)
SHIRT: Colour = (58, 84, 118)


@dataclass(frozen=True)
class Expression:
    """The state of a face; all 0 is a face at rest.

    ``brow_inner``, ``brow_outer``: ends of the brows, up. ``frown``: folds between the brows, 0 to 1. ``wide``: eyes, 0
    to 1. ``lids``: how far the upper lids hang, 0 to 1. ``cheeks``: raised, 0 to 1. ``nose``: wrinkled, 0 to 1.
    ``corners``: of the mouth, up. ``stretch``: of the mouth, outwards. ``press``: lips, 0 to 1. ``teeth``: shown in an
    open mouth, 0 to 1. ``open``: the mouth, 0 to 1.
    """

    brow_inner: float = 0.0
    brow_outer: float = 0.0
    frown: float = 0.0
    wide: float = 0.0
    lids: float = 0.0
    cheeks: float = 0.0
    nose: float = 0.0
    corners: float = 0.0
    stretch: float = 0.0
    press: float = 0.0
    teeth: float = 0.0
    open: float = 0.0


@dataclass(frozen=True)
class Look:
    """What somebody looks like: colours, and whether there are glasses."""

    skin: Colour = SKIN
    hair: Colour = HAIR
    shirt: Colour = SHIRT
    glasses: bool = False


def draw(face: Expression, blink: float = 0.0, look: Look = Look()) -> np.ndarray:
    """The head in front of a wall: (600, 520, 3) RGB uint8. ``blink``: how far the eyes are shut, 0 to 1."""
    canvas = _Canvas(look)
    _body(canvas)
    _head(canvas, face)
    _nose(canvas, face)
    for side in (-1, 1):
        _eye(canvas, face, side, blink)
        _brow(canvas, face, side)
    _forehead(canvas, face)
    _mouth(canvas, face)
    if look.glasses:
        _glasses(canvas)
    return np.clip(canvas.picture + 0.5, 0, 255).astype(np.uint8)


class _Canvas:
    """The picture, and the skin, to which most strokes are clipped."""

    def __init__(self, look: Look) -> None:
        self.look = look
        y = np.arange(HEIGHT * FINE, dtype=np.float32)[:, None, None] / FINE
        wall = np.array([120, 132, 150], np.float32) - 0.12 * (y - HEIGHT / 2)
        self.picture = np.repeat(wall, WIDTH * FINE, axis=1)
        self.skin = np.zeros(self.picture.shape[:2], np.float32)

    def area(self, outline: Points, blur: float = 0.4) -> np.ndarray:
        """How much of each pixel lies within an outline, with edges softened by ``blur``: (height, width) in [0, 1]."""
        return self._mask(np.asarray(outline, float), None, blur)

    def path(self, points: Points, width: float, blur: float = 0.3) -> np.ndarray:
        """The same for a line."""
        return self._mask(np.asarray(points, float), width, blur)

    def _mask(self, points: np.ndarray, width: float | None, blur: float) -> np.ndarray:
        mask = np.zeros(self.picture.shape[:2], np.float32)
        margin = 4 * blur + (width or 0) + 2  # beyond it nothing is drawn, and only what is within is computed
        low = np.clip(np.floor((points.min(axis=0) - margin) * FINE), 0, None).astype(int)
        high = np.clip(np.ceil((points.max(axis=0) + margin) * FINE), 0, mask.shape[::-1]).astype(int)
        part = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        at = [np.round((points * FINE - low) * 2**SUBPIXELS).astype(np.int32)]
        if width is None:
            cv2.fillPoly(part, at, 255, cv2.LINE_AA, SUBPIXELS)
        else:
            cv2.polylines(part, at, False, 255, max(1, round(width * FINE)), cv2.LINE_AA, SUBPIXELS)
        soft = cv2.GaussianBlur(part.astype(np.float32) / 255, (0, 0), max(blur * FINE, 0.3))
        mask[low[1] : high[1], low[0] : high[0]] = soft
        return mask

    def paint(self, mask: np.ndarray, colour: Colour | np.ndarray) -> None:
        x, y, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
        there = slice(y, y + height), slice(x, x + width)
        part, wanted = mask[there][..., None], np.asarray(colour, np.float32)
        self.picture[there] = self.picture[there] * (1 - part) + (wanted if wanted.ndim == 1 else wanted[there]) * part

    def shade(self, outline: Points, colour: Colour, strength: float, blur: float) -> None:
        """Colour an area of the skin."""
        self.paint(self.area(outline, blur) * strength * self.skin, colour)

    def stroke(self, points: Points, colour: Colour, strength: float, width: float, blur: float = 0.3) -> None:
        """Draw a line on the skin."""
        self.paint(np.clip(self.path(points, width, blur) * strength, 0, 1) * self.skin, colour)


def _curve(start: Sequence[float], control: Sequence[float], end: Sequence[float], n: int = 40) -> np.ndarray:
    """A quadratic Bézier curve: (n, 2)."""
    t = np.linspace(0, 1, n)[:, None]
    a, b, c = (np.asarray(point, float) for point in (start, control, end))
    curve: np.ndarray = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t * t * c
    return curve


def _ellipse(x: float, y: float, width: float, height: float, start: float = 0.0, end: float = 2 * np.pi) -> np.ndarray:
    """Points of an ellipse with these half axes: (80, 2)."""
    angle = np.linspace(start, end, 80)
    return np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], axis=1)


def _body(canvas: _Canvas) -> None:
    canvas.paint(canvas.area(_ellipse(130, 128, 88, 104), 1), canvas.look.hair)
    canvas.paint(canvas.area([(100, 200), (160, 200), (168, 262), (92, 262)], 1.5), np.array(canvas.look.skin) * 0.8)
    shoulders = [(20, 300), (60, 262), (100, 250), (130, 262), (160, 250), (200, 262), (240, 300)]
    canvas.paint(canvas.area(shoulders, 1), canvas.look.shirt)


def _head(canvas: _Canvas, face: Expression) -> None:
    angle = np.linspace(0, np.pi, 80)
    jaw = 100 + 6 * face.open
    lower = np.stack([130 + 66 * np.cos(angle) * (1 - 0.16 * np.sin(angle) ** 2), 118 + jaw * np.sin(angle)], axis=1)
    canvas.skin = canvas.area(np.concatenate([_ellipse(130, 118, 66, 82, np.pi, 2 * np.pi), lower]), 0.6)
    y, x = np.mgrid[: HEIGHT * FINE, : WIDTH * FINE].astype(np.float32) / FINE
    light = np.clip(1 - 0.55 * ((x - 130) / 70 + 0.15) ** 2 - 0.35 * ((y - 125) / 98 + 0.1) ** 2, 0, 1)[..., None]
    plain = np.array(canvas.look.skin, np.float32) * (0.72 + 0.28 * light)
    graded = np.array(SHADOW, np.float32) + (np.array(LIGHT, np.float32) - np.array(SHADOW, np.float32)) * light
    canvas.paint(canvas.skin, 0.45 * graded + 0.55 * plain)
    fringe = [
        _ellipse(130, 100, 69, 68, np.pi, 2 * np.pi),
        _curve((199, 110), (188, 64), (140, 62)),
        _curve((140, 62), (90, 62), (61, 112)),
    ]
    canvas.paint(canvas.area(np.concatenate(fringe), 1), canvas.look.hair)
    for side in (-1, 1):
        canvas.shade(_ellipse(130 + side * 27, 119, 19, 13), SHADOW, 0.38, 5)
        canvas.shade(_ellipse(130 + side * 36, 156 - 3 * face.cheeks, 17, 11), BLUSH, 0.35 + 0.1 * face.cheeks, 7)
        canvas.shade(_ellipse(130 + side * 36, 149 - 3 * face.cheeks, 14, 7), LIGHT, 0.35 + 0.25 * face.cheeks, 5)
        canvas.shade(_ellipse(130 + side * 62, 150, 16, 44), SHADOW, 0.45, 9)


def _nose(canvas: _Canvas, face: Expression) -> None:
    canvas.shade([(125, 118), (135, 118), (139, 152), (121, 152)], LIGHT, 0.55, 3)
    canvas.shade([(121, 112), (126, 112), (121, 152), (114, 154)], SHADOW, 0.32, 3)
    canvas.shade([(135, 112), (139, 112), (146, 154), (139, 152)], SHADOW, 0.32, 3)
    y = 157 - 2 * face.nose
    canvas.shade(_ellipse(130, y - 3, 12, 8), canvas.look.skin, 0.6, 3)
    fold = 0.25 + 0.55 * face.cheeks + 0.35 * face.nose
    for side in (-1, 1):

        def at(x: float, height: float, side: int = side) -> tuple[float, float]:
            return 130 + side * x, y + height

        canvas.stroke(_curve(at(5, 2), at(10, -1), at(13, 1)), LINE, 0.75, 2.4, 0.4)
        canvas.stroke(_curve(at(14, -8), at(18, -2), at(13, 3)), SHADOW, 0.7, 2, 0.5)
        beside = _curve(at(17, -3), at(27 + 2 * face.cheeks, 8), at(31 + 4 * face.cheeks, 24 - 5 * face.cheeks))
        canvas.stroke(beside, SHADOW, fold, 3, 0.75)


def _eye(canvas: _Canvas, face: Expression, side: int, blink: float) -> None:
    x, y = 130 + side * 27, 122
    above = (7 + 5 * face.wide - 4 * face.lids) * (1 - blink)
    below = (5 + 1.2 * face.wide - 2 * face.cheeks) * (1 - 0.5 * blink)
    inner, outer = (x - side * 13.5, y + 2), (x + side * 14, y - 0.5)
    upper = _curve(inner, (x - side, y - 2 * above + 1), outer)
    lower = _curve(outer, (x + side, y + 2 * below - 1), inner)
    opening = canvas.area(np.concatenate([upper, lower]), 0.3)
    canvas.paint(opening, (238, 234, 230))
    for dx, dy, radius, colour in (
        (0, -0.5, 7.3, (78, 62, 50)),
        (0, -0.5, 3.4, (16, 12, 12)),
        (-2.2, -3, 1.7, (255, 255, 255)),
    ):
        canvas.paint(canvas.area(_ellipse(x + dx, y + dy, radius, radius), 0.3) * opening, colour)
    canvas.paint(canvas.path(upper, 5, 1.6) * opening * 0.5, (90, 70, 66))
    canvas.stroke(upper, (38, 24, 22), 0.95, 2.6)
    canvas.stroke(lower, LINE, 0.45, 1.3)
    crease = _curve(
        (inner[0], y - 0.9 * above - 3), (x, y - above - 8 + 1.5 * face.wide), (outer[0], y - 0.8 * above - 3)
    )
    canvas.stroke(crease, SHADOW, 0.7, 2, 0.5)
    bag = _curve((inner[0], y + below + 4), (x, y + below + 9), (outer[0], y + below + 4))
    canvas.stroke(bag, SHADOW, 0.35 + 0.3 * face.cheeks, 2, 0.7)


def _brow(canvas: _Canvas, face: Expression, side: int) -> None:
    line = _curve(
        (130 + side * (12 - 1.5 * face.frown), 102 - face.brow_inner),
        (130 + side * 30, 95 - 0.55 * face.brow_inner - 0.6 * face.brow_outer),
        (130 + side * 46, 103 - face.brow_outer),
    )
    for i in range(len(line) - 1):  # it thins outwards
        canvas.stroke(line[i : i + 2], canvas.look.hair, 0.9, 5.6 - 3.6 * i / len(line), 0.35)


def _glasses(canvas: _Canvas) -> None:
    for side in (-1, 1):
        canvas.paint(canvas.path(_ellipse(130 + side * 28, 124, 21, 17), 2.4), (40, 40, 46))
        canvas.paint(canvas.path([(130 + side * 49, 121), (130 + side * 65, 117)], 2.4), (40, 40, 46))
    canvas.paint(canvas.path(_curve((123, 121), (130, 117), (137, 121)), 2.4), (40, 40, 46))


def _forehead(canvas: _Canvas, face: Expression) -> None:
    for side in (-1, 1):
        fold = [(130 + side * 4, 94 - 0.5 * face.brow_inner), (130 + side * 5, 108 - 0.6 * face.brow_inner)]
        canvas.stroke(fold, SHADOW, 0.75 * face.frown, 2.2, 0.5)
    raised = max(0.0, face.brow_inner + face.brow_outer)
    for y in (82, 77, 72):
        line = _curve((98, y), (130, y - 4 - 0.2 * face.brow_inner), (162, y))
        canvas.stroke(line, SHADOW, min(0.5, 0.05 * max(0.0, raised - 3)), 2, 0.6)


def _mouth(canvas: _Canvas, face: Expression) -> None:
    half, middle = 25 + face.stretch + 2 * face.cheeks, 183 + 1.5 * face.open
    corner = middle - face.corners
    gap = 2 + 17 * face.open
    top = middle - 0.25 * gap + 0.25 * face.corners  # edges of the lips in the middle of the mouth
    bottom = middle + 0.75 * gap + 0.35 * face.corners
    full = 1 - 0.7 * face.press
    left, right = (130 - half, corner), (130 + half, corner)
    bow = [
        _curve(left, (130 - 0.45 * half, top - 9 * full), (126, top - 6.5 * full)),
        _curve((126, top - 6.5 * full), (130, top - 4 * full), (134, top - 6.5 * full)),
        _curve((134, top - 6.5 * full), (130 + 0.45 * half, top - 9 * full), right),
    ]
    upper_edge = _curve(right, (130, 2 * top - corner), left)
    lower_edge = _curve(left, (130, 2 * bottom - corner), right)
    chin_edge = _curve(right, (130, 2 * (bottom + 8 * full) - corner + 1), left)
    canvas.paint(canvas.area(np.concatenate([*bow, upper_edge])) * canvas.skin, UPPER_LIP)
    canvas.paint(canvas.area(np.concatenate([lower_edge, chin_edge])) * canvas.skin, LIP)
    if face.open > 0.04:
        inside = canvas.area(np.concatenate([upper_edge[::-1], lower_edge[::-1]]), 0.25) * canvas.skin
        canvas.paint(inside, (58, 20, 22))
        canvas.paint(canvas.area(_ellipse(130, bottom + 2, 0.55 * half, 4), 0.6) * inside * 0.7, (170, 78, 80))
        teeth = _curve(left, (130, 2 * (top + min(7, 0.75 * gap) * (0.4 + 0.6 * face.teeth)) - corner), right)
        shown = canvas.area(np.concatenate([upper_edge[::-1], teeth[::-1]]), 0.25) * inside
        canvas.paint(shown * min(1.0, 0.35 + face.teeth), (236, 232, 224))
    else:
        canvas.stroke(_curve(left, (130, 2 * (top + 0.3 * gap) - corner), right), (90, 36, 38), 0.9, 2)
    for side in (-1, 1):
        x = 130 + side * half
        dimple = _curve(
            (x, corner), (x + 3 * side, corner - np.sign(face.corners)), (x + 4 * side, corner - 0.35 * face.corners)
        )
        canvas.stroke(dimple, LINE, 0.7, 2.2, 0.4)
    canvas.shade(_ellipse(130, bottom + 13 * full + 4, 15, 4), SHADOW, 0.45, 3)
    canvas.shade(_ellipse(130, bottom + 26, 14, 9), LIGHT, 0.3, 5)
