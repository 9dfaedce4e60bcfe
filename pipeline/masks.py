"""Masks as arrays and as COCO run lengths, and the geometry between them. NumPy and pycocotools only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.types import RLE, BoolArray, Float32Array

Int32Array = NDArray[np.int32]


def encode(masks: BoolArray) -> tuple[RLE, ...]:
    """Run lengths of ``masks``, bool ``(N, H, W)``."""
    if masks.ndim != 3:
        raise ValueError(f"masks must have shape (N, H, W), but got {masks.shape}")
    n, height, width = masks.shape
    if n == 0:
        return ()
    # pycocotools reads columns of a Fortran array (H, W, N); this copy is the only one.
    encoded = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))
    return tuple(RLE((height, width), bytes(e["counts"])) for e in encoded)


def decode(rles: Sequence[RLE], size: tuple[int, int] | None = None) -> BoolArray:
    """Bool ``(N, H, W)``. ``size`` ``(H, W)`` is needed only to shape the result of an empty sequence."""
    if not rles:
        return np.zeros((0, *(size or (0, 0))), bool)
    stacked = coco_mask.decode([r.to_coco() for r in rles])
    return np.ascontiguousarray(stacked.transpose(2, 0, 1)).astype(bool)


def areas(rles: Sequence[RLE]) -> Int32Array:
    """``(N,)`` mask areas in pixels, without decoding."""
    if not rles:
        return np.zeros(0, np.int32)
    # pycocotools 2.0.11 counts the masks of a call in 8 bits under NumPy 2: more than 255 raise OverflowError.
    calls = (coco_mask.area([r.to_coco() for r in rles[i : i + 255]]) for i in range(0, len(rles), 255))
    return np.concatenate([np.asarray(areas_px) for areas_px in calls]).astype(np.int32)


def rle_boxes(rles: Sequence[RLE]) -> Float32Array:
    """``(N, 4)`` tight ``xyxy`` boxes in pixels, x2/y2 exclusive; zeros for an empty mask."""
    if not rles:
        return np.zeros((0, 4), np.float32)
    xywh = np.asarray(coco_mask.toBbox([r.to_coco() for r in rles])).reshape(-1, 4)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)


def rle_iou(a: Sequence[RLE], b: Sequence[RLE]) -> NDArray[np.float64]:
    """``(N, M)`` mask IoU without decoding; 0 where both are empty."""
    if not a or not b:
        return np.zeros((len(a), len(b)))
    iou = coco_mask.iou([r.to_coco() for r in a], [r.to_coco() for r in b], [0] * len(b))
    return np.nan_to_num(np.asarray(iou, dtype=np.float64))


def run_lengths(counts: bytes) -> NDArray[np.int64] | None:
    """The runs behind compressed counts, or ``None`` if they are malformed.

    Source: COCO API ``rleFrString``: five bits a byte, the sixth says that more follow, offset 48; from the fourth run
    on each is a difference to the one two before.
    """
    raw = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(raw) or raw.min() < 0 or raw.max() > 63 or raw[-1] & 32:
        return None
    ends = np.flatnonzero((raw & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        return None
    shifts = 5 * (np.arange(len(raw)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((raw & 31) << shifts, starts)
    runs -= np.where(raw[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def fault_of(rle: RLE, size: tuple[int, int]) -> str | None:
    """What is wrong with a foreign mask in a frame of ``size`` ``(H, W)``, or ``None``.

    ``pycocotools`` trusts its input: counts that do not add up to the frame make it read and write out of bounds.
    """
    if tuple(rle.size) != tuple(size):
        return f"its size is {list(rle.size)}, the frame's is {list(size)}"
    runs = run_lengths(rle.counts)
    if runs is None:
        return "its run lengths are malformed"
    if runs.min() < 0 or runs.sum() != size[0] * size[1]:
        return f"its run lengths do not fill the frame of {size[0]} x {size[1]}"
    return None


def boxes(masks: BoolArray) -> Float32Array:
    """``(N, 4)`` tight ``xyxy`` boxes of bool ``(N, H, W)``, x2/y2 exclusive; zeros for an empty mask."""
    out = np.zeros((len(masks), 4), np.float32)
    for row, mask in zip(out, masks, strict=True):
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(ys):
            row[:] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return out


def box_iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """``(N, M)`` IoU of ``xyxy`` boxes ``(N, 4)`` and ``(M, 4)``; 0 where both are empty."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(bottom_right - top_left, 0, None).prod(-1)
    union = box_areas(a)[:, None] + box_areas(b)[None] - inter
    iou: NDArray[np.float64] = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return iou


def box_areas(boxes_xyxy: NDArray[Any]) -> NDArray[np.float64]:
    """``(N,)`` areas; a box that is inside out has area 0."""
    sides = np.asarray(boxes_xyxy, np.float64)
    area: NDArray[np.float64] = np.clip(sides[:, 2:] - sides[:, :2], 0, None).prod(-1)
    return area


def boxes_to_masks(boxes_xyxy: NDArray[Any], size: tuple[int, int]) -> BoolArray:
    """Filled rectangles, bool ``(N, H, W)``: a pixel is inside where its centre is."""
    height, width = size
    ys, xs = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    x1, y1, x2, y2 = (np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)[:, i, None, None] for i in range(4))
    return (xs >= x1) & (xs < x2) & (ys >= y1) & (ys < y2)
