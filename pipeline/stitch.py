"""From the tracklets of a video's chunks to masklets: one global assignment over all boundaries.

Neighbouring chunks share an overlap. A tracklet that reaches into it is the same object as the one of the next chunk
whose masks it covers there (*overlap link*). An object hidden at the cut has no masks there: its last and next
appearances are joined by where it was going and how it looked (*gap link*). All links of a video compete in one
assignment, so that no tracklet has two successors or two predecessors and a strong link anywhere displaces weak ones.

Everything here is a pure function of the chunks' rows: ids depend neither on workers nor on the order of completion.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline import masks as mask_ops
from pipeline.results import FrameResult
from pipeline.types import Float32Array

MIN_OVERLAP_IOU = 0.2
"""Masks over the whole overlap must agree at least so much: two views of one object do far better, neighbours worse."""
MIN_GAP_SCORE = 0.35
"""A hidden object is taken up again only above this; below, a new id is the smaller error."""
SAME_LOOK = 0.88
"""Cosine above which looks are no argument against a link (:mod:`trackers.appearance`: 98 % of the same things)."""
OTHER_LOOK = 0.6
"""Cosine at which looks rule a link out. Below where 98 % of other things are (0.79): a look taken while half hidden is
of few pixels, and between two candidates the linear part decides."""
WEAK_CONFIDENCE = 0.6
"""Links below are listed for review."""
RIVAL_SHARE = 0.8
"""... and those that another candidate for one of their ends comes so close to."""
_OVERLAP_BONUS = 1.0
"""Added to overlap links' gain: pixels outrank guesses about motion."""
_TAIL_FRAMES = 30
"""Rows at each end of a tracklet that are kept to judge its motion: what goes behind something is whole in some."""
_TURNS_SHARE = 0.15
"""Of the way that an object can have gone while hidden: what turned around is not where its speed would put it."""
_WHOLE_SHARE = 0.85
"""Share of its largest size (square root of the box area) at which all of an object is seen."""


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """A chunk's place in its video, in source frames."""

    ordinal: int
    start: int
    """First frame that was tracked, overlap included."""
    stop: int
    """One past the last frame that was tracked, overlap included."""
    core_start: int
    """First frame whose rows this chunk answers for."""
    core_stop: int


@dataclass(frozen=True)
class Tracklet:
    """The ends of one track inside one chunk."""

    chunk: int
    track_id: int
    prompt: str
    head_frames: NDArray[np.int64]
    """``(K,)`` its first frames, ascending."""
    head_xyxy: Float32Array
    """``(K, 4)``"""
    tail_frames: NDArray[np.int64]
    """``(K,)`` its last frames, ascending."""
    tail_xyxy: Float32Array
    head_look: Float32Array | None = None
    """``(D,)`` unit vector of how it looked when it came, if the tracker knows."""
    tail_look: Float32Array | None = None
    """``(D,)`` how it looked when it was last seen."""

    @cached_property
    def whole_head(self) -> _Whole:
        """How it came."""
        return _Whole.of(self.head_frames, self.head_xyxy)

    @cached_property
    def whole_tail(self) -> _Whole:
        """How it left."""
        return _Whole.of(self.tail_frames, self.tail_xyxy)

    @property
    def first(self) -> int:
        """First frame it is visible on."""
        return int(self.head_frames[0])

    @property
    def last(self) -> int:
        """Last frame it is visible on."""
        return int(self.tail_frames[-1])


@dataclass(frozen=True, slots=True)
class _Whole:
    """An end of a tracklet, of those of its rows on which all of it is seen."""

    first: int
    last: int
    begin: NDArray[np.float64]
    """``(2,)`` centre x, y on the first of them."""
    end: NDArray[np.float64]
    size: float
    """Square root of the largest box area."""
    velocity: NDArray[np.float64]
    """``(2,)`` pixels per frame of the centre."""

    @classmethod
    def of(cls, frames: NDArray[np.int64], xyxy: Float32Array) -> _Whole:
        """Of boxes ``(K, 4)`` on ``(K,)`` frames."""
        boxes = xyxy.astype(np.float64)
        sizes = np.sqrt(np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1))
        rows = np.flatnonzero(sizes >= _WHOLE_SHARE * sizes.max())
        first, last = int(frames[rows[0]]), int(frames[rows[-1]])
        begin, end = ((boxes[row, :2] + boxes[row, 2:]) / 2 for row in (rows[0], rows[-1]))
        return cls(first, last, begin, end, float(sizes.max()), (end - begin) / max(last - first, 1))


