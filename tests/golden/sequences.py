"""Seeded tracking sequences with hard corners, as ids and similarities per frame, for tests of metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frames = list[NDArray[Any]]


@dataclass(frozen=True)
class TrackSequence:
    """Ground truth and predictions as ids per frame, and the IoU between them."""

    gt_ids: Frames
    pred_ids: Frames
    similarities: Frames


def random_sequence(
    seed: int, *, frames: int = 30, gt: int = 6, pred: int = 7, exact: bool = False, gaps: float = 0.2
) -> TrackSequence:
    """Objects with a favourite prediction each that swaps now and then; ids are sparse and unordered.

    ``exact``: similarities are multiples of 0.05, so that many stand exactly on a threshold.
    """
    rng = np.random.default_rng(seed)
    gt_names, pred_names = rng.permutation(1000)[:gt] + 3, rng.permutation(1000)[:pred]
    favourite = rng.integers(0, max(1, pred), gt)
    out = TrackSequence([], [], [])
    for _ in range(frames):
        swap = rng.random(gt) < 0.1
        favourite[swap] = rng.integers(0, max(1, pred), int(swap.sum()))
        g = rng.permutation(np.flatnonzero(rng.random(gt) > gaps))
        p = rng.permutation(np.flatnonzero(rng.random(pred) > gaps))
        similarity = np.where(rng.random((len(g), len(p))) < 0.3, rng.uniform(0, 0.6, (len(g), len(p))), 0.0)
        hit = favourite[g][:, None] == p[None, :]
        similarity[hit] = rng.uniform(0.2, 1.0, int(hit.sum()))
        if exact:
            similarity = np.round(similarity * 20) / 20
        out.gt_ids.append(gt_names[g])
        out.pred_ids.append(pred_names[p])
        out.similarities.append(similarity)
    return out


def corner_sequences() -> dict[str, TrackSequence]:
    """Sequences by the name of what is hard about them."""
    none = TrackSequence([], [], [])
    reused = random_sequence(5, gt=3, pred=3, gaps=0.5)
    for frame, ids in enumerate(reused.pred_ids):
        ids[...] = np.sort(ids)[: len(ids)] if frame % 2 else ids  # the same ids wander between objects
    return {
        "no frames": none,
        "nothing at all": random_sequence(0, gt=0, pred=0),
        "no ground truth": random_sequence(1, gt=0),
        "no predictions": random_sequence(2, pred=0),
        "single frame": random_sequence(3, frames=1),
        "single pair": random_sequence(4, frames=1, gt=1, pred=1, gaps=0.0),
        "ids reused": reused,
        "many frames empty": random_sequence(6, gaps=0.85),
        "far more predictions": random_sequence(7, gt=2, pred=30),
        "far more objects": random_sequence(8, gt=30, pred=2),
        "on thresholds": random_sequence(9, exact=True),
        "on thresholds, crowded": random_sequence(10, exact=True, gt=15, pred=15, frames=60),
        "all alike": TrackSequence([np.arange(3)] * 5, [np.arange(3)] * 5, [np.full((3, 3), 0.5)] * 5),
        "zero similarity": TrackSequence([np.arange(2)] * 4, [np.arange(2)] * 4, [np.zeros((2, 2))] * 4),
    }
