"""Compact encodings for the report's data: integers as base64 varints, masks as outlines on a grid."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.render.draw import Cutout, cut_out, outlines
from pipeline.types import RLE

GRID_PX = 1280
"""Outlines are kept on a grid whose longer side has about so many units (fewer for a smaller video: 4 per pixel)."""
TOLERANCE = 0.75
"""How far a simplified outline may leave the true one, in grid units."""
_SMALLEST_RING = 6.0  # grid units squared: what is smaller is a speck, unless the mask has nothing larger


def varints(values: NDArray[np.int64]) -> bytes:
    """Zigzag LEB128, seven bits a byte, as protocol buffers' ``sint``: small numbers of either sign take one byte."""
    zigzag = np.asarray(values, np.int64).reshape(-1)
    zigzag = (zigzag << 1) ^ (zigzag >> 63)
    length = 1 + sum((zigzag >> (7 * i)) > 0 for i in range(1, 9))
    digits = (zigzag[:, None] >> (7 * np.arange(9))) & 127
    used = np.arange(9) < np.asarray(length).reshape(-1, 1)
    more = np.arange(9) < np.asarray(length).reshape(-1, 1) - 1
    return ((digits | (more * 128))[used]).astype(np.uint8).tobytes()


def packed(values: Iterable[int] | NDArray[np.int64]) -> str:
    """Base64 of the values' varints."""
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), np.int64)
    return base64.b64encode(varints(array)).decode()


def packed_steps(values: Iterable[int] | NDArray[np.int64]) -> str:
    """Like :func:`packed`, of the differences between neighbours (the first value stays): for what ascends."""
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), np.int64)
    return packed(np.diff(array, prepend=0))


@dataclass(frozen=True, slots=True)
class Grid:
    """The coordinates of outlines: ``scale`` units per source pixel."""

    width: int
    height: int
    scale: float

    @classmethod
    def of(cls, width: int, height: int) -> Grid:
        """For a video of this size. A small picture gets whole units per pixel, so that its pixels keep their edges."""
        longer = max(width, height, 1)
        scale = float(min(GRID_PX // longer, 4)) if longer <= GRID_PX else GRID_PX / longer
        return cls(round(width * scale), round(height * scale), scale)

    @property
    def tolerance_px(self) -> float:
        """Largest distance of a drawn outline from the true one, in source pixels (half a pixel is the tracing's)."""
        return 0.5 + (TOLERANCE + 0.5) / self.scale

    def outline(self, rle: RLE) -> bytes:
        """The mask's rings as varints: how many, then per ring its length and its points, each relative to the last.

        The first point of a ring is relative to the first of the ring before it. Holes are rings too (even-odd rule).
        """
        cutout = cut_out(rle)
        if cutout is None:
            return varints(np.zeros(1, np.int64))
        whole = int(self.scale) if self.scale >= 1 else 1
        enlarged = np.ascontiguousarray(cutout.inside.repeat(whole, axis=0).repeat(whole, axis=1))
        rings = self._simplified(outlines(Cutout(cutout.x * whole, cutout.y * whole, enlarged)), self.scale / whole)
        values: list[NDArray[np.int64]] = [np.array([len(rings)], np.int64)]
        anchor = np.zeros((1, 2), np.int64)
        for ring in rings:
            values += [np.array([len(ring)], np.int64), np.diff(ring, axis=0, prepend=anchor).reshape(-1)]
            anchor = ring[:1]
        return varints(np.concatenate(values))

    def _simplified(self, lines: list[NDArray[np.int32]], scale: float) -> list[NDArray[np.int64]]:
        """Each ring ``(n, 2)`` in grid units, with as few points as the tolerance allows; specks left out."""
        areas = [cv2.contourArea(line) * scale * scale for line in lines]
        smallest = min(_SMALLEST_RING, max(areas))
        kept = [line for line, area in zip(lines, areas, strict=True) if area >= smallest]
        simple = [cv2.approxPolyDP(line, TOLERANCE / scale, True).reshape(-1, 2) for line in kept]
        return [(line * scale).round().astype(np.int64) for line in simple]


@dataclass(slots=True)
class Outlines:
    """One masklet's outlines, gathered frame by frame."""

    data: bytearray = field(default_factory=bytearray)
    lengths: list[int] = field(default_factory=list)

    def add(self, outline: bytes) -> None:
        """Append the next frame's."""
        self.data += outline
        self.lengths.append(len(outline))
