"""Mask operations on tensors against plain re-statements, SciPy and transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from transformers.models.sam3_video.modeling_sam3_video import mask_iou as reference_iou

from pipeline import torch_masks
from pipeline.torch_masks import fill_holes_and_islands, greedy_nms, mask_iou, nms, within_boxes

torch.set_num_threads(1)


def blobs(seed: int, n: int, size: tuple[int, int], scale: float) -> Tensor:
    """Smooth random logits; a smaller ``scale`` gives more, smaller components."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        np.stack([ndimage.gaussian_filter(rng.standard_normal(size), scale) for _ in range(n)]).astype(np.float32)
    )


def restated_fill(logits: Tensor, max_area: int) -> Tensor:
    """The reference's rule, component by component, with SciPy's labels."""
    out = logits.clone()
    eight = np.ones((3, 3))
    for mask in out:
        labels, n = ndimage.label(mask.numpy() <= 0, eight)
        for k in range(1, n + 1):
            if (labels == k).sum() <= max_area:
                mask[torch.from_numpy(labels == k)] = 0.1
        inside = mask.numpy() > 0
        limit = min(int(inside.sum()) // 2, max_area)
        labels, n = ndimage.label(inside, eight)
        for k in range(1, n + 1):
            if (labels == k).sum() <= limit:
                mask[torch.from_numpy(labels == k)] = -0.1
    return out


@pytest.mark.parametrize("seed", range(3))
def test_iou_equals_the_reference_bit_by_bit(seed: int) -> None:
    masks = blobs(seed, 17, (31, 45), 2.0) > 0
    masks[3] = False
    masks[11] = False
    assert torch.equal(mask_iou(masks[:8], masks[5:]), reference_iou(masks[:8], masks[5:]))


def test_iou_in_slices_equals_iou_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = blobs(0, 9, (31, 45), 2.0) > 0
    whole = mask_iou(masks, masks)
    monkeypatch.setattr(torch_masks, "_IOU_SLICE_PIXELS", 18 * 100)
    assert torch.equal(mask_iou(masks, masks), whole)


def test_iou_of_nothing_is_empty() -> None:
    assert mask_iou(torch.zeros(0, 4, 4, dtype=torch.bool), torch.ones(2, 4, 4, dtype=torch.bool)).shape == (0, 2)


def test_boxes_confine_masks_and_leave_the_rest_bit_equal() -> None:
    logits = torch.tensor([[[3.0, -1, 2, 4, 5, -2]] * 4, [[1.0] * 6] * 4])
    boxes = torch.tensor([[0.0, 0.3, 0.45, 0.7], [0.0, 0.0, 0.0, 0.0]])
    found = within_boxes(logits, boxes, 0.0)
    inside = torch.zeros(2, 4, 6, dtype=torch.bool)
    inside[0, 1:3, :3] = True  # half a pixel of room
    inside[1, 0, 0] = True
    assert torch.equal(found[inside], logits[inside])
    assert torch.equal(found[~inside], -logits[~inside].abs())
    wider = within_boxes(logits, boxes, 0.5)
    assert torch.equal(wider[0, :, :5], logits[0, :, :5]) and (wider[0, :, 5:] <= 0).all()


def test_nms_keeps_what_only_a_suppressed_mask_overlaps() -> None:
    row = torch.zeros(3, 1, 12, dtype=torch.bool)
    row[0, 0, :6], row[1, 0, 3:9], row[2, 0, 7:12] = True, True, True
    assert nms(row, torch.tensor([0.9, 0.8, 0.7]), 0.1).tolist() == [0, 2]
    assert nms(row, torch.tensor([0.8, 0.9, 0.7]), 0.1).tolist() == [1]


def test_nms_keeps_overlap_equal_to_the_threshold() -> None:
    iou = np.array([[1, 0.5, 0], [0.5, 1, 0.6], [0, 0.6, 1]], np.float32)
    assert greedy_nms(iou, np.array([0.9, 0.8, 0.7], np.float32), 0.5) == [0, 1]


def test_nms_prefers_the_earlier_of_equal_scores() -> None:
    assert greedy_nms(np.ones((3, 3), np.float32), np.full(3, 0.5, np.float32), 0.1) == [0]


@pytest.mark.parametrize("seed", range(5))
def test_nms_equals_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks, scores = blobs(seed, 40, (24, 24), 3.0) > 0.02, rng.random(40).astype(np.float32)
    iou = reference_iou(masks, masks).numpy()
    order, kept = list(np.argsort(-scores)), []
    while order:
        best = order.pop(0)
        kept.append(best)
        order = [j for j in order if iou[best, j] <= 0.3]
    assert nms(masks, torch.from_numpy(scores), 0.3).tolist() == kept


@pytest.mark.parametrize("device_form", [False, True], ids=["cpu", "parallel"])
@pytest.mark.parametrize("max_area", [1, 4, 16])
@pytest.mark.parametrize("scale", [0.6, 1.2, 3.0])
def test_fill_equals_the_restated_rule(
    scale: float, max_area: int, device_form: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device_form:  # what CUDA runs, here on the CPU
        monkeypatch.setattr(torch_masks, "_small_components", torch_masks._small_components_device)
    logits = blobs(int(scale * 10), 4, (33, 46), scale)
    got = fill_holes_and_islands(logits, max_area)
    assert torch.equal(got, restated_fill(logits, max_area))
    if scale < 3:
        assert not torch.equal(got, logits)


@pytest.mark.parametrize("device_form", [False, True], ids=["cpu", "parallel"])
def test_fill_measures_winding_components_to_their_end(device_form: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spiral of 17 pixels is an island too large to remove, one of 16 is not: distance is not area."""
    if device_form:
        monkeypatch.setattr(torch_masks, "_small_components", torch_masks._small_components_device)
    logits = torch.full((2, 20, 40), -1.0)
    logits[:, 12:, :] = 1.0
    path = [(r, c) for r in range(0, 10, 2) for c in range(3)] + [(1, 2), (3, 0)]
    for length, plane in zip((16, 17), logits, strict=True):
        for r, c in path[:length]:
            plane[r, c] = 1.0
    for c in range(17):  # a straight line, as long
        logits[1, 0, 20 + c] = 1.0
    assert torch.equal(fill_holes_and_islands(logits, 16), restated_fill(logits, 16))


def test_fill_keeps_a_mask_that_is_all_island() -> None:
    logits = torch.full((1, 8, 8), -1.0)
    logits[0, 3:5, 3:5] = 2.0
    assert torch.equal(fill_holes_and_islands(logits, 16), logits)


def test_fill_of_area_zero_changes_nothing() -> None:
    logits = blobs(0, 2, (16, 16), 0.6)
    assert fill_holes_and_islands(logits, 0) is logits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_fill_on_cuda_equals_the_cpu() -> None:
    logits = blobs(1, 6, (288, 288), 1.0)
    assert torch.equal(fill_holes_and_islands(logits.cuda(), 16).cpu(), fill_holes_and_islands(logits, 16))