@dataclass(frozen=True, slots=True)
class Link:
    """Two tracklets taken to be one object."""

    chunk: int
    track_id: int
    next_chunk: int
    next_track_id: int
    kind: str
    """``overlap`` or ``gap``."""
    confidence: float
    """0..1: mask IoU over the overlap, or the gap score."""
    frame: int
    """The first frame of the next chunk's rows that the link vouches for."""
    rival: float = 0.0
    """Confidence of the best other candidate of this kind for either end."""

    @property
    def tail(self) -> tuple[int, int]:
        """Chunk and track that end here."""
        return self.chunk, self.track_id

    @property
    def head(self) -> tuple[int, int]:
        """Chunk and track that go on."""
        return self.next_chunk, self.next_track_id

    @property
    def is_weak(self) -> bool:
        """Whether somebody should look at it."""
        return self.confidence < WEAK_CONFIDENCE or self.rival > RIVAL_SHARE * self.confidence


def core_spans(ranges: Sequence[tuple[int, int]]) -> list[ChunkSpan]:
    """Chunks ``[(start, stop)]`` that overlap their neighbours, each with the frames it answers for.

    The handover is in the middle of an overlap: there the earlier chunk still has its history and the later one has
    left its probation behind. Every frame belongs to exactly one chunk.
    """
    handovers = [(b_start + a_stop + 1) // 2 for (_, a_stop), (b_start, _) in pairwise(ranges)]
    starts, stops = [ranges[0][0], *handovers], [*handovers, ranges[-1][1]]
    return [
        ChunkSpan(i, start, stop, core_start, core_stop)
        for i, ((start, stop), core_start, core_stop) in enumerate(zip(ranges, starts, stops, strict=True))
    ]


class TrackletCollector:
    """Keeps the ends of every tracklet of a chunk while its frames stream by."""

    def __init__(self, chunk: int, looks: Mapping[int, tuple[Float32Array, Float32Array]] | None = None) -> None:
        self._chunk, self._looks = chunk, looks or {}
        self._ends: dict[int, tuple[str, list[tuple[int, Float32Array]], list[tuple[int, Float32Array]]]] = {}

    def add(self, result: FrameResult) -> None:
        """Take in one frame."""
        for row, track_id in enumerate(result.masklet_id.tolist()):
            _, head, tail = self._ends.setdefault(track_id, (result.prompt[row], [], []))
            if len(head) < _TAIL_FRAMES:
                head.append((result.index, result.xyxy[row]))
            tail.append((result.index, result.xyxy[row]))
            del tail[:-_TAIL_FRAMES]

    def tracklets(self) -> list[Tracklet]:
        """All tracklets seen, by id."""
        return [
            Tracklet(self._chunk, i, prompt, *_columns(head), *_columns(tail), *self._looks.get(i, (None, None)))
            for i, (prompt, head, tail) in sorted(self._ends.items())
        ]


def _columns(rows: list[tuple[int, Float32Array]]) -> tuple[NDArray[np.int64], Float32Array]:
    return np.array([f for f, _ in rows], np.int64), np.stack([b for _, b in rows]).astype(np.float32)


def overlap_iou(earlier: Iterator[FrameResult], later: Iterator[FrameResult]) -> dict[tuple[int, int], float]:
    """Mask IoU over an overlap, summed over its frames, of every pair of tracklets of one phrase that ever touch.

    A frame on which only one of the two is visible counts against the pair.

    Args:
        earlier: the earlier chunk's frames of the overlap.
        later: the later chunk's frames of the same range.
    """
    inter: dict[tuple[int, int], float] = {}
    areas: tuple[dict[int, float], dict[int, float]] = ({}, {})
    by_frame = {r.index: r for r in later}
    for result in by_frame.values():
        _add_areas(areas[1], result)
    for result in earlier:
        _add_areas(areas[0], result)
        if result.index in by_frame:
            _add_intersections(inter, result, by_frame[result.index])
    return {(i, j): v / (areas[0][i] + areas[1][j] - v) for (i, j), v in inter.items()}


def _add_areas(areas: dict[int, float], result: FrameResult) -> None:
    for track_id, area in zip(result.masklet_id.tolist(), result.area_px().tolist(), strict=True):
        areas[track_id] = areas.get(track_id, 0.0) + area


def _add_intersections(inter: dict[tuple[int, int], float], a: FrameResult, b: FrameResult) -> None:
    iou = mask_ops.rle_iou(a.rles, b.rles)
    total = a.area_px()[:, None].astype(float) + b.area_px()[None]
    pixels = iou * total / (1 + iou)
    for i, j in zip(*np.nonzero(iou), strict=True):
        if a.prompt[i] == b.prompt[j]:
            pair = int(a.masklet_id[i]), int(b.masklet_id[j])
            inter[pair] = inter.get(pair, 0.0) + float(pixels[i, j])


def gap_score(earlier: Tracklet, later: Tracklet, max_gap_frames: int) -> float:
    """How well ``later`` continues ``earlier`` after a time out of sight: 0 (not at all) to 1.

    The product of three: how near it reappears to where constant velocity or standing still would put it (in units of
    its own size; tolerance grows with the square root of the time unseen, and with the way it can have gone after a
    turn), how alike the sizes are, and how alike
    the appearances are where both are known. Places and sizes are those of the last and the first frame on which all of
    it was seen: what goes behind something ends as a sliver that neither lies nor moves as the whole does.
    """
    gap = later.first - earlier.last
    if gap <= 0 or gap > max_gap_frames or earlier.prompt != later.prompt:
        return 0.0
    before, after = earlier.whole_tail, later.whole_head
    size, time = max(before.size, 1.0), after.first - before.last
    moved, came_from = before.end + before.velocity * time, after.begin - after.velocity * time
    distance = min(np.linalg.norm(d) for d in (after.begin - moved, after.begin - before.end, came_from - before.end))
    speed = max(np.linalg.norm(before.velocity), np.linalg.norm(after.velocity)) / size
    tolerance = 0.75 + 0.1 * np.sqrt(gap) + _TURNS_SHARE * speed * gap
    near = float(np.exp(-((distance / size / tolerance) ** 2)))
    ratio = after.size / size
    alike = min(ratio, 1 / ratio) if ratio > 0 else 0.0
    return float(near * np.sqrt(alike) * _appearance(earlier, later))


def _appearance(a: Tracklet, b: Tracklet) -> float:
    """1 for what looks the same or is not known, 0 for what looks like something else, linear between."""
    if a.tail_look is None or b.head_look is None:
        return 1.0
    cosine = float(a.tail_look @ b.head_look)
    return float(np.clip((cosine - OTHER_LOOK) / (SAME_LOOK - OTHER_LOOK), 0.0, 1.0))


def link(
    spans: Sequence[ChunkSpan],
    tracklets: Sequence[Tracklet],
    overlaps: Sequence[Mapping[tuple[int, int], float]],
    max_gap_frames: int,
) -> list[Link]:
    """One assignment over all boundaries.

    Candidates that share no end with each other, even over others, cannot compete: the assignment is solved for each
    connected group of them, which has the same best sum and takes time with the largest group only.

    Args:
        spans: the chunks.
        tracklets: of all chunks.
        overlaps: for each boundary, :func:`overlap_iou` of the chunks on its sides.
        max_gap_frames: how long an object may stay hidden across a cut.
    """
    candidates = [*_overlap_links(spans, overlaps), *_gap_links(spans, tracklets, max_gap_frames)]
    if not candidates:
        return []
    chosen = sorted(
        (k for group in _competing(candidates) for k in _assign(group)), key=lambda k: (k.chunk, k.track_id)
    )
    by_tail, by_head = _grouped(candidates, lambda c: c.tail), _grouped(candidates, lambda c: c.head)
    return [replace(k, rival=_rival(k, [*by_tail[k.tail], *by_head[k.head]])) for k in chosen]


def _grouped(links: Iterable[Link], end: Callable[[Link], tuple[int, int]]) -> dict[tuple[int, int], list[Link]]:
    groups: dict[tuple[int, int], list[Link]] = {}
    for candidate in links:
        groups.setdefault(end(candidate), []).append(candidate)
    return groups


def _competing(candidates: Sequence[Link]) -> list[list[Link]]:
    """The candidates in groups that share no end with each other."""
    tails = {end: i for i, end in enumerate(sorted({c.tail for c in candidates}))}
    heads = {end: i for i, end in enumerate(sorted({c.head for c in candidates}), len(tails))}
    edges = [tails[c.tail] for c in candidates], [heads[c.head] for c in candidates]
    size = len(tails) + len(heads)
    _, label = connected_components(coo_matrix((np.ones(len(candidates)), edges), (size, size)), directed=False)
    groups: dict[int, list[Link]] = {}
    for candidate in candidates:
        groups.setdefault(int(label[tails[candidate.tail]]), []).append(candidate)
    return list(groups.values())


def _assign(candidates: Sequence[Link]) -> list[Link]:
    """Those that together vouch for most; every end is in one link at most."""
    tails = {end: i for i, end in enumerate(sorted({c.tail for c in candidates}))}
    heads = {end: i for i, end in enumerate(sorted({c.head for c in candidates}))}
    gain = np.zeros((len(tails), len(heads)))
    best: dict[tuple[int, int], Link] = {}
    for candidate in candidates:
        cell = tails[candidate.tail], heads[candidate.head]
        value = candidate.confidence + (_OVERLAP_BONUS if candidate.kind == "overlap" else 0.0)
        if value > gain[cell]:
            gain[cell], best[cell] = value, candidate
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [best[r, c] for r, c in zip(rows.tolist(), columns.tolist(), strict=True) if (r, c) in best]


def _rival(link: Link, others: Sequence[Link]) -> float:
    """Of candidates that share an end with the link, the best that would take it from it."""
    rivals = (c for c in others if c.kind == link.kind and (c.tail == link.tail) != (c.head == link.head))
    return max((c.confidence for c in rivals), default=0.0)


def _overlap_links(spans: Sequence[ChunkSpan], overlaps: Sequence[Mapping[tuple[int, int], float]]) -> Iterator[Link]:
    for boundary, pairs in enumerate(overlaps):
        a, b = spans[boundary], spans[boundary + 1]
        for (i, j), iou in sorted(pairs.items()):
            if iou >= MIN_OVERLAP_IOU:
                yield Link(a.ordinal, i, b.ordinal, j, "overlap", round(iou, 4), b.core_start)


def _gap_links(spans: Sequence[ChunkSpan], tracklets: Sequence[Tracklet], max_gap_frames: int) -> Iterator[Link]:
    """Candidates for objects out of sight at a cut: gone before it, or not yet back after it."""
    by_first = sorted(tracklets, key=lambda t: (t.first, t.chunk, t.track_id))
    firsts = [t.first for t in by_first]
    for a in tracklets:
        for b in by_first[bisect_right(firsts, a.last) : bisect_right(firsts, a.last + max_gap_frames)]:
            if b.chunk <= a.chunk:
                continue
            score = gap_score(a, b, max_gap_frames)
            if score >= MIN_GAP_SCORE and not _seen_together(a, b, spans):
                yield Link(a.chunk, a.track_id, b.chunk, b.track_id, "gap", round(score, 4), b.first)


def _seen_together(a: Tracklet, b: Tracklet, spans: Sequence[ChunkSpan]) -> bool:
    """Whether the later one begins where the earlier chunk also looked: then it was another object there."""
    return b.first < spans[a.chunk].core_stop


def masklet_ids(
    spans: Sequence[ChunkSpan],
    links: Sequence[Link],
    frames: Sequence[Iterator[FrameResult]],
    numbers: dict[tuple[int, int], int],
) -> Iterator[FrameResult]:
    """The video's frames, each from the chunk that answers for it, under masklet ids by first appearance.

    Args:
        spans: the chunks.
        links: what :func:`link` chose.
        frames: each chunk's frames in time order.
        numbers: filled with the masklet id of every ``(chunk, track_id)`` that came out.
    """
    before = {(k.next_chunk, k.next_track_id): (k.chunk, k.track_id) for k in links}
    fresh = count(1)
    for span, results in zip(spans, frames, strict=True):
        for result in results:
            if span.core_start <= result.index < span.core_stop:
                yield _renumbered(result, span.ordinal, before, numbers, fresh)


def _number(
    tracklet: tuple[int, int],
    before: Mapping[tuple[int, int], tuple[int, int]],
    numbers: dict[tuple[int, int], int],
    fresh: Iterator[int],
) -> int:
    """The masklet of a tracklet: its predecessor's, or the next free one."""
    if tracklet not in numbers:
        chain = [tracklet]
        while chain[-1] in before and chain[-1] not in numbers:
            chain.append(before[chain[-1]])
        known = numbers[chain[-1]] if chain[-1] in numbers else next(fresh)
        numbers.update(dict.fromkeys(chain, known))
    return numbers[tracklet]


def _renumbered(
    result: FrameResult,
    chunk: int,
    before: Mapping[tuple[int, int], tuple[int, int]],
    numbers: dict[tuple[int, int], int],
    fresh: Iterator[int],
) -> FrameResult:
    ids = np.array([_number((chunk, i), before, numbers, fresh) for i in result.masklet_id.tolist()], np.int32)
    order = np.argsort(ids, kind="stable")
    return FrameResult(
        result.video_id,
        result.index,
        result.pts_s,
        result.source_size,
        ids[order],
        tuple(result.prompt[i] for i in order),
        result.score[order],
        result.xyxy[order],
        tuple(result.rles[i] for i in order),
    )
