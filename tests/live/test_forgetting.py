"""Trackers that are told to forget an object go on as if it had never been."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from configs.schema import TrackerConfig
from pipeline.types import Detections, Frame
from trackers.bytetrack import ByteTrackTracker
from trackers.lifecycle import Lifecycle


def detections(rows: list[tuple[float, float]]) -> Detections:
    boxes = np.array([[x, y, x + 10, y + 10] for x, y in rows], np.float32).reshape(-1, 4)
    n = len(rows)
    return Detections(boxes, np.full(n, 0.9, np.float32), np.zeros(n, np.int16), np.ones((n, 1, 1), np.float32))


def frame(index: int) -> Frame:
    return Frame("cam", index, index / 10, np.zeros((64, 64, 3), np.uint8), (64, 64))


def test_bytetrack_gives_a_forgotten_object_a_new_id(tmp_path: Path) -> None:
    tracker = ByteTrackTracker(TrackerConfig(name="bytetrack"), stream_id="cam")
    for k in range(5):
        seen = tracker.step(frame(k), detections([(5, 5), (40, 40)]))
    assert seen.track_id.tolist() == [1, 2]
    tracker.forget(np.array([1], np.int64))
    for k in range(5, 9):
        seen = tracker.step(frame(k), detections([(5, 5), (40, 40)]))
    assert seen.track_id.tolist() == [2, 3]


def test_lifecycle_says_which_rows_stay() -> None:
    lifecycle = Lifecycle(TrackerConfig())
    lifecycle.load_state(
        {
            "next_id": 4,
            "lives": [
                {"track_id": i, "prompt_id": 0, "first_step": 0, "keep_alive": 1, "num_shadowed": {"2": 3}}
                for i in (1, 2, 3)
            ],
        }
    )
    stays = lifecycle.forget(np.array([2, 99], np.int64))
    assert stays.tolist() == [True, False, True]
    assert lifecycle.track_ids.tolist() == [1, 3]
    assert [life["num_shadowed"] for life in lifecycle.state()["lives"]] == [{}, {}]
