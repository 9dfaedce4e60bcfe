"""Run lengths from foreign files and parts: checked before any C code reads them.

``pycocotools`` trusts its input: counts that do not add up to the frame give it uninitialised memory (measured with
2.0.11: 100 pixels, area 4,852). Everything that enters or leaves through :mod:`pipeline.sinks` passes here first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.errors import FormatError
from pipeline.masks import fault_of
from pipeline.types import RLE

MAX_SIDE_PX = 65_535
"""Longest side of a frame that is believed."""


def check_size(width: Any, height: Any, where: str) -> tuple[int, int]:
    """``(height, width)`` as integers.

    Raises:
        FormatError: not positive whole numbers, or beyond :data:`MAX_SIDE_PX`.
    """
    sides = [whole(side, "width and height", where) for side in (height, width)]
    if not all(0 < side <= MAX_SIDE_PX for side in sides) or sides[0] * sides[1] >= 2**31:
        raise FormatError(f"a frame of {sides[1]} x {sides[0]} pixels", where, f"sides are 1..{MAX_SIDE_PX} pixels")
    return sides[0], sides[1]


def whole(value: Any, name: str, where: str) -> int:
    """``value`` as an int that fits 64 bits; whole floats such as ``483.0`` and digits in a string count.

    Raises:
        FormatError: anything else.
    """
    try:
        number = int(value) if isinstance(value, str) else value
        if not isinstance(value, bool) and int(number) == number and abs(number) < 2**63:
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise FormatError(f"{name} must be a whole number below 2^63, but got {str(value)[:40]!r}", where)


def real(value: Any, name: str, where: str) -> float:
    """``value`` as a finite float.

    Raises:
        FormatError: anything else.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise FormatError(f"{name} must be a finite number, but got {str(value)[:40]!r}", where)
    return number


def rle_of(segmentation: Any, size: tuple[int, int], where: str) -> RLE | None:
    """A COCO ``segmentation`` as run lengths: compressed or uncompressed RLE, or polygons; ``None`` if it is empty.

    Raises:
        FormatError: malformed, of another size than the frame, or outside it.
    """
    if segmentation is None:
        return None
    if isinstance(segmentation, list):
        return polygons_rle(segmentation, size, where) if segmentation else None
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise FormatError("a segmentation is neither RLE nor polygons", where)
    rle = RLE(_size_of(segmentation["size"], where), _compressed(segmentation["counts"], size, where))
    fault = fault_of(rle, size)
    if fault:
        raise FormatError(f"a mask does not fit: {fault}", where)
    return rle if coco_mask.area(rle.to_coco()) else None


def _size_of(size: Any, where: str) -> tuple[int, int]:
    if not isinstance(size, list) or len(size) != 2:
        raise FormatError(f"an RLE size must be [height, width], but got {str(size)[:40]}", where)
    return whole(size[0], "RLE height", where), whole(size[1], "RLE width", where)


def _compressed(counts: Any, size: tuple[int, int], where: str) -> bytes:
    if isinstance(counts, str):
        return counts.encode("ascii", "replace")
    if not isinstance(counts, list):
        raise FormatError("RLE counts must be text or a list", where)
    runs = [whole(run, "an RLE run", where) for run in counts]
    if not runs or min(runs) < 0 or sum(runs) != size[0] * size[1]:
        raise FormatError(f"a mask does not fit: its runs do not fill the frame of {size[0]} x {size[1]}", where)
    return from_runs(runs, size).counts


def from_runs(runs: Sequence[int] | NDArray[np.int64], size: tuple[int, int]) -> RLE:
    """A mask from its column-major runs, which start with zeros and fill the frame."""
    packed = coco_mask.frPyObjects({"size": list(size), "counts": [int(r) for r in runs]}, *size)
    return RLE(size, bytes(packed["counts"]))


def polygons_rle(polygons: Sequence[Any], size: tuple[int, int], where: str) -> RLE | None:
    """The union of flat ``[x1, y1, x2, y2, ...]`` polygons (pycocotools' rasteriser); ``None`` if it has no pixel.

    Raises:
        FormatError: fewer than three points, not numbers, or a point more than a pixel outside the frame.
    """
    rings = []
    for polygon in polygons:
        if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
            raise FormatError("a polygon needs three points or more", where)
        ring = np.array([real(v, "a polygon coordinate", where) for v in polygon])
        if ring.min() < -1 or ring[::2].max() > size[1] + 1 or ring[1::2].max() > size[0] + 1:
            raise FormatError(f"a polygon is outside the frame of {size[1]} x {size[0]} pixels", where)
        rings.append(ring.tolist())
    merged = coco_mask.merge(coco_mask.frPyObjects(rings, *size))
    return RLE(size, bytes(merged["counts"])) if coco_mask.area(merged) else None


def box_rle(xyxy: Sequence[float], size: tuple[int, int], where: str) -> RLE:
    """The filled box, cut by the frame: a pixel is inside where its centre is; at least the pixel at its middle.

    Raises:
        FormatError: the box is empty or wholly outside the frame.
    """
    height, width = size
    x1, y1, x2, y2 = xyxy
    if not (x2 > x1 and y2 > y1):
        raise FormatError(f"a box has no area: {[round(v, 2) for v in xyxy]}", where)
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        raise FormatError(
            f"a box is outside the frame of {width} x {height} pixels: {[round(v, 2) for v in xyxy]}", where
        )
    left, right = _pixels(x1, x2, width)
    top, bottom = _pixels(y1, y2, height)
    inside, outside = bottom - top, height - (bottom - top)
    middle = [inside, outside] * (right - left - 1) + [inside]
    runs = [left * height + top, *middle, (height - bottom) + (width - right) * height]
    return from_runs(runs, size)


def _pixels(low: float, high: float, length: int) -> tuple[int, int]:
    """First and one past the last pixel whose centre lies in ``[low, high)``, or the one at its middle."""
    first, stop = (min(max(math.ceil(v - 0.5), 0), length) for v in (low, high))
    if first < stop:
        return first, stop
    middle = min(max(math.floor((max(low, 0) + min(high, length)) / 2), 0), length - 1)
    return middle, middle + 1
