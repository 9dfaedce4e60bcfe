"""From low-resolution mask logits to masks of the source frame: enlarge, settle overlaps, run lengths.

Each object is enlarged only where its mask is, and a few objects at a time, so that memory stays flat with many
objects on large frames. The result is that of enlarging everything at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline import masks as mask_tools
from pipeline.device_memory import download, upload
from pipeline.types import RLE, BoolArray, Float32Array, Frame, FrameTracks, Int16Array, Int64Array

_SLICE_PX = 2**26
"""Source pixels whose masks are in flight between the device and the host."""


@dataclass(frozen=True, slots=True)
class LowResTracks:
    """The objects on one frame before their masks are enlarged."""

    track_id: Int64Array
    """``(N,)`` ascending."""
    prompt_id: Int16Array
    """``(N,)``"""
    score: Float32Array
    """``(N,)`` 0..1, of this object on this frame."""
    logits: Tensor
    """``(N, h, w)`` float32 mask logits over the whole frame, on the tracker's device; may be empty masks."""
    withdrawn: Int64Array
    """``(K,)`` ids that hotstart took back on this frame."""
    reason: Int64Array | None = None
    """``(N,)`` adaptive mode: why each object rests or attends (``trackers.attention_plan.Reason``)."""


def render(
    low: LowResTracks, frame: Frame, session: int = 0, meanwhile: Callable[[], None] | None = None
) -> FrameTracks:
    """Masks at ``frame.source_size``: bilinear, > 0, each pixel to the best-scoring object of its phrase.

    Objects without a pixel are left out. Source: transformers' ``Sam3VideoProcessor.postprocess_outputs``, except
    that boxes are those of the final masks.

    Args:
        meanwhile: see :func:`pipeline.device_memory.download`.
    """
    order = np.lexsort((low.track_id, -low.score))
    rles: dict[int, RLE] = {}
    for rows, full in _settled(low, order, frame.source_size, meanwhile):
        rles.update(zip(rows, mask_tools.encode(full), strict=True))
    seen = sorted(rles)
    filled = mask_tools.areas([rles[row] for row in seen]) > 0
    kept = np.array(seen, np.int64)[filled]
    masks = tuple(rles[row] for row in kept.tolist())
    return FrameTracks(
        frame.stream_id,
        session,
        frame.index,
        frame.pts_s,
        low.track_id[kept],
        low.prompt_id[kept],
        low.score[kept],
        mask_tools.rle_boxes(masks),
        masks,
        low.withdrawn,
    )


def _settled(
    low: LowResTracks, order: Int64Array, size: tuple[int, int], meanwhile: Callable[[], None] | None
) -> Iterator[tuple[list[int], BoolArray]]:
    """Rows in ``order``, a slice at a time, with their masks ``(n, H, W)`` after overlaps are settled."""
    grid = _Grid(tuple(low.logits.shape[-2:]), size)
    taken: dict[int, Tensor] = {}
    windows = grid.windows(low.logits, meanwhile)
    visible = [int(row) for row in order if windows[row] is not None]
    per_slice = max(1, _SLICE_PX // (size[0] * size[1]))
    for start in range(0, len(visible), per_slice):
        rows = visible[start : start + per_slice]
        crops = []
        for row in rows:
            claimed = taken.setdefault(int(low.prompt_id[row]), low.logits.new_zeros(size, dtype=torch.bool))
            window = windows[row]
            assert window is not None
            crop = grid.enlarge(low.logits[row], window) & ~claimed[window]
            claimed[window] |= crop
            crops.append(crop)
        yield rows, _paste(crops, [windows[row] for row in rows], size, meanwhile)


def _paste(
    crops: list[Tensor],
    windows: list[tuple[slice, slice] | None],
    size: tuple[int, int],
    meanwhile: Callable[[], None] | None,
) -> BoolArray:
    """Crops into empty frames ``(n, H, W)``, brought to the host in one piece."""
    flat = download(torch.cat([crop.flatten() for crop in crops]), meanwhile)
    full = np.zeros((len(crops), *size), bool)
    start = 0
    for canvas, crop, window in zip(full, crops, windows, strict=True):
        assert window is not None
        canvas[window] = flat[start : start + crop.numel()].reshape(crop.shape)
        start += crop.numel()
    return full


class _Grid:
    """Bilinear enlargement (half-pixel centres, clamped at the border) of windows instead of whole frames."""

    def __init__(self, low: tuple[int, ...], size: tuple[int, int]) -> None:
        self._axes = tuple(_samples(n, m) for n, m in zip(low, size, strict=True))

    def windows(self, logits: Tensor, meanwhile: Callable[[], None] | None) -> list[tuple[slice, slice] | None]:
        """Per object the part of the source frame that can be > 0, or ``None``."""
        inside = logits > 0
        spans = download(torch.cat([inside.any(2), inside.any(1)], dim=1), meanwhile)
        found: list[tuple[slice, slice] | None] = []
        for ys, xs in zip(spans[:, : logits.shape[1]], spans[:, logits.shape[1] :], strict=True):
            empty = not ys.any()
            found.append(None if empty else (self._window(0, ys), self._window(1, xs)))
        return found

    def _window(self, axis: int, occupied: BoolArray) -> slice:
        """Source positions that read a low-resolution position between the first and the last occupied one."""
        below, above, _ = self._axes[axis]
        first, last = np.flatnonzero(occupied)[[0, -1]]
        return slice(int(np.searchsorted(above, first)), int(np.searchsorted(below, last, side="right")))

    def enlarge(self, logits: Tensor, window: tuple[slice, slice]) -> Tensor:
        """Bool ``(H', W')``: where the enlarged logits ``(h, w)`` exceed 0 inside the window."""
        rows = _blend(logits, 0, self._axes[0], window[0])
        return _blend(rows, 1, self._axes[1], window[1]) > 0


def _samples(low: int, size: int) -> tuple[Int64Array, Int64Array, Float32Array]:
    """Per source position the two low-resolution positions it lies between and the weight of the second."""
    at = np.maximum((np.arange(size, dtype=np.float64) + 0.5) * (low / size) - 0.5, 0)
    below = np.minimum(at.astype(np.int64), low - 1)
    return below, np.minimum(below + 1, low - 1), (at - below).astype(np.float32)


def _blend(x: Tensor, axis: int, samples: tuple[Int64Array, Int64Array, Float32Array], window: slice) -> Tensor:
    below, above, weight = (upload(part[window], x.device) for part in samples)
    weight = weight[:, None] if axis == 0 else weight
    return torch.lerp(x.index_select(axis, below), x.index_select(axis, above), weight)
