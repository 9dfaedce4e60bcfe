"""Mask operations on tensors: overlap, suppression, small holes and islands. Exact, and free of host syncs on CUDA."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.types import Float32Array

REFERENCE_SIDE_PX = 288
"""Side of SAM3's low-resolution masks, for which its area limits are given."""
_IOU_SLICE_PIXELS = 1 << 26
"""Mask pixels held as float32 at once (256 MB), so that hundreds of masks do not need gigabytes."""

HOLE_LOGIT, ISLAND_LOGIT = 0.1, -0.1
"""What filled holes and removed islands become (transformers sam3_video ``fill_holes_in_mask_scores``)."""


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every mask of ``a`` ``(N, H, W)`` with every one of ``b`` ``(M, H, W)``, bool.

    One matrix product instead of the reference's ``(N, M, H, W)`` temporaries; pixel counts are exact, so the
    result equals transformers' ``mask_iou`` bit by bit.

    Returns:
        ``(N, M)`` float32 on the same device; 0 where both masks are empty.
    """
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    n, m, pixels = len(flat_a), len(flat_b), flat_a.shape[1]
    inter = torch.zeros(n, m, dtype=torch.float32, device=a.device)
    step = max(_IOU_SLICE_PIXELS // max(n + m, 1), 1)
    for start in range(0, pixels, step):
        part_a, part_b = (x[:, start : start + step].float() for x in (flat_a, flat_b))
        inter += part_a @ part_b.T
    area_a, area_b = flat_a.sum(1).float(), flat_b.sum(1).float()
    union = area_a[:, None] + area_b[None] - inter
    return inter / union.clamp(min=1)


def within_boxes(logits: Tensor, boxes: Tensor, margin: float) -> Tensor:
    """Mask logits ``(N, h, w)`` that are nowhere positive outside their box.

    A weak mask head answers for a thing's twin across the picture too; the box knows which of them is meant. (Cropping
    masks with their boxes: YOLACT, Bolya et al. 2019, section 3.1.)

    Args:
        boxes: ``(N, 4)`` xyxy in 0..1.
        margin: how much room around the box, in sides of the box; at least half a pixel of the mask is left.
    """
    height, width = logits.shape[1:]
    inside = torch.ones_like(logits, dtype=torch.bool)
    for axis, count in ((0, width), (1, height)):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        centre = (torch.arange(count, device=logits.device) + 0.5) / count
        room = margin * (high - low) + 0.5 / count
        within = (centre >= (low - room)[:, None]) & (centre <= (high + room)[:, None])
        inside &= within[:, None, :] if axis == 0 else within[:, :, None]
    return torch.where(inside, logits, -logits.abs())


def greedy_nms(iou: Float32Array, score: Float32Array, iou_threshold: float) -> list[int]:
    """Rows kept when the best-scoring one suppresses all that overlap it by more than the threshold, and so on.

    Source: ``generic_nms`` of SAM3's kernels (equal scores: the earlier row first).

    Args:
        iou: ``(N, N)``.
        score: ``(N,)``.

    Returns:
        Kept row numbers, best first.
    """
    alive = np.ones(len(score), bool)
    kept: list[int] = []
    for row in np.argsort(-score, kind="stable"):
        if alive[row]:
            kept.append(int(row))
            alive &= iou[row] <= iou_threshold
    return kept


def nms(masks: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy mask suppression: :func:`greedy_nms` on :func:`mask_iou`.

    Args:
        masks: bool ``(N, H, W)``.
        scores: ``(N,)``.

    Returns:
        int64 indices of the kept masks on the CPU, best first.
    """
    iou = mask_iou(masks, masks).cpu().numpy()
    return torch.tensor(greedy_nms(iou, scores.float().cpu().numpy(), iou_threshold), dtype=torch.int64)


