"""Text on pictures: fonts, cached label chips, and where to put them so that they do not hide each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.render.palette import RGB, ink
from pipeline.types import UInt8Array

_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "msgothic.ttc",
)
"""Tried in this order for phrases that Pillow's own font (basic Latin) cannot show."""


@lru_cache(maxsize=64)
def _named_font(name: str | None, size_px: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size_px) if name else ImageFont.load_default(size_px)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _has_glyph(name: str | None, character: str) -> bool:
    """Whether the font draws this character as something else than its box for unknown ones."""
    font = _named_font(name, 20)
    if font is None:
        return False
    glyph, unknown = font.getmask(character), font.getmask("\uffff")
    return character.isspace() or (glyph.size, bytes(glyph)) != (unknown.size, bytes(unknown))


@lru_cache(maxsize=1024)
def font_for(text: str, size_px: int) -> ImageFont.FreeTypeFont:
    """Pillow's packaged font, or the first installed one that has all characters of ``text``."""
    for name in (None, *_SYSTEM_FONTS):
        font = _named_font(name, size_px)
        if font is not None and all(_has_glyph(name, c) for c in set(text)):
            return font
    return ImageFont.load_default(size_px)


def shorten(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` characters, its control characters as spaces."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= limit else clean[: limit - 1].rstrip() + "…"


@dataclass(frozen=True, slots=True)
class Chip:
    """A label as pixels."""

    rgb: UInt8Array
    """``(h, w, 3)``"""
    coverage: UInt8Array
    """``(h, w, 1)``, 0..255: its corners are round."""

    @property
    def size(self) -> tuple[int, int]:
        """``(w, h)``"""
        return self.rgb.shape[1], self.rgb.shape[0]


@lru_cache(maxsize=2048)
def chip(text: str, size_px: int, background: RGB) -> Chip:
    """A rounded label of this text, in ink that reads on its background. Cached: a label is drawn once."""
    font = font_for(text, size_px)
    _, top, _, bottom = font.getbbox("Ag" + text)
    pad_x, pad_y = max(2, round(size_px * 0.36)), max(1, round(size_px * 0.18))
    width, height = math.ceil(font.getlength(text)) + 2 * pad_x, math.ceil(bottom - top) + 2 * pad_y
    shape = Image.new("L", (width * 4, height * 4))  # 4x supersampled, for smooth corners
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, width * 4 - 1, height * 4 - 1), round(size_px * 4 * 0.28), fill=255)
    picture = Image.new("RGB", (width, height), background)
    ImageDraw.Draw(picture).text((pad_x, pad_y - top), text, font=font, fill=ink(background))
    coverage = np.array(shape.resize((width, height), Image.Resampling.BOX))
    return Chip(np.asarray(picture), coverage[..., None])


def paste_chip(image: UInt8Array, label: Chip, x: int, y: int) -> None:
    """Draw a chip with its top-left corner at ``(x, y)``, in place; what is outside the picture is cut off."""
    width, height = label.size
    x1, y1 = max(x, 0), max(y, 0)
    x2, y2 = min(x + width, image.shape[1]), min(y + height, image.shape[0])
    if x1 >= x2 or y1 >= y2:
        return
    window = (slice(y1 - y, y2 - y), slice(x1 - x, x2 - x))
    under = image[y1:y2, x1:x2].astype(np.uint16)
    weight = label.coverage[window].astype(np.uint16)
    image[y1:y2, x1:x2] = (label.rgb[window] * weight + under * (255 - weight) + 127) // 255


HIDES_LABEL, HIDES_OBJECT, SHORT, MOVES = 1000.0, 14.0, 6.0, 3.0
"""What a place costs: covering another label (by the share of its own area), covering another object, showing the short
text, leaving the place it had; a place that is one further down the list of candidates costs 0.5."""


class Placer:
    """Finds a place for each label near its box. Remembers each object's last choice, so that labels do not jump."""

    def __init__(self, frame_size: tuple[int, int]) -> None:
        self._height, self._width = frame_size
        self._last: dict[int, int] = {}

    def place(
        self, ids: Sequence[int], boxes: NDArray[np.float32], sizes: Sequence[Sequence[tuple[int, int]]]
    ) -> list[tuple[int, int, int]]:
        """``(version, x, y)`` of each label: which of its texts fits, and where its top-left corner goes.

        ``boxes`` ``(N, 4)``; ``sizes``: per label the ``(w, h)`` of its versions, the longest text first. Greedy, in
        the given order: each takes the cheapest of its candidate places, in the costs above.
        """
        taken = np.zeros((0, 4), np.float32)
        choices: dict[int, int] = {}
        places = []
        for row, (masklet_id, versions) in enumerate(zip(ids, sizes, strict=True)):
            spots = np.concatenate([self._candidates(boxes[row], size) for size in versions])
            version = np.arange(len(spots)) * len(versions) // len(spots)
            rank = np.arange(len(spots)) % (len(spots) // len(versions))
            cost = HIDES_LABEL * _overlap(spots, taken) + SHORT * version + 0.5 * rank
            cost += HIDES_OBJECT * np.minimum(_overlap(spots, np.delete(boxes, row, axis=0)), 1)
            if masklet_id in self._last:
                cost[self._last[masklet_id]] -= MOVES
            best = choices[masklet_id] = int(cost.argmin())
            taken = np.concatenate([taken, spots[best : best + 1]])
            places.append((int(version[best]), int(spots[best, 0]), int(spots[best, 1])))
        self._last = choices
        return places

    def _candidates(self, box: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """``(C, 4)`` rectangles inside the frame, the nicest first; their number and order never change."""
        x1, y1, x2, y2 = (float(v) for v in box)
        w, h = size
        middle_x, middle_y = (x1 + x2 - w) / 2, (y1 + y2 - h) / 2
        corners = [(x1, y1 - h), (x1, y1), (x2 - w, y1 - h), (x1, y2), (x2, y1), (x1 - w, y1), (x2 - w, y2)]
        corners += [(middle_x, middle_y), (x2, y2 - h), (x1 - w, y2 - h)]
        corners += [(x, y1 - k * h) for k in (2, 3, 4) for x in (x1, x2 - w, middle_x)]
        corners += [(x, y2 + k * h) for k in (1, 2, 3) for x in (x1, x2 - w, middle_x)]
        room = np.array([max(self._width - w, 0), max(self._height - h, 0)], np.float32)
        top_left = np.clip(np.array(corners, np.float32).round(), 0, room)
        return np.concatenate([top_left, top_left + np.array([w, h], np.float32)], axis=1)


def _overlap(spots: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(C,)`` share of each spot's area that ``others`` cover, summed over them."""
    top_left = np.maximum(spots[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(spots[:, None, 2:], others[None, :, 2:])
    shared = np.clip(bottom_right - top_left, 0, None).prod(-1).sum(-1)
    return np.asarray(shared / (spots[:, 2:] - spots[:, :2]).prod(-1), np.float32)
