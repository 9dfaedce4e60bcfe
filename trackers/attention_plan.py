"""Adaptive tracking, the decisions: who rests, who attends, and whose detection is whose. Pure NumPy, one frame.

An object *rests* when its phrase's detections leave no doubt: one of them is confident, lies where the object is
expected, looks like it, and no other object or detection competes for either. It then takes the detection's mask.
Everything else *attends*: memory attention and mask decoder run for it. Every object attends at least each
``refresh_every_frames``, so that a wrong but confident detector is found out; the refreshes of different objects fall
on different frames. Lost objects *sleep*: they cost nothing and wait for a detection that can be theirs.

Claims are one linear assignment of the phrase's detections to all objects, lost ones included, by position and look:
what moves smoothly and keeps its colour keeps its id. (Idea of position and look in one cost: DeepSORT, Wojke et al.
2017; growth of the search radius with the square root of time unseen: variance of a random walk.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from configs.schema import TrackerConfig
from pipeline.types import BoolArray, Float32Array, Int16Array, Int64Array
from trackers.association import assign
from trackers.kalman import Float64Array

_RIVAL_IOU = 0.1
"""A second detection or object with this overlap makes the first doubtful (SAM3's ``assoc_iou_thresh``)."""
_REACH_PER_SIZE = 0.6
"""How far from its predicted place an object may be after one frame, in its own sizes."""
_DRIFT = 1.0
"""The same for each frame that never came, beside the square root of their number: after a few, looks decide."""
_MAX_SIZE_RATIO = 1.8
"""Side lengths: nothing is larger than this beside what it was, nor smaller while it is in sight. What comes out from
behind something may be as small as its edge."""
_PART, _PART_SLACK = 0.7, 0.1
"""What is smaller, beside the whole, is only a part of it. Of what comes out again so much less need look like it: what
hides the rest mixes with the little that is seen."""
_WITHIN, _MERGED, _MERGED_SIZE = 0.4, 0.65, 1.25
"""A detection that covers so much of two objects that no other covers, and has so much of their area, and is larger
than either by so much, is both of them: two that touch are often found as one."""
_HIDING, _GROWN = 2, 1.3
"""A detection that is so much larger than each of the objects at it was while nobody was near is all of them, also
those that nothing was detected of for so many frames: they just went there."""
_TOUCHING, _TOUCHING_FIT = 0.5, 0.3
"""Two that are nearer than so much of both their sizes touch; at no distance that counts as much as such an overlap."""
_LOOK_RAMP = 0.1
"""A likeness of ``same_look`` counts 0, one so much higher counts 1: beyond that, differences are the light's."""
_TWINS, _STRANGERS = 0.03, 0.1
"""1 - cosine of two objects' looks up to which nothing is concluded from the looks, and from which everything is."""
_LOOK_NOISE = 0.05
"""Likenesses that differ by much less than this are the same."""
_LOST_DISCOUNT = 0.85
"""What is in sight comes first where the evidence is equal."""
_UNLIKE_DISCOUNT = 0.3
"""Weight of mere overlap where the look says otherwise."""
_STAYS_DISCOUNT = 0.5
"""Weight of where an object in sight was last, beside where it should be by now."""
_MIN_AFFINITY = 0.15
_JUMPED_IOU = 0.3
"""A tracked mask with this overlap with another object's detection has jumped to it."""


class Reason(IntEnum):
    """Why an object rests, attends or sleeps on a frame."""

    RESTS = 0
    REFRESH = 1
    """Nothing wrong: its turn to be checked."""
    UNSEEN = 2
    """No detection where it is expected, or the detector did not run."""
    WEAK = 3
    """Its detection scores below ``rest_score`` or fits badly."""
    RIVALS = 4
    """Another object or detection of its phrase is in the same place."""
    UNLIKE = 5
    """The detection in its place looks like something else."""
    SLEEPS = 6
    """Out of sight for longer than ``hide_after_frames``: not attended, not shown, can be found again."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of M objects and what N detections say, before any attention."""

    det_score: Float32Array
    """``(N,)``"""
    det_prompt: Int16Array
    """``(N,)``"""
    det_centre: Float64Array
    """``(N, 2)`` centres x, y of the detected masks, mask pixels."""
    det_extent: Float64Array
    """``(N,)`` square root of the box area."""
    det_area: Float64Array
    """``(N,)`` pixels of the detected masks."""
    prompt: Int16Array
    """``(M,)``"""
    centre: Float64Array
    """``(M, 2)`` predicted."""
    last_centre: Float64Array
    """``(M, 2)`` of the last masks."""
    extent: Float64Array
    """``(M,)`` square root of the box area when all of the object is seen."""
    area: Float64Array
    """``(M,)`` pixels of the masks while nobody was near."""
    last_extent: Float64Array
    """``(M,)`` the same as ``extent`` of the last masks: what was seen of it."""
    last_area: Float64Array
    """``(M,)`` pixels of the last masks where they are predicted."""
    iou: Float32Array
    """``(N, M)`` mask IoU of detections and last masks moved to where they are predicted."""
    rival_iou: Float32Array
    """``(M, M)`` mask IoU among the moved masks; the diagonal does not matter."""
    likeness: Float32Array
    """``(N, M)`` cosine of the looks."""
    resemblance: Float32Array
    """``(M, M)`` cosine of the objects' own looks."""
    unseen: Int64Array
    """``(M,)`` frames since a detection was last the object's; 0: on the frame before."""
    skipped: Int64Array
    """``(M,)`` frames since then that never came."""
    since_attention: Int64Array
    """``(M,)`` frames without attention since the object last attended, or a stagger."""
    detector_ran: bool = True
    merges: BoolArray = field(init=False)
    """``(N, M)`` objects that a detection shows together with others of their phrase, as if they were one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "merges", _covers_several(self) | _has_grown(self))

    @property
    def elapsed(self) -> Int64Array:
        """``(M,)`` frames since a detection was last the object's, those that never came included."""
        return self.unseen + self.skipped

    @property
    def spread(self) -> Float64Array:
        """``(M,)`` by how much further an object may be than after one frame.

        Square root of the time out of sight, as of a random walk: what is hidden is mostly near. Frames that never came
        hide nothing: there things go on as they went, and the way grows with the time.
        """
        return np.asarray(np.sqrt(1.0 + self.elapsed) + _DRIFT * self.skipped)

    @property
    def same_prompt(self) -> BoolArray:
        """``(N, M)``"""
        return np.asarray(self.det_prompt[:, None] == self.prompt[None])

    @property
    def claimable(self) -> BoolArray:
        """``(N, M)`` of the object's phrase, and not several objects in one."""
        return np.asarray(self.same_prompt & ~self.merges.any(1, keepdims=True))


def _covers_several(seen: Outlook) -> BoolArray:
    """See :attr:`Outlook.merges`: by what the detection covers, where the objects are expected."""
    area = seen.last_area
    within: BoolArray = _shared(seen.iou, seen.det_area, area) >= _WITHIN * np.maximum(area, 1)
    within &= seen.same_prompt & (seen.unseen == 0)
    within &= within.sum(0) == 1
    if not (within.sum(1) > 1).any():
        return np.zeros_like(within)
    overlap = _shared(seen.rival_iou, area, area)
    np.fill_diagonal(overlap, 0)
    union = within @ area - 0.5 * ((within @ overlap) * within).sum(1)
    largest = np.where(within, area, 0).max(1, initial=0)
    is_merged = (within.sum(1) > 1) & (seen.det_area >= np.maximum(_MERGED * union, _MERGED_SIZE * largest))
    return np.asarray(within & is_merged[:, None])


def _has_grown(seen: Outlook) -> BoolArray:
    """See :attr:`Outlook.merges`: by its size, wherever about it the objects are. Each object is at one detection."""
    if not (seen.det_area >= _GROWN * seen.area.min(initial=np.inf)).any():
        return np.zeros_like(seen.same_prompt)
    distance = np.linalg.norm(seen.det_centre[:, None] - seen.centre[None], axis=2)
    touch = _TOUCHING * (seen.det_extent[:, None] + seen.extent[None])
    fit = np.maximum(seen.iou, _TOUCHING_FIT * np.clip(1 - distance / touch, 0, 1))
    fit = np.where(seen.same_prompt & (seen.unseen <= _HIDING), fit, 0)
    at = (fit > 0) & (fit == fit.max(0))
    largest = np.where(at, seen.area, 0).max(1)
    return np.asarray(at & ((at.sum(1) > 1) & (seen.det_area >= _GROWN * largest))[:, None])


def _shared(iou: Float32Array, a: Float64Array, b: Float64Array) -> Float64Array:
    """``(N, M)`` pixels that masks of these areas share."""
    return np.asarray(iou * (a[:, None] + b[None]) / (1 + iou))


def who_attends(seen: Outlook, config: TrackerConfig) -> tuple[Int64Array, Int64Array]:
    """``(M,)`` :class:`Reason` of every object, and ``(M,)`` the detection a resting one takes, or -1."""
    count = len(seen.prompt)
    iou = np.where(seen.claimable, seen.iou, 0)
    padded = np.concatenate([iou, np.zeros((1, count), iou.dtype)])
    best = padded.argmax(0)
    rows = np.arange(count)
    fit = padded[best, rows]
    score = np.append(seen.det_score, 0)[best]
    like = np.concatenate([seen.likeness, np.ones((1, count), np.float32)])[best, rows]
    sleeps = seen.unseen > config.hide_after_frames
    reason = np.select(
        [
            sleeps,
            (fit < _RIVAL_IOU) | (seen.elapsed > 0),
            _has_rivals(seen, iou, best),
            like < config.same_look,
            (score < config.rest_score) | (fit < config.rest_iou),
            seen.since_attention + 1 >= config.refresh_every_frames,
        ],
        [Reason.SLEEPS, Reason.UNSEEN, Reason.RIVALS, Reason.UNLIKE, Reason.WEAK, Reason.REFRESH],
        Reason.RESTS,
    ).astype(np.int64)
    return reason, np.where(reason == Reason.RESTS, best, -1)


def _has_rivals(seen: Outlook, iou: Float32Array, best: Int64Array) -> BoolArray:
    """``(M,)`` a second detection on the object, a second object on its detection, or an object in its place."""
    detections = (iou >= _RIVAL_IOU).sum(0) > 1
    claimants = np.append((iou >= _RIVAL_IOU).sum(1), 0)[best] > 1
    return np.asarray(_neighbours(seen).any(0) | detections | claimants)


def _neighbours(seen: Outlook) -> BoolArray:
    """``(M, M)`` other objects of the same phrase whose predicted masks overlap; lost ones included."""
    near = (seen.rival_iou >= _RIVAL_IOU) & (seen.prompt[:, None] == seen.prompt[None])
    np.fill_diagonal(near, False)
    return np.asarray(near)


def affinity(seen: Outlook, tracked_iou: Float32Array, config: TrackerConfig) -> Float64Array:
    """``(N, M)`` how well each detection and object go together, 0..1; 0: not at all.

    Args:
        tracked_iou: ``(N, M)`` mask IoU of detections and masks found by attention; 0 for who did not attend.

    Half place, half look. Place is the better of overlap and nearness; nearness falls to 0 at a reach that grows with
    the square root of the frames unseen. What looks unlike needs a clear overlap and yields to everyone else; what
    looks more like another object that it could be counts less (:func:`_distinction`).
    """
    nearness = _nearness(seen, seen.centre)
    stays = np.where(seen.unseen == 0, _STAYS_DISCOUNT * _nearness(seen, seen.last_centre), 0)
    nearness = np.maximum(nearness, stays)
    ratio = seen.det_extent[:, None] / np.maximum(seen.extent, 1e-6)[None]
    fits = (ratio <= _MAX_SIZE_RATIO) & ((ratio >= 1 / _MAX_SIZE_RATIO) | (seen.elapsed > 0)[None])
    overlap = np.maximum(seen.iou, tracked_iou).astype(np.float64)
    place = np.maximum(overlap, np.where(fits, 0.8 * nearness, 0))
    comes_out = (seen.det_extent[:, None] < _PART * seen.extent[None]) & (seen.unseen > 0)
    likeness = seen.likeness + np.where(comes_out, _PART_SLACK, 0)
    like = likeness >= config.same_look
    look = np.clip((likeness - config.same_look) / _LOOK_RAMP, 0, 1)
    look = np.minimum(look, _distinction(seen, (place > 0) & seen.same_prompt))
    together = np.where(place > 0, 0.5 * place + 0.5 * look, 0) * np.where(seen.unseen > 0, _LOST_DISCOUNT, 1)
    in_spite = np.where((overlap >= config.track_match_iou) & (seen.unseen == 0), _UNLIKE_DISCOUNT * overlap, 0)
    return np.asarray(np.where(seen.claimable, np.where(like, together, in_spite), 0))


def _distinction(seen: Outlook, possible: BoolArray) -> Float64Array:
    """``(N, M)`` 1: nothing speaks for another object, down to 0: it looks like another one that it could be.

    The difference of two likenesses is measured against how different the two objects are: twins are told apart by
    their places alone, a red thing from a blue one even while they pass and their masks mix.

    Args:
        possible: ``(N, M)`` where the place allows it.
    """
    distinct = np.ones(possible.shape)
    for det in np.flatnonzero(possible.sum(1) > 1):  # few objects are near: all pairs of a crowd would be gigabytes
        rows = np.flatnonzero(possible[det])
        apart = np.maximum(1 - seen.resemblance[np.ix_(rows, rows)], 0).astype(np.float64)
        likeness = seen.likeness[det, rows]
        margin = (likeness[:, None] - likeness[None]) / (apart + _LOOK_NOISE)
        weight = np.clip((apart - _TWINS) / (_STRANGERS - _TWINS), 0, 1)
        doubt = np.clip(0.5 - 0.5 * margin, 0, 1) * weight
        np.fill_diagonal(doubt, 0)
        distinct[det, rows] = 1 - doubt.max(1)
    return distinct


@dataclass(frozen=True, slots=True)
class Tracked:
    """What attention found for the A objects that attended."""

    rows: Int64Array
    """``(A,)`` ascending."""
    det_iou: Float32Array
    """``(N, A)`` mask IoU of detections and the masks found."""
    centre: Float64Array
    """``(A, 2)`` of the masks found."""
    extent: Float64Array
    """``(A,)`` of the masks found, as ``det_extent``."""
    likeness: Float32Array
    """``(A,)`` cosine of what was found with the object's look."""
    is_there: BoolArray
    """``(A,)`` a finite mask with a pixel."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whose mask is what on this frame; columns over M objects."""

    reason: Int64Array
    """:class:`Reason`"""
    claimed: Int64Array
    """The object's detection, or -1."""
    agrees: BoolArray
    """Attention found the claimed detection too."""
    shows: Int64Array
    """Candidate that is the object's mask, or -1: N detections, then the A masks that attention found."""
    merges: BoolArray
    """``(N, M)`` see :attr:`Outlook.merges`."""
    in_place: BoolArray
    """``(N,)`` detections that lie where an object in sight is expected, whether or not they are its."""

    @property
    def is_plain(self) -> BoolArray:
        """Shown as detected, with nobody near who could be meant instead: such a frame may condition memory."""
        return np.asarray((self.claimed >= 0) & (self.shows == self.claimed) & (self.reason != Reason.RIVALS))


def judge(seen: Outlook, reason: Int64Array, rests: Int64Array, tracked: Tracked, config: TrackerConfig) -> Verdict:
    """Share out the detections and choose every object's mask.

    A claimed detection is the mask, unless it is weak and attention agrees with it; without a claim it is what
    attention found, where that can be the object.
    """
    n, count = len(seen.det_score), len(reason)
    tracked_iou = np.zeros((n + 1, count), np.float32)
    fits = tracked.extent <= _MAX_SIZE_RATIO * seen.extent[tracked.rows]  # else it ran over into a neighbour
    tracked_iou[:n, tracked.rows] = np.where(fits, tracked.det_iou, 0)
    claimed = claims(seen, rests, tracked_iou[:n], config)
    agrees = tracked_iou[claimed, np.arange(count)] >= config.track_match_iou
    found = np.full(count, -1, np.int64)
    found[tracked.rows] = n + np.arange(len(tracked.rows))
    credible = np.zeros(count, bool)
    credible[tracked.rows] = _credible(seen, tracked, fits, claimed, config)
    weak = np.append(seen.det_score, 0)[claimed] < config.recondition_score
    by_claim = np.where(weak & agrees, found, claimed)
    shows = np.where(claimed >= 0, by_claim, np.where(credible, found, -1))
    in_place = ((seen.iou >= config.match_iou) & seen.same_prompt & (seen.unseen == 0)).any(1)
    return Verdict(reason, claimed, agrees & (claimed >= 0), shows, seen.merges, in_place)


def _credible(
    seen: Outlook, tracked: Tracked, fits: BoolArray, claimed: Int64Array, config: TrackerConfig
) -> BoolArray:
    """``(A,)`` masks found by attention that can be the object although no detection is.

    Args:
        fits: ``(A,)`` those that are not much larger than the object.
    """
    if not seen.detector_ran:
        return tracked.is_there
    rows = tracked.rows
    distance = np.linalg.norm(tracked.centre - seen.centre[rows], axis=1)
    near = distance <= seen.extent[rows] * seen.spread[rows]
    recent = seen.unseen[rows] < config.hide_after_frames
    taken = np.unique(claimed[claimed >= 0])
    jumped = ((tracked.det_iou[taken] >= _JUMPED_IOU) & seen.same_prompt[taken][:, rows]).any(0)
    return np.asarray(tracked.is_there & near & fits & recent & ~jumped & (tracked.likeness >= config.same_look))


def _nearness(seen: Outlook, centre: Float64Array) -> Float64Array:
    """``(N, M)`` 1 at ``centre`` ``(M, 2)``, 0 at an object's reach, negative beyond.

    Of what passes behind something one side is seen last, and the other comes out first: a part's middle is off from
    the whole's by up to half of what is hidden.
    """
    distance = np.linalg.norm(seen.det_centre[:, None] - centre[None], axis=2)
    went_in, comes_out = seen.last_extent[None], seen.det_extent[:, None]
    are_parts = (np.maximum(went_in, comes_out) < _PART * seen.extent) & (seen.unseen > 0)
    distance = np.maximum(distance - np.where(are_parts, seen.extent - (went_in + comes_out) / 2, 0), 0)
    reach = _REACH_PER_SIZE * seen.extent * seen.spread
    return np.asarray(1 - distance / np.maximum(reach, 1e-6))


def claims(seen: Outlook, rests: Int64Array, tracked_iou: Float32Array, config: TrackerConfig) -> Int64Array:
    """``(M,)`` the detection of every object, or -1: those that rest have theirs, the others share out the rest.

    Args:
        rests: as :func:`who_attends` returned it.
        tracked_iou: see :func:`affinity`.
    """
    claimed = rests.copy()
    free_dets = np.setdiff1d(np.arange(len(seen.det_score)), rests)
    free_rows = np.flatnonzero(rests < 0)
    cost = 1 - affinity(seen, tracked_iou, config)[np.ix_(free_dets, free_rows)]
    dets, rows = assign(cost, 1 - _MIN_AFFINITY)
    claimed[free_rows[rows]] = free_dets[dets]
    return claimed
