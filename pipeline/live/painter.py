"""Draws a live result onto its picture, which may be smaller than the source."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from pipeline import masks as mask_ops
from pipeline.live.events import LiveResult
from pipeline.render.draw import Drawer, Scale
from pipeline.results import FrameResult
from pipeline.types import RLE, UInt8Array


class Painter:
    """Draws the frames of one stream in order."""

    def __init__(self) -> None:
        self._drawer: Drawer | None = None
        self._size = (0, 0)

    def paint(self, live: LiveResult) -> UInt8Array | None:
        """The picture with masks, ids and phrases; ``None`` without a picture."""
        if live.picture is None:
            return None
        size = (live.picture.shape[0], live.picture.shape[1])
        if self._drawer is None or size != self._size:
            self._drawer, self._size = Drawer(size, ("mask", "id"), _scale(size)), size
        image = np.array(live.picture)
        self._drawer.draw(image, scaled(live.result, size))
        return image


def _scale(size: tuple[int, int]) -> Scale:
    """Twice as bold as on a video: these pictures are looked at small, many side by side."""
    usual = Scale.of(size)
    return Scale(usual.stroke_px * 2, max(round(min(size) / 18), 10))


def scaled(result: FrameResult, size: tuple[int, int]) -> FrameResult:
    """The result for a picture of ``size`` ``(h, w)``; what becomes too small to see keeps one pixel at least."""
    if size == result.source_size:
        return result
    factor = np.array([size[1] / result.source_size[1], size[0] / result.source_size[0]] * 2, np.float32)
    rles = tuple(_scaled_rle(rle, size) for rle in result.rles)
    return replace(result, source_size=size, xyxy=result.xyxy * factor, rles=rles)


def _scaled_rle(rle: RLE, size: tuple[int, int]) -> RLE:
    mask = mask_ops.decode([rle])[0].astype(np.uint8)
    small = cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
    return mask_ops.encode(small[None].astype(bool))[0]
