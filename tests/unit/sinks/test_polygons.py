"""Outlines are exact, rings are joined without a trace, simplification keeps its word."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline import masks as mask_ops
from pipeline.sinks.polygons import MAX_LOSS, TOLERANCE_PX, Polygon, Tracer, filled, one_ring, outlines, simplified
from pipeline.types import BoolArray
from tests.runs import blob


def some_masks(seed: int, count: int) -> list[BoolArray]:
    """Blobs with holes and islands, and noise, which is nothing but corners and diagonal contacts."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, (count, 2)).tolist()
    masks = [
        blob(rng, (h, w), rng.uniform(0, 1, 2)) if i % 2 else rng.random((h, w)) < 0.5 for i, (h, w) in enumerate(sizes)
    ]
    return [m for m in masks if (m.any() and max(m.shape) < 24) or m.sum() < 300]


@pytest.mark.parametrize("seed", range(5))
def test_exact_outlines_fill_to_the_same_mask(seed: int) -> None:
    for mask in some_masks(seed, 20):
        polygons = outlines(mask)
        if not mask.any():
            assert polygons == []
            continue
        size = mask.shape
        by_ring = np.zeros(size, bool)
        for polygon in polygons:
            for ring in (polygon.outer, *polygon.holes):
                by_ring ^= mask_ops.decode([filled(ring, size)])[0]
        assert np.array_equal(by_ring, mask)
        assert filled(one_ring(polygons), size).counts == mask_ops.encode(mask[None])[0].counts


def test_a_ring_with_a_hole_and_an_island() -> None:
    mask = np.zeros((8, 9), bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = False
    mask[7, 8] = True
    big, island = outlines(mask)
    assert sorted(map(tuple, big.outer.tolist())) == [(1, 1), (1, 6), (6, 1), (6, 6)]
    assert [sorted(map(tuple, hole.tolist())) for hole in big.holes] == [[(3, 3), (3, 4), (4, 3), (4, 4)]]
    assert sorted(map(tuple, island.outer.tolist())) == [(8, 7), (8, 8), (9, 7), (9, 8)]


def test_simplified_rings_stay_within_the_tolerance() -> None:
    ys, xs = np.mgrid[:80, :90]
    disc = (ys - 40.3) ** 2 + (xs - 44.6) ** 2 < 33**2
    (polygon,) = outlines(disc)
    simple = simplified(polygon)
    assert len(simple.outer) < len(polygon.outer) / 3
    outline = simple.outer.reshape(-1, 1, 2).astype(np.float32)
    away = [abs(cv2.pointPolygonTest(outline, (float(x), float(y)), True)) for x, y in polygon.outer]
    assert max(away) <= TOLERANCE_PX
    iou = mask_ops.rle_iou(mask_ops.encode(disc[None]), [filled(simple.outer, disc.shape)])[0, 0]
    assert 0.96 < iou < 1


def test_tiny_masks_stay_exact_rather_than_lose_too_much() -> None:
    tracer = Tracer()
    for mask in some_masks(7, 60):
        if mask.any():
            rle = mask_ops.encode(mask[None])[0]
            ring = tracer.ring(rle)
            assert mask_ops.rle_iou([rle], [filled(ring, rle.size)])[0, 0] >= 1 - MAX_LOSS
    assert tracer.least_iou >= 1 - MAX_LOSS
    assert "1 px" in tracer.notes()[0]


def test_a_vanishing_ring_is_kept() -> None:
    line = np.zeros((5, 5), bool)
    line[2, 2] = True
    (polygon,) = outlines(line)
    assert isinstance(polygon, Polygon)
    assert filled(simplified(polygon).outer, line.shape).counts == mask_ops.encode(line[None])[0].counts
