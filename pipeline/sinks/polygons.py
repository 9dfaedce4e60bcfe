"""Masks as polygons, with the loss measured.

A ring runs along pixel edges: pixel ``(x, y)`` is the square from ``(x, y)`` to ``(x + 1, y + 1)``, so an unsimplified
ring, filled, is the mask again, bit for bit. Rings are then simplified: no removed vertex lies further than
:data:`TOLERANCE_PX` from the outline. Where that would cost a small mask more than :data:`MAX_LOSS` of its IoU, the
exact outline stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.masks import decode, rle_iou
from pipeline.types import RLE, BoolArray

TOLERANCE_PX = 1.0
"""The steps along any straight edge are within a pixel of it, so it becomes one line."""
MAX_LOSS = 0.1
"""Highest IoU that simplification may cost a mask."""

MAX_RINGS = 200
"""A single ring joins the largest pieces and holes, at most this many: joining takes quadratic time."""

Ring = NDArray[np.int32]
"""``(V, 2)`` x, y on pixel edges; not closed."""


@dataclass(frozen=True, slots=True)
class Polygon:
    """One 4-connected piece of a mask."""

    outer: Ring
    holes: tuple[Ring, ...] = ()


def outlines(mask: BoolArray) -> list[Polygon]:
    """The exact outlines of a bool ``(H, W)`` mask, largest piece first.

    Each pixel is doubled, OpenCV (``findContours``; Suzuki and Abe 1985) traces the doubled picture, and every traced
    pixel is moved to the pixel edge it stands at.
    """
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(ys):
        return []
    top, left = int(ys[0]), int(xs[0])
    crop = mask[top : ys[-1] + 1, left : xs[-1] + 1].astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(crop, connectivity=4)
    order = sorted(range(1, count), key=lambda i: -stats[i, cv2.CC_STAT_AREA])
    return [_trace(labels, i, stats[i], (left, top)) for i in order]


def _trace(labels: NDArray[Any], number: int, stats: NDArray[Any], origin: tuple[int, int]) -> Polygon:
    """The piece of this number, looked for in its own box only: a mask may have hundreds of pieces."""
    x, y, width, height = (int(v) for v in stats[:4])
    offset = (origin[0] + x, origin[1] + y)
    piece = (labels[y : y + height, x : x + width] == number).astype(np.uint8)
    doubled = cv2.resize(piece, (2 * width, 2 * height), interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [_corners((c.reshape(-1, 2) + 1) // 2) + np.array(offset, np.int32) for c in contours]
    parents = np.asarray(hierarchy).reshape(-1, 4)[:, 3]
    outer = next(ring for ring, parent in zip(rings, parents, strict=True) if parent < 0)
    return Polygon(outer, tuple(ring for ring, parent in zip(rings, parents, strict=True) if parent >= 0))


def _corners(ring: Ring) -> Ring:
    """The ring without repeated vertices and those on straight lines."""
    ring = ring[(ring != np.roll(ring, 1, 0)).any(1)].astype(np.int32)
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    kept: Ring = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return kept


def simplified(polygon: Polygon) -> Polygon:
    """The polygon with fewer vertices (Douglas and Peucker 1973); rings that would vanish stay as they are."""
    return Polygon(_simple_ring(polygon.outer), tuple(_simple_ring(hole) for hole in polygon.holes))


def _simple_ring(ring: Ring) -> Ring:
    simple = np.asarray(cv2.approxPolyDP(ring.reshape(-1, 1, 2), TOLERANCE_PX, closed=True)).reshape(-1, 2)
    return simple.astype(np.int32) if len(simple) >= 3 and cv2.contourArea(simple) >= 0.5 else ring


def one_ring(polygons: Sequence[Polygon]) -> Ring:
    """All pieces and holes as one ring, joined by bridges of no width: for formats that hold a single ring.

    Filled by any rule, bridges vanish, because each is passed once in either direction.
    """
    rings = [ring for polygon in polygons for ring in (polygon.outer, *polygon.holes)]
    joined, *rest = rings
    for ring in sorted(rest, key=cv2.contourArea, reverse=True)[: MAX_RINGS - 1]:
        distance = ((joined[:, None].astype(np.int64) - ring[None]) ** 2).sum(-1)
        at, start = np.unravel_index(int(distance.argmin()), distance.shape)
        loop = np.concatenate([ring[start:], ring[: start + 1]])
        joined = np.concatenate([joined[: at + 1], loop, joined[at:]])
    return joined


@dataclass(slots=True)
class Tracer:
    """Turns masks into polygons and keeps account of what that cost."""

    num_masks: int = 0
    least_iou: float = 1.0
    """Of a polygon with its mask."""
    sum_iou: float = 0.0

    def polygons(self, rle: RLE) -> list[Polygon]:
        """The mask's pieces with holes, simplified."""
        exact = outlines(decode([rle])[0])
        simple = [simplified(p) for p in exact]
        iou = _iou(rle, simple)
        accepted = iou >= 1 - MAX_LOSS
        iou = iou if accepted else _iou(rle, exact)
        self.num_masks += 1
        self.least_iou, self.sum_iou = min(self.least_iou, iou), self.sum_iou + iou
        return simple if accepted else exact

    def ring(self, rle: RLE) -> Ring:
        """The mask as a single ring, simplified."""
        return one_ring(self.polygons(rle))

    def notes(self) -> list[str]:
        """The stated tolerance and the measured loss, for the report."""
        if not self.num_masks:
            return []
        return [
            f"masks became polygons, no vertex further than {TOLERANCE_PX:g} px from the outline: IoU with the masks "
            f"mean {self.sum_iou / self.num_masks:.4f}, least {self.least_iou:.4f} over {self.num_masks} masks"
        ]


def _iou(rle: RLE, polygons: Sequence[Polygon]) -> float:
    return float(rle_iou([rle], [filled(one_ring(polygons), rle.size)])[0, 0])


def filled(ring: Ring, size: tuple[int, int]) -> RLE:
    """The ring filled, by pycocotools' rasteriser, which is what most readers use."""
    packed: dict[str, Any] = coco_mask.frPyObjects([ring.astype(float).reshape(-1).tolist()], *size)[0]
    return RLE(size, bytes(packed["counts"]))