def fill_holes_and_islands(logits: Tensor, max_area: int) -> Tensor:
    """Fill background components of up to ``max_area`` pixels, then remove foreground ones as small.

    Semantics of transformers sam3_video ``fill_holes_in_mask_scores`` (8-connected, as its kernel): holes become
    0.1, islands -0.1, and an island is removed only if it is no larger than half of its mask.

    Args:
        logits: ``(N, h, w)`` floating point; > 0 is inside.
        max_area: pixels; 0 returns ``logits`` unchanged.

    Returns:
        A new tensor ``(N, h, w)``.
    """
    if max_area <= 0 or logits.numel() == 0:
        return logits
    holes_up_to = torch.full((len(logits),), max_area, device=logits.device)
    filled = torch.where(_small_components(logits <= 0, holes_up_to, max_area), HOLE_LOGIT, logits)
    inside = filled > 0
    islands_up_to = (inside.flatten(1).sum(1) // 2).clamp(max=max_area)
    return torch.where(_small_components(inside, islands_up_to, max_area), ISLAND_LOGIT, filled)


def filled(logits: Tensor, area_px: int) -> Tensor:
    """:func:`fill_holes_and_islands` of up to ``area_px`` pixels of a mask of SAM3's size, see :func:`area_at`."""
    return fill_holes_and_islands(logits, area_at(logits, area_px))


def _small_components(masks: Tensor, up_to: Tensor, max_area: int) -> Tensor:
    """Pixels in 8-connected components of at most ``up_to`` ``(N,)`` pixels, bool ``(N, h, w)``."""
    if masks.device.type == "cpu":
        return _small_components_cpu(masks, up_to)
    return _small_components_device(masks, up_to, max_area)


def _small_components_cpu(masks: Tensor, up_to: Tensor) -> Tensor:
    """By OpenCV, mask by mask: twenty times faster on a CPU than the parallel form."""
    out = np.empty(tuple(masks.shape), bool)
    for i, (mask, limit) in enumerate(zip(masks.numpy().astype(np.uint8), up_to.tolist(), strict=True)):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8, ltype=cv2.CV_32S)
        small = stats[:, cv2.CC_STAT_AREA] <= limit
        small[0] = False  # label 0 is what lies outside the mask
        out[i] = small[labels]
    return torch.from_numpy(out)


def _small_components_device(masks: Tensor, up_to: Tensor, max_area: int) -> Tensor:
    """In parallel: ``max_area`` rounds in which every pixel takes the smallest label around it.

    A component of A pixels has no shortest path longer than A - 1, so after A rounds every small component carries
    one label. A label whose pixels touch another label of the same mask has not settled: its component is larger.
    """
    n, height, width = masks.shape
    pixels = height * width
    outside = float(pixels)
    index = torch.arange(pixels, dtype=torch.float32, device=masks.device).view(1, 1, height, width)
    inside = masks[:, None]
    labels = torch.where(inside, index, outside)
    for _ in range(max_area):
        labels = torch.where(inside, -F.max_pool2d(-labels, 3, stride=1, padding=1), outside)
    lowest = -F.max_pool2d(-labels, 3, stride=1, padding=1)
    highest = F.max_pool2d(torch.where(inside, labels, -1.0), 3, stride=1, padding=1)
    unsettled = inside & ((lowest != labels) | (highest != labels))
    flat = labels.flatten(1).long()
    count = torch.zeros(n, pixels + 1, dtype=torch.int32, device=masks.device)
    count.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.int32))
    # Unsettled labels are made too large by counting their unsettled pixels as a whole mask each.
    count.scatter_add_(1, flat, unsettled.flatten(1).int() * (max_area + 1))
    small = (count <= up_to[:, None]).gather(1, flat).view(n, height, width)
    return small & masks


def area_at(masks: Tensor, area_px: int) -> int:
    """``area_px`` pixels of SAM3's 288 x 288 masks, in whole pixels of these ``(N, h, w)``.

    A checkpoint with smaller masks has smaller objects in them: 16 pixels are a speck at 288 x 288 and a whole object
    at 48 x 48.
    """
    return area_px * masks.shape[-2] * masks.shape[-1] // (REFERENCE_SIDE_PX**2)
