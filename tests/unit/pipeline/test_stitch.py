"""Stitching: a video cut anywhere gives the masklets of the whole video."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from pipeline import stitch
from pipeline.masks import boxes, encode
from pipeline.results import FrameResult

SIZE = (60, 100)


class World:
    """Discs on straight paths; some are hidden for a while. ``whole`` numbers them by first appearance."""

    def __init__(self, paths: list[tuple[float, float, float, float]], hidden: dict[int, range] | None = None) -> None:
        self.paths, self.hidden = paths, hidden or {}

    def masks(self, frame: int) -> tuple[list[int], np.ndarray]:
        ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
        ids, masks = [], []
        for i, (x, y, vx, vy) in enumerate(self.paths):
            mask = (xs - x - vx * frame) ** 2 + (ys - y - vy * frame) ** 2 <= 36
            if mask.any() and frame not in self.hidden.get(i, ()):
                ids.append(i)
                masks.append(mask)
        return ids, np.array(masks, bool).reshape(-1, *SIZE)

    def chunk(self, start: int, stop: int) -> Iterator[FrameResult]:
        """What a perfect tracker says of these frames: local ids by first appearance from 1."""
        local: dict[int, int] = {}
        for frame in range(start, stop):
            ids, masks = self.masks(frame)
            numbers = [local.setdefault(i, len(local) + 1) for i in ids]
            order = np.argsort(numbers)
            yield FrameResult(
                "v",
                frame,
                frame / 10,
                SIZE,
                np.array(numbers, np.int32)[order],
                ("disc",) * len(ids),
                np.ones(len(ids), np.float32),
                boxes(masks)[order],
                encode(masks[order]),
            )


def stitched(
    world: World, ranges: list[tuple[int, int]], max_gap: int = 50
) -> tuple[list[FrameResult], list[stitch.Link]]:
    spans = stitch.core_spans(ranges)
    tracklets = []
    for span in spans:
        collector = stitch.TrackletCollector(span.ordinal)
        for result in world.chunk(span.start, span.stop):
            collector.add(result)
        tracklets += collector.tracklets()
    overlaps = [
        stitch.overlap_iou(
            (r for r in world.chunk(a.start, a.stop) if r.index >= b.start),
            (r for r in world.chunk(b.start, b.stop) if r.index < a.stop),
        )
        for a, b in itertools.pairwise(spans)
    ]
    links = stitch.link(spans, tracklets, overlaps, max_gap)
    frames = [world.chunk(s.start, s.stop) for s in spans]
    return list(stitch.masklet_ids(spans, links, frames, {})), links


def assert_equal(got: list[FrameResult], want: list[FrameResult]) -> None:
    assert [g.index for g in got] == [w.index for w in want]
    for g, w in zip(got, want, strict=True):
        assert g.masklet_id.tolist() == w.masklet_id.tolist(), g.index
        assert g.rles == w.rles
        assert np.array_equal(g.xyxy, w.xyxy)


def random_world(seed: int, n: int = 5) -> World:
    rng = np.random.default_rng(seed)
    lanes = rng.permutation(n)
    paths = [(float(rng.uniform(-10, 100)), 8.0 + 11 * lane, float(rng.uniform(-1.5, 1.5)), 0.0) for lane in lanes]
    return World(paths)


@pytest.mark.parametrize("seed", range(6))
def test_cut_anywhere_equals_whole(seed: int) -> None:
    world = random_world(seed)
    whole = list(world.chunk(0, 60))
    for ranges in (
        [(0, 60)],
        [(0, 35), (25, 60)],
        [(0, 20), (12, 40), (30, 60)],
        [(0, 16), (10, 27), (22, 45), (37, 60)],
    ):
        got, links = stitched(world, ranges)
        assert_equal(got, whole)
        assert all(k.confidence > 0.99 for k in links if k.kind == "overlap")


def test_an_object_hidden_at_the_cut_keeps_its_id() -> None:
    world = World([(10, 20, 1, 0), (50, 45, 0, 0)], hidden={0: range(22, 38)})
    whole = list(world.chunk(0, 60))
    got, links = stitched(world, [(0, 34), (26, 60)])
    assert_equal(got, whole)
    assert sorted(k.kind for k in links) == ["gap", "overlap"]
    assert next(k for k in links if k.kind == "gap").confidence > 0.8
    apart, _ = stitched(world, [(0, 34), (26, 60)], max_gap=10)
    assert max(int(r.masklet_id.max()) for r in apart) == 3


def test_somebody_else_elsewhere_is_a_new_object() -> None:
    world = World([(10, 20, 0, 0), (85, 50, 0, 0)], hidden={0: range(22, 60), 1: range(40)})
    got, links = stitched(world, [(0, 34), (26, 60)])
    assert links == []
    assert {int(i) for r in got for i in r.masklet_id} == {1, 2}


def test_overlap_links_outrank_a_tempting_gap_link() -> None:
    # Disc 0 is hidden at the cut just where disc 1 passes in full view.
    world = World([(30, 30, 1, 0), (36, 30, 1, 0)], hidden={0: range(20, 45)})
    got, _ = stitched(world, [(0, 34), (26, 60)])
    assert_equal(got, list(world.chunk(0, 60)))


def test_phrases_never_mix() -> None:
    a = stitch.Tracklet(
        0,
        1,
        "cat",
        np.array([5]),
        np.array([[0, 0, 9, 9]], np.float32),
        np.array([5]),
        np.array([[0, 0, 9, 9]], np.float32),
    )
    b = stitch.Tracklet(
        1,
        1,
        "dog",
        np.array([8]),
        np.array([[0, 0, 9, 9]], np.float32),
        np.array([8]),
        np.array([[0, 0, 9, 9]], np.float32),
    )
    assert stitch.gap_score(a, b, 50) == 0.0


def test_appearance_speaks_against_a_look_at_the_same_place() -> None:
    box = np.array([[0, 0, 9, 9]], np.float32)
    one, other = np.eye(2, dtype=np.float32)
    # What it looked like at the far ends does not matter: things change.
    a = stitch.Tracklet(0, 1, "cat", np.array([5]), box, np.array([5]), box, other, one)
    same = stitch.Tracklet(1, 1, "cat", np.array([8]), box, np.array([8]), box, one, other)
    different = stitch.Tracklet(1, 2, "cat", np.array([8]), box, np.array([8]), box, other, one)
    assert stitch.gap_score(a, same, 50) == pytest.approx(1.0)
    assert stitch.gap_score(a, different, 50) == 0.0


def passing(
    at: float, frames: range, screen: tuple[float, float], *, speed: float = 2.0, chunk: int = 0
) -> stitch.Tracklet:
    """The ends of a 20 px thing that moves sideways behind a screen, as far as it is seen."""
    rows = []
    for frame in frames:
        x1 = at + speed * frame
        seen = [x1, min(x1 + 20, screen[0])] if x1 < screen[0] else [max(x1, screen[1]), x1 + 20]
        if seen[1] - seen[0] >= 2:
            rows.append((frame, [seen[0], 0.0, seen[1], 20.0]))
    index, boxes = np.array([f for f, _ in rows]), np.array([b for _, b in rows], np.float32)
    return stitch.Tracklet(chunk, 1, "cat", index[:30], boxes[:30], index[-30:], boxes[-30:])


def test_what_goes_behind_a_screen_is_known_again_although_it_left_as_a_sliver() -> None:
    a, b = (passing(0, frames, (100, 170), chunk=k) for k, frames in enumerate((range(60), range(70, 130))))
    assert a.tail_xyxy[-1, 2] - a.tail_xyxy[-1, 0] < 4
    assert b.head_xyxy[0, 2] - b.head_xyxy[0, 0] < 4
    assert stitch.gap_score(a, b, 60) > 0.9
    elsewhere = passing(90, range(70, 130), (100, 170), chunk=1)
    assert stitch.gap_score(a, elsewhere, 60) < 0.6


def test_what_turned_around_behind_a_screen_may_be_where_no_speed_would_put_it() -> None:
    """Gone to the right at 2 px a frame, back to the left after 50 frames, or standing there all the time."""
    box = np.array([[0, 0, 20, 20]], np.float32)
    going, away, still = np.array([2, 0, 2, 0]), np.array([-2, 0, -2, 0]), np.zeros(4)

    def tracklet(chunk: int, x: float, first: int, step: np.ndarray) -> stitch.Tracklet:
        frames = np.arange(first, first + 10)
        boxes = (box + [x, 0, x, 0] + step * np.arange(10)[:, None]).astype(np.float32)
        return stitch.Tracklet(chunk, 1, "cat", frames, boxes, frames, boxes)

    assert stitch.gap_score(tracklet(0, 0, 0, going), tracklet(1, 50, 59, away), 60) > stitch.MIN_GAP_SCORE
    assert stitch.gap_score(tracklet(0, 18, 0, still), tracklet(1, 50, 59, still), 60) < stitch.MIN_GAP_SCORE


def look(angle_deg: float) -> np.ndarray:
    return np.array([np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))], np.float32)


def lone(chunk: int, track_id: int, frame: int, x: float, angle_deg: float | None) -> stitch.Tracklet:
    """A tracklet of one row at ``x`` that looks like the angle."""
    box = np.array([[x, 0, x + 20, 20]], np.float32)
    looks = (None, None) if angle_deg is None else (look(angle_deg), look(angle_deg))
    return stitch.Tracklet(chunk, track_id, "cat", np.array([frame]), box, np.array([frame]), box, *looks)


@pytest.mark.parametrize(("angles", "winner"), [((0, 38, 5), 2), ((None, None, None), 1)])
def test_a_wrong_looking_candidate_at_a_better_place_loses(angles: tuple[float | None, ...], winner: int) -> None:
    spans = stitch.core_spans([(0, 34), (26, 60)])
    hidden = lone(0, 1, 20, 0.0, angles[0])
    near, far = lone(1, 1, 40, 2.0, angles[1]), lone(1, 2, 40, 14.0, angles[2])
    assert stitch.link(spans, [hidden, near, far], [{}], 50)[0].next_track_id == winner


def test_a_link_with_a_close_rival_is_weak() -> None:
    spans = stitch.core_spans([(0, 34), (26, 60)])
    hidden, near, alike = lone(0, 1, 20, 10.0, None), lone(1, 1, 40, 10.0, None), lone(1, 2, 40, 13.0, None)
    (alone,) = stitch.link(spans, [hidden, near], [{}], 50)
    assert (alone.confidence, alone.rival, alone.is_weak) == (1.0, 0.0, False)
    (disputed,) = stitch.link(spans, [hidden, near, alike], [{}], 50)
    assert disputed.next_track_id == 1
    assert disputed.rival > 0.9
    assert disputed.is_weak


@pytest.mark.parametrize("ranges", [[(0, 10)], [(0, 10), (6, 20)], [(3, 11), (8, 19), (17, 40)]])
def test_cores_tile_the_video(ranges: list[tuple[int, int]]) -> None:
    spans = stitch.core_spans(ranges)
    covered = [f for s in spans for f in range(s.core_start, s.core_stop)]
    assert covered == list(range(ranges[0][0], ranges[-1][1]))
    assert all(s.start <= s.core_start < s.core_stop <= s.stop for s in spans)


def test_groups_apart_give_the_best_of_all_together() -> None:
    """Against one assignment over the whole matrix, and a rival looked for among all candidates."""
    rng = np.random.default_rng(5)
    spans = stitch.core_spans([(0, 34), (26, 60)])
    for _ in range(20):
        pairs = {(int(i), int(j)): float(rng.uniform(0.21, 1)) for i, j in rng.integers(0, 9, (14, 2))}
        links = stitch.link(spans, [], [pairs], 50)
        gain = np.zeros((9, 9))
        for cell, iou in pairs.items():
            gain[cell] = round(iou, 4) + 1.0
        rows, columns = linear_sum_assignment(gain, maximize=True)
        assert sum(k.confidence + 1.0 for k in links) == pytest.approx(gain[rows, columns].sum())
        assert len({k.track_id for k in links}) == len({k.next_track_id for k in links}) == len(links)
        for k in links:
            rivals = [v for (i, j), v in pairs.items() if (i == k.track_id) != (j == k.next_track_id)]
            assert k.rival == pytest.approx(max(rivals, default=0.0), abs=1e-4)


def test_no_assignment_is_larger_than_what_competes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []

    def noting(gain: np.ndarray, maximize: bool) -> object:
        sizes.append(gain.shape)
        return linear_sum_assignment(gain, maximize=maximize)

    monkeypatch.setattr(stitch, "linear_sum_assignment", noting)
    spans = stitch.core_spans([(20 * i, 20 * i + 24) for i in range(50)])
    links = stitch.link(spans, [], [{(i, i): 0.9 for i in range(10)}] * 49, 50)
    assert len(links) == 490
    assert set(sizes) == {(1, 1)}
