"""Who rests, who attends, whose detection is whose: no model, no masks, one frame at a time."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from configs.schema import TrackerConfig
from trackers.attention_plan import Outlook, Reason, Tracked, _distinction, claims, judge, who_attends

CONFIG = TrackerConfig(mode="adaptive", refresh_every_frames=10, hide_after_frames=3)


def outlook(objects: list[dict[str, Any]], dets: list[dict[str, Any]], **changes: Any) -> Outlook:
    """Objects and detections of 10 px side; ``look`` is an angle in degrees, overlap that of equal squares."""

    def column(rows: list[dict[str, Any]], name: str, default: Any, dtype: Any) -> Any:
        return np.array([row.get(name, default) for row in rows], dtype)

    at, det_at = (np.array([row["at"] for row in rows], np.float64).reshape(-1, 2) for rows in (objects, dets))
    look, det_look = (np.deg2rad(column(rows, "look", 0, np.float64)) for rows in (objects, dets))
    changes.setdefault("iou", _square_iou(det_at, at))
    return Outlook(
        det_score=column(dets, "score", 0.9, np.float32),
        det_prompt=column(dets, "prompt", 0, np.int16),
        det_centre=det_at,
        det_extent=column(dets, "extent", 10, np.float64),
        det_area=column(dets, "area", 100, np.float64),
        prompt=column(objects, "prompt", 0, np.int16),
        centre=at,
        last_centre=at,
        extent=column(objects, "extent", 10, np.float64),
        area=column(objects, "area", 100, np.float64),
        last_extent=column(objects, "last_extent", 10, np.float64),
        last_area=column(objects, "area", 100, np.float64),
        rival_iou=_square_iou(at, at),
        likeness=np.cos(det_look[:, None] - look[None]).astype(np.float32),
        resemblance=np.cos(look[:, None] - look[None]).astype(np.float32),
        unseen=column(objects, "unseen", 0, np.int64),
        skipped=column(objects, "skipped", 0, np.int64),
        since_attention=column(objects, "since", 0, np.int64),
        **changes,
    )


def _square_iou(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> Any:
    overlap = np.clip(10 - np.abs(a[:, None] - b[None]), 0, None).prod(2)
    return (overlap / (200 - overlap)).astype(np.float32)


def _no_overlap(dets: int, objects: int) -> dict[str, Any]:
    return {"iou": np.zeros((dets, objects), np.float32)}


def reasons(objects: list[dict[str, Any]], dets: list[dict[str, Any]]) -> list[Reason]:
    return [Reason(int(r)) for r in who_attends(outlook(objects, dets), CONFIG)[0]]


@pytest.mark.parametrize(
    ("state", "det", "reason"),
    [
        ({}, {"at": (51, 50)}, Reason.RESTS),
        ({}, {"at": (80, 50)}, Reason.UNSEEN),
        ({}, {"at": (50, 50), "prompt": 1}, Reason.UNSEEN),
        ({"unseen": 1}, {"at": (50, 50)}, Reason.UNSEEN),
        ({"unseen": 4}, {"at": (50, 50)}, Reason.SLEEPS),
        ({}, {"at": (50, 50), "score": 0.6}, Reason.WEAK),
        ({}, {"at": (55, 50)}, Reason.WEAK),
        ({}, {"at": (50, 50), "look": 50}, Reason.UNLIKE),
        ({"since": 8}, {"at": (50, 50)}, Reason.RESTS),
        ({"since": 9}, {"at": (50, 50)}, Reason.REFRESH),
    ],
)
def test_one_object_and_one_detection(state: dict[str, Any], det: dict[str, Any], reason: Reason) -> None:
    assert reasons([{"at": (50, 50), **state}], [det]) == [reason]


def test_rivals_attend_and_who_is_apart_rests() -> None:
    objects = [{"at": (50, 50)}, {"at": (56, 50)}, {"at": (20, 20)}]
    dets = [{"at": (50, 50)}, {"at": (56, 50)}, {"at": (20, 20)}]
    assert reasons(objects, dets) == [Reason.RIVALS, Reason.RIVALS, Reason.RESTS]


def test_touching_objects_of_other_phrases_and_neighbours_without_overlap_rest() -> None:
    objects = [{"at": (50, 50)}, {"at": (61, 50)}, {"at": (50, 50), "prompt": 1}]
    dets = [{"at": (50, 50)}, {"at": (61, 50)}, {"at": (50, 50), "prompt": 1}]
    assert reasons(objects, dets) == [Reason.RESTS] * 3


def test_nothing_detected_and_nobody_there() -> None:
    assert reasons([{"at": (50, 50)}], []) == [Reason.UNSEEN]
    assert reasons([], [{"at": (50, 50)}]) == []


def claim(objects: list[dict[str, Any]], dets: list[dict[str, Any]]) -> list[int]:
    seen = outlook(objects, dets)
    none = np.full(len(objects), -1, np.int64)
    return claims(seen, none, np.zeros((len(dets), len(objects)), np.float32), CONFIG).tolist()


def test_a_lost_object_is_found_where_it_can_be_and_not_elsewhere() -> None:
    """The reach of a 10 px object is 6 px after one frame and 18 after eight."""
    lost = {"at": (50, 50), "unseen": 8}
    assert claim([lost], [{"at": (65, 50)}]) == [0]
    assert claim([lost], [{"at": (70, 50)}]) == [-1]
    assert claim([{"at": (50, 50), "unseen": 1}], [{"at": (65, 50)}]) == [-1]


def test_frames_that_never_came_widen_where_an_object_can_be() -> None:
    assert claim([{"at": (50, 50)}], [{"at": (85, 50)}]) == [-1]
    assert claim([{"at": (50, 50), "skipped": 40}], [{"at": (85, 50)}]) == [0]
    assert claim([{"at": (50, 50), "skipped": 40}], [{"at": (98, 50)}]) == [0]  # a steady mover
    assert claim([{"at": (50, 50), "unseen": 40}], [{"at": (98, 50)}]) == [-1]
    assert reasons([{"at": (50, 50), "skipped": 40}], [{"at": (50, 50)}]) == [Reason.UNSEEN]


def test_a_lost_object_is_not_found_in_what_looks_unlike() -> None:
    assert claim([{"at": (50, 50), "unseen": 8}], [{"at": (50, 50), "look": 50}]) == [-1]


def test_what_comes_out_from_behind_something_may_be_small_and_not_large() -> None:
    def claimed(unseen: int, extent: float) -> int:
        seen = outlook([{"at": (50, 50), "unseen": unseen}], [{"at": (62, 50), "extent": extent}])
        return int(claims(seen, np.array([-1]), np.zeros((1, 1), np.float32), CONFIG)[0])

    assert [claimed(6, extent) for extent in (2, 5, 10, 17, 20)] == [0, 0, 0, 0, -1]
    # It went in with its left edge last, and its right edge comes out first.
    for unseen, last, expected in ((1, 2, 0), (1, 10, -1), (0, 2, -1)):
        seen = outlook([{"at": (50, 50), "unseen": unseen, "last_extent": last}], [{"at": (62, 50), "extent": 4}])
        assert claims(seen, np.array([-1]), np.zeros((1, 1), np.float32), CONFIG)[0] == expected
    near = {"at": (54, 53)}  # reachable in one frame
    for extent, expected in ((2, -1), (9, 0)):
        seen = outlook([{"at": (50, 50), "look": 30}], [near | {"extent": extent}], **_no_overlap(1, 1))
        assert claims(seen, np.array([-1]), np.zeros((1, 1), np.float32), CONFIG)[0] == expected


def test_one_detection_of_two_that_touch_is_nobodys() -> None:
    """10 x 10 px each, side by side; the detection covers 190 of their 200 px."""
    twins = [{"at": (50, 50)}, {"at": (60, 50)}]

    def claimed(objects: list[dict[str, Any]], area: float, *others: dict[str, Any]) -> list[int]:
        dets = [{"at": (55, 50), "area": area, "extent": 14}, *others]
        at, det_at = (np.array([row["at"] for row in rows], np.float64) for rows in (objects, dets))
        iou = _square_iou(det_at, at)
        iou[0] = 90 / 200
        seen = outlook(objects, dets, iou=iou)
        return claims(seen, np.array([-1, -1]), np.zeros_like(iou), CONFIG).tolist()

    assert claimed(twins, 190) == [-1, -1]
    assert 0 in claimed(twins, 120), "no larger than one of them"
    assert 0 in claimed([twins[0], {"at": (60, 50), "unseen": 3}], 190), "the other is out of sight"
    assert 0 in claimed([twins[0], {"at": (60, 50), "prompt": 1}], 190), "another phrase"
    assert 0 in claimed(twins, 190, {"at": (60, 50)}), "the other has a detection of its own"


def test_a_part_that_comes_out_need_not_look_like_the_whole() -> None:
    for unseen, extent, expected in ((1, 5, 0), (0, 5, -1), (1, 9, -1)):
        part = {"at": (53, 50), "look": 42, "extent": extent}  # cosine .74
        seen = outlook([{"at": (50, 50), "unseen": unseen}], [part], **_no_overlap(1, 1))
        assert claims(seen, np.array([-1]), np.zeros((1, 1), np.float32), CONFIG)[0] == expected


def test_attention_that_ran_over_a_neighbour_does_not_claim_for_its_object() -> None:
    for extent, expected in ((10.0, 0), (20.0, -1)):
        seen = outlook([{"at": (50, 50)}], [{"at": (70, 50)}])
        found = tracked([0], 1, det_iou=np.float32([[0.6]]), extent=np.array([extent]))
        assert judge(seen, np.array([2]), np.array([-1]), found, CONFIG).claimed.tolist() == [expected]


def test_twins_are_told_by_place_and_others_by_look_while_they_pass() -> None:
    """One mixed detection for two, nearer to the first, a little more like the second."""
    for look, owner in ((10, 0), (40, 1)):  # 1 - cosine: 0.015 and 0.23
        objects = [{"at": (50, 50)}, {"at": (46, 50), "look": look}]
        seen = outlook(objects, [{"at": (49, 50), "look": 0.7 * look}])
        claimed = claims(seen, np.array([-1, -1]), np.zeros((1, 2), np.float32), CONFIG)
        assert claimed.tolist() == [0 if owner == 0 else -1, 0 if owner == 1 else -1]


def test_looks_undo_a_swap_at_a_crossing() -> None:
    """Red is predicted where blue is, and the other way round."""
    red, blue = {"at": (50, 50), "look": 0}, {"at": (54, 50), "look": 90}
    assert claim([red, blue], [{"at": (50, 50), "look": 90}, {"at": (54, 50), "look": 0}]) == [1, 0]


def test_who_is_in_sight_comes_before_the_lost() -> None:
    assert claim([{"at": (50, 50), "unseen": 6}, {"at": (50, 50)}], [{"at": (50, 50)}]) == [-1, 0]


def tracked(rows: list[int], dets: int, **changes: Any) -> Tracked:
    count = len(rows)
    made = {
        "rows": np.array(rows, np.int64),
        "det_iou": np.zeros((dets, count), np.float32),
        "centre": np.full((count, 2), 50.0),
        "extent": np.full(count, 10.0),
        "likeness": np.ones(count, np.float32),
        "is_there": np.ones(count, bool),
    }
    return Tracked(**made | changes)


@pytest.mark.parametrize(
    ("state", "changes", "shown"),
    [
        ({}, {}, True),
        ({"unseen": 2}, {}, True),
        ({"unseen": 3}, {}, False),
        ({}, {"likeness": np.float32([0.5])}, False),
        ({}, {"centre": np.array([[90.0, 50.0]])}, False),
        ({}, {"is_there": np.array([False])}, False),
        ({}, {"extent": np.array([5.0])}, True),
        ({}, {"extent": np.array([20.0])}, False),
    ],
)
def test_what_attention_finds_without_a_detection_must_be_credible(
    state: dict[str, Any], changes: dict[str, Any], shown: bool
) -> None:
    seen = outlook([{"at": (50, 50), **state}], [])
    reason, rests = who_attends(seen, CONFIG)
    verdict = judge(seen, reason, rests, tracked([0], 0, **changes), CONFIG)
    assert verdict.shows.tolist() == [0 if shown else -1]


def test_a_mask_that_jumped_to_another_objects_detection_is_not_shown() -> None:
    seen = outlook([{"at": (50, 50)}, {"at": (62, 50)}], [{"at": (62, 50)}])
    reason, rests = who_attends(seen, CONFIG)
    jumped = tracked([0], 1, det_iou=np.float32([[0.9]]), centre=np.array([[54.0, 50.0]]))
    verdict = judge(seen, reason, rests, jumped, CONFIG)
    assert verdict.claimed.tolist() == [-1, 0]
    assert verdict.shows.tolist() == [-1, 0]


def test_without_the_detector_attention_is_believed() -> None:
    seen = outlook([{"at": (50, 50), "unseen": 3}], [], detector_ran=False)
    reason, rests = who_attends(seen, CONFIG)
    verdict = judge(seen, reason, rests, tracked([0], 0, likeness=np.float32([0.1])), CONFIG)
    assert verdict.shows.tolist() == [0]


def test_a_weak_detection_yields_to_the_mask_that_attention_found_in_its_place() -> None:
    for score, shows in ((0.6, 1), (0.9, 0)):
        seen = outlook([{"at": (50, 50)}], [{"at": (50, 50), "score": score}])
        verdict = judge(seen, np.array([3]), np.array([-1]), tracked([0], 1, det_iou=np.float32([[0.8]])), CONFIG)
        assert verdict.shows.tolist() == [shows]
        assert verdict.agrees.all()


def test_a_crowd_is_compared_with_its_neighbours_only() -> None:
    """300 objects over a large picture: all pairs for every detection would be 200 MB an array."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 600, (300, 2))
    objects = [{"at": tuple(p), "look": float(rng.uniform(0, 90))} for p in places]
    found = [{"at": tuple(p + rng.normal(0, 2, 2)), "look": o["look"]} for p, o in zip(places, objects, strict=True)]
    seen = outlook(objects, found)
    tracemalloc.start()
    claimed = claims(seen, np.full(300, -1), np.zeros((300, 300), np.float32), CONFIG)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (claimed == np.arange(300)).mean() > 0.98
    assert peak < 40e6


