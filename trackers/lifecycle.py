"""When an object is born, hidden, refreshed or taken back. Pure NumPy: decides, touches no mask and no model.

The rules are SAM3's (facebookresearch/sam3 ``sam3_video_base.py``: ``_process_hotstart``,
``_suppress_overlapping_based_on_recent_occlusion``, the recondition part of the planning phase). Time is counted
in processed frames. State is a few counters per live object; nothing is logged and the dead are forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from configs.schema import TrackerConfig
from pipeline.types import BoolArray, Float32Array, Int16Array, Int64Array
from trackers.association import Association, associate

_NEVER = -1
"""Not hidden so far."""
_ALWAYS = 2**62
"""Hidden for good: an object withdrawn on the first frame it is propagated yields to every other."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one frame shows about M live objects, in row order, and N detections."""

    det_score: Float32Array
    """``(N,)``"""
    det_prompt: Int16Array
    """``(N,)``"""
    det_iou: Float32Array
    """``(N, M)`` mask IoU of detections and propagated masks."""
    track_iou: Float32Array
    """``(M, M)`` mask IoU among propagated masks."""
    object_logit: Float32Array
    """``(M,)`` the tracker's belief that the object is in the picture (a logit)."""
    is_empty: BoolArray
    """``(M,)`` the propagated mask has no pixel."""
    is_finite: BoolArray
    """``(M,)`` false where the model returned NaN or infinity."""
    detector_ran: bool = True
    """False: nothing can be concluded from missing detections."""


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """What the tracker has to do with M objects and N detections. Masks over rows, in row order."""

    new: Int64Array
    """``(K,)`` detections that become objects, in the order of their ids."""
    new_ids: Int64Array
    """``(K,)`` their ids, ascending."""
    withdrawn: BoolArray
    """``(M,)`` hotstart takes them back: they never were objects."""
    broken: BoolArray
    """``(M,)`` the model returned NaN or infinity: dropped."""
    hidden: BoolArray
    """``(M,)`` still followed, but not shown: unmatched for too long."""
    yields: BoolArray
    """``(M,)`` mask cleared: it lies on an object that was hidden less lately."""
    recondition: Int64Array
    """``(M,)`` detection with which the object is reconditioned, or -1."""
    num_refused: int
    """New objects beyond ``max_objects``."""

    @property
    def keeps(self) -> BoolArray:
        """``(M,)`` objects that live on."""
        return ~(self.withdrawn | self.broken)


@dataclass(slots=True)
class Life:
    """The bookkeeping of one live object."""

    track_id: int
    prompt_id: int
    first_step: int
    keep_alive: int
    num_unmatched: int = 0
    last_hidden_step: int | None = None
    """``None`` until the first propagated frame, then the last step without a mask of its own (or ``_NEVER``)."""
    num_shadowed: dict[int, int] = field(default_factory=dict)
    """Older object -> frames on which both touched one detection. Only kept while hotstart lasts."""


