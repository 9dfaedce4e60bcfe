"""Run lengths and boxes against brute force on seeded masks."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import masks as m
from pipeline.types import RLE


def random_masks(seed: int, n: int = 5, size: tuple[int, int] = (37, 53)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = np.zeros((n, *size), bool)
    for mask in out[1:]:  # the first stays empty
        y, x = rng.integers(0, size[0] - 4), rng.integers(0, size[1] - 4)
        mask[y : y + rng.integers(2, 20), x : x + rng.integers(2, 20)] = True
        mask &= rng.random(size) < 0.9
    return out


@pytest.mark.parametrize("seed", range(4))
def test_round_trip_areas_and_boxes(seed: int) -> None:
    masks = random_masks(seed)
    rles = m.encode(masks)
    assert np.array_equal(m.decode(rles), masks)
    assert m.areas(rles).tolist() == masks.sum((1, 2)).tolist()
    assert np.array_equal(m.boxes(masks), m.rle_boxes(rles))
    for mask, (x1, y1, x2, y2) in zip(masks[1:], m.boxes(masks)[1:].astype(int), strict=True):
        assert mask[y1:y2, x1:x2].sum() == mask.sum()
        assert mask[y1].any()
        assert mask[y2 - 1].any()
        assert mask[:, x1].any()
        assert mask[:, x2 - 1].any()


def test_empty_sequences_keep_their_shape() -> None:
    assert m.encode(np.zeros((0, 4, 5), bool)) == ()
    assert m.decode((), (4, 5)).shape == (0, 4, 5)
    assert m.areas(()).shape == (0,)
    assert m.rle_boxes(()).shape == (0, 4)
    assert m.rle_iou((), (RLE((2, 2), b"4"),)).shape == (0, 1)
    assert m.box_iou(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)


def test_ious_equal_brute_force() -> None:
    a, b = random_masks(1), random_masks(2)
    inter = (a[:, None] & b[None]).sum((2, 3))
    union = (a[:, None] | b[None]).sum((2, 3))
    want = np.divide(inter, union, out=np.zeros(inter.shape), where=union > 0)
    assert np.allclose(m.rle_iou(m.encode(a), m.encode(b)), want)
    boxes = np.array([[0, 0, 4, 4], [2, 2, 6, 6], [9, 9, 9, 9]], float)
    filled = m.boxes_to_masks(boxes, (10, 10))
    inter = (filled[:, None] & filled[None]).sum((2, 3))
    union = (filled[:, None] | filled[None]).sum((2, 3))
    assert np.allclose(m.box_iou(boxes, boxes), np.divide(inter, union, out=np.zeros(inter.shape), where=union > 0))


def test_encode_refuses_one_mask_without_its_axis() -> None:
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        m.encode(np.zeros((4, 5), bool))
