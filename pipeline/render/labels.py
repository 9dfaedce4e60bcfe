"""Text on pictures: fonts, cached label chips, and where to put them so that they do not hide each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.render.palette import RGB, ink
from pipeline.types import UInt8Array

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rect = tuple[int, int, int, int]

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
def _named_font(name: str | None, size_px: int) -> Font | None:
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
def font_for(text: str, size_px: int) -> Font:
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


@lru_cache(maxsize=2048)
def chip(text: str, size_px: int, background: RGB) -> tuple[UInt8Array, UInt8Array]:
    """A rounded label: RGB ``(h, w, 3)`` and its coverage ``(h, w, 1)``, 0..255. Cached: a label is drawn once."""
    font = font_for(text, size_px)
    left, top, right, bottom = font.getbbox("Ag" + text)
    pad_x, pad_y = max(2, round(size_px * 0.36)), max(1, round(size_px * 0.18))
    text_width = font.getlength(text)
    width, height = int(np.ceil(text_width)) + 2 * pad_x, int(bottom - top) + 2 * pad_y
    shape = Image.new("L", (width * 4, height * 4))  # 4x supersampled, for smooth corners
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, width * 4 - 1, height * 4 - 1), round(size_px * 4 * 0.28), fill=255)
    picture = Image.new("RGB", (width, height), background)
    ImageDraw.Draw(picture).text((pad_x, pad_y - top), text, font=font, fill=ink(background))
    coverage = np.asarray(shape.resize((width, height), Image.Resampling.BOX))
    return np.asarray(picture), coverage[..., None].copy()


def paste_chip(image: UInt8Array, patch: UInt8Array, coverage: UInt8Array, x: int, y: int) -> None:
    """Draw a chip with its top-left corner at ``(x, y)``, in place; what is outside the picture is cut off."""
    x1, y1 = max(x, 0), max(y, 0)
    x2, y2 = min(x + patch.shape[1], image.shape[1]), min(y + patch.shape[0], image.shape[0])
    if x1 >= x2 or y1 >= y2:
        return
    window = (slice(y1 - y, y2 - y), slice(x1 - x, x2 - x))
    under = image[y1:y2, x1:x2].astype(np.uint16)
    weight = coverage[window].astype(np.uint16)
    image[y1:y2, x1:x2] = (patch[window] * weight + under * (255 - weight) + 127) // 255


class Placer:
    """Finds a place for each label near its box. Remembers each object's last choice, so that labels do not jump."""

    def __init__(self, frame_size: tuple[int, int]) -> None:
        self._height, self._width = frame_size
        self._last: dict[int, int] = {}

    def place(
        self, ids: Sequence[int], boxes: NDArray[np.float32], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Top-left corners of labels ``sizes`` ``(w, h)`` for boxes ``(N, 4)``.

        Each label takes the cheapest of its candidate places: covering another label costs most, then other boxes'
        labels' likely places and leaving the last choice. Placed greedily in the given order.
        """
        taken = np.zeros((0, 4), np.float32)
        corners = []
        for masklet_id, box, size in zip(ids, boxes, sizes, strict=True):
            spots = self._candidates(box, size)
            cost = 1e3 * _overlap(spots, taken) + np.arange(len(spots))
            if self._last.get(masklet_id) is not None:
                cost[self._last[masklet_id]] -= 2.5
            best = int(cost.argmin())
            self._last[masklet_id] = best
            taken = np.concatenate([taken, spots[best : best + 1]])
            corners.append((int(spots[best, 0]), int(spots[best, 1])))
        self._last = {i: self._last[i] for i in ids}
        return corners

    def _candidates(self, box: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """``(C, 4)`` rectangles inside the frame, the nicest first; the number and order never change."""
        x1, y1, x2, y2 = (float(v) for v in box)
        w, h = size
        middle_x, middle_y = (x1 + x2 - w) / 2, (y1 + y2 - h) / 2
        tops = [
            (x1, y1 - h),
            (x1, y1),
            (x2 - w, y1 - h),
            (x1, y2),
            (x2, y1),
            (x1 - w, y1),
            (x2 - w, y2),
            (middle_x, middle_y),
            (x2, y2 - h),
            (x1 - w, y2 - h),
        ]
        tops += [(x, y1 - k * h) for k in (2, 3, 4) for x in (x1, x2 - w, middle_x)]
        tops += [(x, y2 + k * h) for k in (1, 2, 3) for x in (x1, x2 - w, middle_x)]
        corners = np.array(tops, np.float32).round()
        corners[:, 0] = corners[:, 0].clip(0, max(self._width - w, 0))
        corners[:, 1] = corners[:, 1].clip(0, max(self._height - h, 0))
        return np.concatenate([corners, corners + np.array([w, h], np.float32)], axis=1)


def _overlap(spots: NDArray[np.float32], taken: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(C,)`` share of each spot's area that is covered by taken ones, summed."""
    top_left = np.maximum(spots[:, None, :2], taken[None, :, :2])
    bottom_right = np.minimum(spots[:, None, 2:], taken[None, :, 2:])
    shared = np.clip(bottom_right - top_left, 0, None).prod(-1).sum(-1)
    return np.asarray(shared / np.clip(spots[:, 2:] - spots[:, :2], 1, None).prod(-1), np.float32)
