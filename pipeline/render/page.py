"""A white page to set text and pictures on: shared by the contact sheet and the timeline."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline.errors import UsageError
from pipeline.render.labels import font_for, shorten
from pipeline.render.palette import RGB
from pipeline.types import UInt8Array

PAPER: RGB = (255, 255, 255)
INK: RGB = (27, 27, 31)
QUIET: RGB = (110, 110, 118)
HAIRLINE: RGB = (226, 226, 230)
WIDTH_PX = 1600
MARGIN_PX = 48


class Page:
    """An image of fixed width that text, rules, swatches and pictures are set on."""

    def __init__(self, height_px: int) -> None:
        self._image = Image.new("RGB", (WIDTH_PX, height_px), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def text(
        self, x: float, y: float, text: str, size_px: int, fill: RGB = INK, *, anchor: str = "ls", room_px: float = 0
    ) -> None:
        """Set one line with its baseline at ``y`` (anchors: see Pillow), cut to ``room_px`` if that is given."""
        line = shorten(text, 500)
        while room_px and len(line) > 1 and font_for(line, size_px).getlength(line) > room_px:
            line = shorten(line, len(line) - 1)
        self._draw.text((x, y), line, font=font_for(line, size_px), fill=fill, anchor=anchor)

    def rule(self, x1: float, y1: float, x2: float, y2: float, fill: RGB = HAIRLINE) -> None:
        """A line of one pixel."""
        self._draw.line((x1, y1, x2, y2), fill=fill, width=1)

    def dot(self, x: float, y: float, radius_px: int, fill: RGB) -> None:
        """A round swatch centred on ``(x, y)``, with a smooth edge."""
        side = 2 * radius_px
        shape = Image.new("L", (side * 4, side * 4))
        ImageDraw.Draw(shape).ellipse((0, 0, side * 4 - 1, side * 4 - 1), fill=255)
        self._image.paste(fill, (round(x) - radius_px, round(y) - radius_px), shape.resize((side, side)))

    def picture(self, x: int, y: int, pixels: UInt8Array, *, radius_px: int = 0) -> None:
        """Set RGB ``(h, w, 3)`` with its top-left corner at ``(x, y)``, corners rounded."""
        height, width = pixels.shape[:2]
        shape = Image.new("L", (width * 2, height * 2))
        ImageDraw.Draw(shape).rounded_rectangle((0, 0, width * 2 - 1, height * 2 - 1), radius_px * 2, fill=255)
        self._image.paste(Image.fromarray(np.ascontiguousarray(pixels)), (x, y), shape.resize((width, height)))

    def save(self, out: Path) -> Path:
        """Write a PNG; the file appears once it is whole.

        Raises:
            UsageError: it cannot be written.
        """
        partial = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._image.save(partial, format="PNG", optimize=False)
            os.replace(partial, out)
        except OSError as error:
            raise UsageError("cannot write the picture", str(out), error.strerror or str(error)) from error
        finally:
            with suppress(OSError):  # there may be none, or not even its folder
                partial.unlink()
        return out


def mixed(rgb: RGB, share: float, paper: RGB = PAPER) -> RGB:
    """The colour at this strength on paper."""
    r, g, b = (round(p + (c - p) * share) for c, p in zip(rgb, paper, strict=True))
    return r, g, b
