"""Low-resolution masks moved by whole pixels and the boxes around them. Torch, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.device_memory import upload
from pipeline.types import Int64Array


def moved(masks: Tensor, shift: Int64Array) -> Tensor:
    """Bool masks ``(M, h, w)`` each moved by its own x, y of ``shift`` ``(M, 2)``; empty comes in from outside."""
    count, height, width = masks.shape
    offset = upload(shift, masks.device)
    xs = torch.arange(width, device=masks.device)[None] - offset[:, :1]
    ys = torch.arange(height, device=masks.device)[None] - offset[:, 1:]
    inside = ((ys >= 0) & (ys < height))[:, :, None] & ((xs >= 0) & (xs < width))[:, None]
    rows = torch.arange(count, device=masks.device)[:, None, None]
    return masks[rows, ys.clamp(0, height - 1)[:, :, None], xs.clamp(0, width - 1)[:, None]] & inside


def boxes(masks: Tensor) -> Tensor:
    """``(N, 4)`` float32 xyxy, exclusive ends, of bool masks ``(N, h, w)``; zeros for an empty one."""
    spans = []
    for axis in (1, 2):
        line = masks.any(axis).int()
        first, last = line.argmax(1), line.shape[1] - line.flip(1).argmax(1)
        spans.append((first, last))
    (x1, x2), (y1, y2) = spans
    found = torch.stack([x1, y1, x2, y2], dim=1).float()
    return found * masks.flatten(1).any(1)[:, None]
