"""Compiled heads equal the plain ones, and few graphs serve all numbers of objects."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pipeline.compiled import bucket, padded
from tests.scenes import make_scene
from tests.unit.trackers.test_sam3_memory import Parts, detections, frame, parts, tracker
from trackers.sam_heads import CompiledParts, SamHeads

__all__ = ["parts"]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_batches_are_padded_to_powers_of_two() -> None:
    assert [bucket(n, 12) for n in (1, 2, 3, 5, 8, 9, 12)] == [1, 2, 4, 8, 8, 12, 12]
    rows = padded(torch.arange(6).reshape(3, 2), 4)
    assert rows.tolist() == [[0, 1], [2, 3], [4, 5], [4, 5]]
    assert padded(rows, 4) is rows


def test_compiled_heads_follow_alike_and_streams_share_the_graphs(parts: Parts) -> None:
    """Memories fill up frame by frame and objects join; a second stream compiles nothing."""
    counter = CompileCounterWithBackend("eager")
    heads = SamHeads(parts.neck, parts.model).compile(counter)
    shared = CompiledParts(parts.neck, parts.model, heads)
    graphs, batches = [], set()
    for num_frames in (12, 8):
        plain, made = tracker(parts), tracker(shared)  # type: ignore[arg-type]
        plain._heads.one_by_one = False
        scene = make_scene(9, num_actors=7, num_frames=14, num_prompts=2)
        for t in range(num_frames):
            batches |= {(*r.memory.shape[:2], r.pointer.shape[1]) for r in plain._bank.read(t, 64)}
            a, b = (one.advance(frame(t), detections(scene, t)) for one in (plain, made))
            assert a.track_id.tolist() == b.track_id.tolist()
            torch.testing.assert_close(a.logits, b.logits, atol=1e-3, rtol=0)
            np.testing.assert_allclose(a.score, b.score, atol=1e-4)
        graphs.append(counter.frame_count)
    assert graphs[1] == graphs[0] <= 5 < len(batches)
