"""Tables of frames: what the detector and the tracker see, and what is decided. No weights, no masks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from configs.schema import TrackerConfig
from trackers.lifecycle import Evidence, Lifecycle, UpdatePlan


def evidence(m: int, iou: list[list[float]] | None = None, **given: Any) -> Evidence:
    """``m`` visible objects that do not overlap; ``iou`` has a row per detection."""
    det_iou = np.array(iou or [], np.float32).reshape(len(iou or []), m)
    n = len(det_iou)
    values: dict[str, Any] = {
        "det_score": np.full(n, 0.9, np.float32),
        "det_prompt": np.zeros(n, np.int16),
        "det_iou": det_iou,
        "track_iou": np.eye(m, dtype=np.float32),
        "object_logit": np.full(m, 5, np.float32),
        "is_empty": np.zeros(m, bool),
        "is_finite": np.ones(m, bool),
    }
    return Evidence(**values | given)


def born(count: int, config: TrackerConfig | None = None) -> Lifecycle:
    """A lifecycle after frame 0 with ``count`` objects."""
    life = Lifecycle(config or TrackerConfig())
    life.plan(0, evidence(0, [[] for _ in range(count)]))
    return life


def matched(m: int) -> list[list[float]]:
    """A detection on every object."""
    return np.eye(m).tolist()


def test_ids_ascend_from_one_and_are_never_reused() -> None:
    life = born(2, TrackerConfig(hotstart_unmatched_frames=1))
    assert life.track_ids.tolist() == [1, 2]
    plan = life.plan(1, evidence(2, [[1, 0]]))
    assert plan.withdrawn.tolist() == [False, True]
    plan = life.plan(2, evidence(1, [[1], [0], [0]]))
    assert plan.new.tolist() == [1, 2]
    assert plan.new_ids.tolist() == [3, 4]
    assert life.track_ids.tolist() == [1, 3, 4]


def test_an_object_unmatched_on_eight_frames_of_its_probation_is_withdrawn() -> None:
    life = born(1)
    for step in range(1, 8):
        assert not life.plan(step, evidence(1)).withdrawn.any()
    assert life.plan(8, evidence(1)).withdrawn.tolist() == [True]
    assert len(life) == 0


def test_unmatched_frames_count_in_total_not_in_a_row() -> None:
    life = born(1)
    for step in range(1, 15):
        plan = life.plan(step, evidence(1) if step % 2 else evidence(1, matched(1)))
        assert plan.withdrawn.tolist() == [False], step  # seven unmatched frames within fifteen
    life = born(1)
    fates = [life.plan(step, evidence(1, matched(1)) if step in (2, 4) else evidence(1)) for step in range(1, 11)]
    assert [bool(plan.withdrawn.any()) for plan in fates] == [False] * 9 + [True]


def test_after_its_probation_an_object_is_never_withdrawn() -> None:
    life = born(1)
    for step in range(1, 16):
        life.plan(step, evidence(1, matched(1)))
    for step in range(16, 60):
        assert not life.plan(step, evidence(1)).withdrawn.any()


def test_a_hidden_object_is_not_unmatched() -> None:
    life = born(1)
    for step in range(1, 30):
        assert not life.plan(step, evidence(1, is_empty=np.array([True]))).withdrawn.any()


def test_the_later_born_of_two_objects_on_one_detection_is_withdrawn() -> None:
    life = born(1)
    life.plan(1, evidence(1, [[1], [0]]))  # a second object
    fates = [life.plan(step, evidence(2, [[0.9, 0.6]])) for step in range(2, 10)]
    assert [plan.withdrawn.tolist() for plan in fates] == [[False, False]] * 7 + [[False, True]]


def test_of_twins_the_first_row_stays() -> None:
    life = born(2)
    fates = [life.plan(step, evidence(2, [[0.6, 0.9]])) for step in range(1, 9)]
    assert fates[-1].withdrawn.tolist() == [False, True]


def test_two_detections_on_one_pair_count_twice() -> None:
    life = born(2)
    fates = [life.plan(step, evidence(2, [[0.6, 0.6], [0.6, 0.6]])) for step in range(1, 5)]
    assert [bool(plan.withdrawn.any()) for plan in fates] == [False, False, False, True]


def test_without_the_detector_nobody_loses_standing() -> None:
    life = born(1)
    before = life.state()
    for step in range(1, 40):
        plan = life.plan(step, evidence(1, detector_ran=False))
        assert plan.keeps.all()
    before["lives"][0]["last_hidden_step"] = -1  # noted on the first propagated frame
    assert life.state() == before


@pytest.mark.parametrize(("only_in_hotstart", "hidden_from"), [(True, None), (False, 30)])
def test_keep_alive_hides_what_is_unmatched_for_long(only_in_hotstart: bool, hidden_from: int | None) -> None:
    config = TrackerConfig(suppress_unmatched_only_within_hotstart=only_in_hotstart, hotstart_delay_frames=0)
    life = born(1, config)
    hidden = [bool(life.plan(step, evidence(1)).hidden[0]) for step in range(1, 50)]
    assert hidden == [hidden_from is not None and step >= hidden_from for step in range(1, 50)]
    if hidden_from:
        shown_again = [bool(life.plan(50 + i, evidence(1, matched(1))).hidden[0]) for i in range(3)]
        assert shown_again == [True, False, False]  # keep-alive was -1


@pytest.mark.parametrize(
    ("step", "logit", "score", "expected"),
    [(16, 5.0, 0.9, 0), (15, 5.0, 0.9, -1), (16, 0.8, 0.9, -1), (16, 5.0, 0.79, -1), (32, 0.81, 0.8, 0)],
)
def test_recondition(step: int, logit: float, score: float, expected: int) -> None:
    life = born(1)
    seen = evidence(1, [[0.9]], object_logit=np.array([logit], np.float32), det_score=np.array([score], np.float32))
    assert life.plan(step, seen).recondition.tolist() == [expected]


def test_recondition_off() -> None:
    life = born(1, TrackerConfig(recondition_every_frames=0))
    assert life.plan(16, evidence(1, [[0.9]])).recondition.tolist() == [-1]


def overlapping(**given: Any) -> Evidence:
    return evidence(2, matched(2), track_iou=np.array([[1, 0.8], [0.8, 1]], np.float32), **given)


def test_of_two_overlapping_objects_the_lately_hidden_yields() -> None:
    life = born(2)
    life.plan(1, evidence(2, matched(2), is_empty=np.array([True, False])))
    assert not life.plan(2, overlapping()).yields.any()  # the other was never hidden
    life.plan(3, evidence(2, matched(2), is_empty=np.array([False, True])))
    assert life.plan(4, overlapping()).yields.tolist() == [False, True]
    # Yielding counts as being hidden, so it goes on yielding.
    assert life.plan(5, overlapping()).yields.tolist() == [False, True]


def test_objects_of_different_phrases_may_overlap() -> None:
    life = Lifecycle(TrackerConfig())
    life.plan(0, evidence(0, [[], []], det_prompt=np.array([0, 1], np.int16)))
    prompts = np.array([0, 1], np.int16)
    life.plan(1, evidence(2, matched(2), is_empty=np.array([True, False]), det_prompt=prompts))
    life.plan(2, evidence(2, matched(2), is_empty=np.array([False, True]), det_prompt=prompts))
    assert not life.plan(3, overlapping(det_prompt=prompts)).yields.any()


def test_a_broken_object_is_dropped_not_withdrawn() -> None:
    life = born(2)
    plan = life.plan(1, evidence(2, matched(2), is_finite=np.array([False, True])))
    assert plan.broken.tolist() == [True, False]
    assert not plan.withdrawn.any()
    assert life.track_ids.tolist() == [2]


def test_over_budget_the_best_scoring_are_kept() -> None:
    life = Lifecycle(TrackerConfig(max_objects=2))
    plan = life.plan(0, evidence(0, [[], [], []], det_score=np.array([0.8, 0.95, 0.9], np.float32)))
    assert plan.new.tolist() == [1, 2]
    assert plan.num_refused == 1
    assert life.plan(1, evidence(2, [[1, 0], [0, 1], [0, 0]])).num_refused == 1


def test_state_does_not_grow_and_forgets_the_dead() -> None:
    """Hundreds of false alarms that shadow one another come and go."""
    life = born(1)
    sizes = []
    for step in range(1, 500):
        m = len(life)
        on_first = [[1.0] + [0.5] * (m - 1)]
        life.plan(step, evidence(m, [*on_first, [0.0] * m]))
        if step % 10 == 9:
            sizes.append(len(json.dumps(life.state())))
    assert max(sizes[20:]) <= max(sizes[:20]) + 200  # the digits of steps and ids
    assert life.track_ids[0] == 1


def test_continues_after_a_round_trip_through_json() -> None:
    rng = np.random.default_rng(0)
    whole, cut = born(3), born(3)
    for step in range(1, 30):
        if step == 12:
            state = json.loads(json.dumps(cut.state()))
            cut = Lifecycle(TrackerConfig())
            cut.load_state(state)
        m = len(whole)
        seen = evidence(m, rng.random((3, m)).tolist(), is_empty=rng.random(m) < 0.3)
        _assert_same(whole.plan(step, seen), cut.plan(step, seen))
        assert whole.state() == cut.state()


def _assert_same(a: UpdatePlan, b: UpdatePlan) -> None:
    for name in UpdatePlan.__slots__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
