from __future__ import annotations

import numpy as np
import pytest

from configs.schema import TrackerConfig
from trackers.association import Association, assign, associate

CONFIG = TrackerConfig()


def _associate(
    iou: list[list[float]],
    score: list[float],
    det_prompt: list[int] | None = None,
    track_prompt: list[int] | None = None,
    empty: list[bool] | None = None,
) -> Association:
    matrix = np.array(iou, np.float32).reshape(len(score), -1)
    n, m = matrix.shape
    return associate(
        matrix,
        np.array(score, np.float32),
        np.array(det_prompt or [0] * n, np.int16),
        np.array(track_prompt if track_prompt is not None else [0] * m, np.int16),
        np.array(empty or [False] * m, bool),
        CONFIG,
    )


@pytest.mark.parametrize(
    ("iou", "score", "new"),
    [
        ([[0.05]], [0.9], [True]),
        ([[0.1]], [0.9], [False]),  # touches an object
        ([[0.05]], [0.69], [False]),  # not sure enough
        ([[0.05]], [0.7], [True]),
        ([[0.9], [0.0]], [0.9, 0.8], [False, True]),
    ],
)
def test_a_confident_detection_that_touches_no_object_is_new(
    iou: list[list[float]], score: list[float], new: list[bool]
) -> None:
    assert _associate(iou, score).is_new.tolist() == new


def test_without_objects_every_detection_is_new_whatever_its_score() -> None:
    found = _associate([[], []], [0.51, 0.9], track_prompt=[])
    assert found.is_new.tolist() == [True, True]
    assert found.is_touched.shape == (0,)


def test_phrases_do_not_mix() -> None:
    found = _associate([[0.9, 0.0]], [0.95], det_prompt=[1], track_prompt=[0, 1])
    assert found.is_new.tolist() == [True]
    assert found.is_unmatched.tolist() == [True, True]
    assert found.confirmed_by.tolist() == [-1, -1]


def test_an_object_is_unmatched_below_the_higher_bar_but_an_empty_one_is_not() -> None:
    found = _associate([[0.49, 0.5, 0.0]], [0.9], empty=[False, False, True])
    assert found.is_unmatched.tolist() == [True, False, False]
    assert found.is_touched.tolist() == [True, True, False]


def test_without_detections_visible_objects_are_unmatched() -> None:
    found = associate(
        np.zeros((0, 2), np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.int16),
        np.zeros(2, np.int16),
        np.array([False, True]),
        CONFIG,
    )
    assert found.is_unmatched.tolist() == [True, False]
    assert found.is_new.tolist() == []


@pytest.mark.parametrize(
    ("iou", "score", "confirmed_by"),
    [
        ([[0.8, 0.0]], [0.8], [0, -1]),
        ([[0.79, 0.0]], [0.8], [-1, -1]),
        ([[0.9, 0.0]], [0.79], [-1, -1]),
        ([[0.85, 0.95]], [0.9], [-1, 0]),  # only its best object
        ([[0.9, 0.0], [0.85, 0.0]], [0.9, 0.9], [1, -1]),  # the later detection wins
    ],
)
def test_confirmation(iou: list[list[float]], score: list[float], confirmed_by: list[int]) -> None:
    assert _associate(iou, score).confirmed_by.tolist() == confirmed_by


def test_assignment_leaves_dear_pairs_alone() -> None:
    cost = np.array([[0.1, 0.5], [0.2, np.inf]])
    rows, cols = assign(cost, 0.8)
    assert dict(zip(rows.tolist(), cols.tolist(), strict=True)) == {0: 1, 1: 0}
    rows, cols = assign(cost, 0.4)
    assert dict(zip(rows.tolist(), cols.tolist(), strict=True)) == {0: 0}


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_assignment_of_nothing(shape: tuple[int, int]) -> None:
    rows, cols = assign(np.zeros(shape), 0.5)
    assert len(rows) == len(cols) == 0