class Lifecycle:
    """Bookkeeping of the live objects of one stream, and the plan for each frame."""

    def __init__(self, config: TrackerConfig) -> None:
        self._config = config
        self._lives: list[Life] = []
        self._next_id = 1

    def __len__(self) -> int:
        return len(self._lives)

    @property
    def track_ids(self) -> Int64Array:
        """``(M,)`` ids of the live objects, ascending: the row order of everything here."""
        return np.array([life.track_id for life in self._lives], np.int64)

    @property
    def prompt_ids(self) -> Int16Array:
        """``(M,)`` phrases of the live objects."""
        return np.array([life.prompt_id for life in self._lives], np.int16)

    def plan(self, step: int, seen: Evidence, matches: Association | None = None) -> UpdatePlan:
        """Decide frame ``step`` (0, 1, 2 ...) and update the bookkeeping: rows that die leave, new ones join.

        ``matches`` are SAM3's, by mask overlap alone, unless the caller knows better.
        New objects only join while the detector ran; without it, objects neither gain nor lose standing.
        """
        matches = matches or associate(
            seen.det_iou, seen.det_score, seen.det_prompt, self.prompt_ids, seen.is_empty, self._config
        )
        new, num_refused = self._admit(matches, seen.det_score)
        withdrawn = self._hotstart(step, matches, seen) if seen.detector_ran else np.zeros(len(self), bool)
        hidden = self._overdue(withdrawn)
        recondition = self._recondition(step, matches, seen)
        yields = self._occlusion(step, withdrawn, seen)
        broken = ~seen.is_finite
        new_ids = self._bury_and_bear(step, withdrawn | broken, new, seen.det_prompt)
        return UpdatePlan(new, new_ids, withdrawn & ~broken, broken, hidden, yields, recondition, num_refused)

    def _admit(self, matches: Association, det_score: Float32Array) -> tuple[Int64Array, int]:
        """New detections that fit under ``max_objects`` and how many do not; if any is refused, best score first."""
        new = np.flatnonzero(matches.is_new).astype(np.int64)
        room = max(0, self._config.max_objects - len(self))
        if len(new) <= room:
            return new, 0
        best = np.argsort(-det_score[new], kind="stable")[:room]
        return new[best], len(new) - room

    def _hotstart(self, step: int, matches: Association, seen: Evidence) -> BoolArray:
        """Rows that hotstart withdraws on this frame: unmatched, or shadowing an older object, for too long."""
        config = self._config
        for life, touched, unmatched, empty in zip(
            self._lives, matches.is_touched, matches.is_unmatched, seen.is_empty, strict=True
        ):
            _age(life, config, bool(touched), bool(unmatched), bool(empty))
        self._log_shadows(matches.shares)
        withdrawn = np.zeros(len(self), bool)
        for row, life in enumerate(self._lives):
            if life.first_step <= step - config.hotstart_delay_frames:
                life.num_shadowed.clear()
                continue
            withdrawn[row] = life.num_unmatched >= config.hotstart_unmatched_frames or any(
                n >= config.hotstart_duplicate_frames for n in life.num_shadowed.values()
            )
        return withdrawn

    def _log_shadows(self, shares: BoolArray) -> None:
        """Count, for each detection that touches several objects, the later-born as shadows of the first-born."""
        for touched in shares[shares.sum(1) > 1]:
            rows = np.flatnonzero(touched)
            first = min(rows, key=lambda row: self._lives[row].first_step)
            for row in rows[rows != first]:
                shadowed = self._lives[row].num_shadowed
                older = self._lives[first].track_id
                shadowed[older] = shadowed.get(older, 0) + 1

    def _overdue(self, withdrawn: BoolArray) -> BoolArray:
        """Rows that stay but are not shown, because their keep-alive ran out."""
        if self._config.suppress_unmatched_only_within_hotstart:
            return np.zeros(len(self), bool)
        overdue = [life.keep_alive <= 0 and life.num_unmatched > 0 for life in self._lives]
        return np.array(overdue, bool) & ~withdrawn

    def _recondition(self, step: int, matches: Association, seen: Evidence) -> Int64Array:
        """``(M,)`` detection that reconditions the row on this frame, or -1.

        The tracker's logit, not its probability, is compared with ``recondition_score``, as both references do.
        """
        every = self._config.recondition_every_frames
        if every == 0 or step % every:
            return np.full(len(self), -1, np.int64)
        trusted = (seen.object_logit > self._config.recondition_score) & seen.is_finite
        return np.where(trusted, matches.confirmed_by, -1)

    def _occlusion(self, step: int, withdrawn: BoolArray, seen: Evidence) -> BoolArray:
        """Rows that yield to an overlapping one of their phrase that was hidden less lately; notes who is hidden."""
        if len(self) == 0 or self._config.occlusion_suppress_iou <= 0:
            return np.zeros(len(self), bool)
        last = np.array([_last_hidden(life, bool(out)) for life, out in zip(self._lives, withdrawn, strict=True)])
        prompt = self.prompt_ids
        overlap = (seen.track_iou >= self._config.occlusion_suppress_iou) & (prompt[:, None] == prompt[None])
        np.fill_diagonal(overlap, False)
        yields: BoolArray = (overlap & (last[:, None] > last[None]) & (last[None] > _NEVER)).any(1)
        last[seen.is_empty | yields] = step
        for life, when in zip(self._lives, last.tolist(), strict=True):
            life.last_hidden_step = when
        return yields

    def _bury_and_bear(self, step: int, dead: BoolArray, new: Int64Array, det_prompt: Int16Array) -> Int64Array:
        """Forget dead rows, append new lives; returns the new ids."""
        gone = {life.track_id for life, out in zip(self._lives, dead, strict=True) if out}
        self._bury(gone)
        ids = np.arange(self._next_id, self._next_id + len(new), dtype=np.int64)
        self._next_id += len(new)
        init = self._config.keep_alive_init_frames
        self._lives += [Life(int(i), int(p), step, init) for i, p in zip(ids, det_prompt[new], strict=True)]
        return ids

    def forget(self, track_ids: Int64Array) -> BoolArray:
        """Drop these objects; ``(M,)`` rows that stay."""
        stays: BoolArray = ~np.isin(self.track_ids, track_ids)
        self._bury({int(i) for i in track_ids})
        return stays

    def _bury(self, gone: set[int]) -> None:
        self._lives = [life for life in self._lives if life.track_id not in gone]
        for life in self._lives:
            for track_id in gone & life.num_shadowed.keys():
                del life.num_shadowed[track_id]

    def state(self) -> dict[str, Any]:
        """The bookkeeping as JSON values."""
        return {"next_id": self._next_id, "lives": [asdict(life) for life in self._lives]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned (JSON turned the keys of ``num_shadowed`` into strings)."""
        self._next_id = int(state["next_id"])
        self._lives = [Life(**life) for life in _with_int_keys(state["lives"])]


def _age(life: Life, config: TrackerConfig, touched: bool, unmatched: bool, empty: bool) -> None:
    """Raise or lower the standing of one object; it may be touched and unmatched on the same frame."""
    if touched:
        life.keep_alive = min(config.keep_alive_max_frames, life.keep_alive + 1)
    if unmatched:
        life.num_unmatched += 1
        life.keep_alive = max(config.keep_alive_min_frames, life.keep_alive - 1)
    if empty and config.keep_alive_decrease_for_empty:
        life.keep_alive = max(config.keep_alive_min_frames, life.keep_alive - 1)


def _last_hidden(life: Life, withdrawn: bool) -> int:
    if life.last_hidden_step is None:
        return _ALWAYS if withdrawn else _NEVER
    return life.last_hidden_step


def _with_int_keys(lives: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [life | {"num_shadowed": {int(k): v for k, v in life["num_shadowed"].items()}} for life in lives]