def test_the_look_decides_between_neighbours_as_the_formula_says() -> None:
    """Against the comparison of all objects at once, written down once more."""
    rng = np.random.default_rng(1)
    objects = [{"at": tuple(rng.uniform(0, 30, 2)), "look": float(rng.uniform(0, 60))} for _ in range(7)]
    found = [{"at": tuple(rng.uniform(0, 30, 2)), "look": float(rng.uniform(0, 60))} for _ in range(6)]
    seen, possible = outlook(objects, found), rng.random((6, 7)) < 0.6
    apart = np.maximum(1 - seen.resemblance.astype(np.float64), 0)
    margin = (seen.likeness[:, :, None] - seen.likeness[:, None]) / (apart + 0.05)
    doubt = np.clip(0.5 - 0.5 * margin, 0, 1) * np.clip((apart - 0.03) / 0.07, 0, 1)
    expected = 1 - np.where(possible[:, None] & ~np.eye(7, dtype=bool), doubt, 0).max(2)
    np.testing.assert_allclose(_distinction(seen, possible)[possible], expected[possible], atol=1e-12)


@pytest.mark.parametrize(
    ("grown", "unseen", "others", "is_both"),
    [
        (135, 1, [], True),
        (125, 1, [], False),  # things differ by as much from frame to frame
        (135, 3, [], False),  # it went somewhere else
        (135, 1, [{"at": (59, 50)}], False),  # there is the other one
    ],
)
def test_a_detection_that_has_grown_where_another_object_just_went_is_nobodys(
    grown: int, unseen: int, others: list[dict[str, Any]], is_both: bool
) -> None:
    objects = [{"at": (50, 50)}, {"at": (58, 50), "unseen": unseen}]
    seen = outlook(objects, [{"at": (51, 50), "area": grown, "extent": 11}, *others])

    assert seen.merges[0].all() == is_both
    assert seen.claimable[0].any() != is_both
