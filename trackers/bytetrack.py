"""ByteTrack: boxes linked by motion and overlap in two stages; masks are the detections' own.

The CPU baseline: no model, no torch. Source: Zhang et al., arXiv 2110.06864, algorithm 1 and its reference code
(thresholds 0.8 / 0.5 / 0.7, scores fused into the first cost, a new track needs ``high_score`` + 0.1, which is
``new_object_score``'s default).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from configs.schema import TrackerConfig
from pipeline import masks as mask_tools
from pipeline.telemetry import LOGGER
from pipeline.types import RLE, BoolArray, Detections, Frame, FrameTracks, Int64Array
from trackers import kalman
from trackers.association import assign
from trackers.state_files import read_state, write_state

_FIRST_COST = 0.8
"""Stage one, confident detections: 1 - IoU * score at most."""
_SECOND_COST = 0.5
"""Stage two, weak detections: 1 - IoU at most."""
_UNCONFIRMED_COST = 0.7
"""Tracks seen once: 1 - IoU * score at most."""
_DUPLICATE_IOU = 0.85
"""A tracked and a lost box that overlap by more are one object; the longer-lived stays."""
_STATE_VERSION = 1


@dataclass(slots=True)
class _Track:
    """One track; its motion is kept in the tracker's arrays."""

    track_id: int
    prompt_id: int
    first_step: int
    last_step: int
    confirmed: bool


class ByteTrackTracker:
    """Two-stage box association with a constant-velocity Kalman filter, phrase by phrase.

    A track is shown from its first detection and withdrawn if the next frame does not confirm it (tracks of the very
    first frame need no confirmation). Without detections (``None``) boxes move on, nothing is shown and nobody ages.
    Ids start at 1.
    """

    def __init__(self, config: TrackerConfig, *, stream_id: str, session: int = 0) -> None:
        self._config, self._stream_id, self._session = config, stream_id, session
        self._tracks: list[_Track] = []
        self._mean, self._covariance = np.zeros((0, 8)), np.zeros((0, 8, 8))
        self._next_id, self._step = 1, 0
        self.counters: Counter[str] = Counter()
        """What was dropped: ``over_budget``, ``nonfinite_detections``."""

    def step(self, frame: Frame, detections: Detections | None) -> FrameTracks:
        """Advance by one frame."""
        self._predict()
        if detections is None:
            return self._shown(frame, Detections.empty(), {}, [])
        found = self._finite(detections)
        track_of_det = self._associate(found)
        self._correct(found, track_of_det)
        shown = {self._tracks[row].track_id: det for det, row in track_of_det.items()}
        withdrawn = self._retire()
        shown |= self._bear(found, track_of_det.keys())
        self._step += 1
        alive = {track.track_id for track in self._tracks}
        return self._shown(frame, found, {i: det for i, det in shown.items() if i in alive}, withdrawn)

    def _predict(self) -> None:
        """Move all boxes one frame on; a lost one no longer grows or shrinks."""
        lost = [track.last_step < self._step - 1 for track in self._tracks]
        self._mean[np.array(lost, bool), 7] = 0
        self._mean, self._covariance = kalman.predict(self._mean, self._covariance)

    def _finite(self, detections: Detections) -> Detections:
        finite = np.isfinite(detections.score) & np.isfinite(detections.xyxy).all(1)
        finite &= np.isfinite(detections.mask_logits).all((1, 2))
        if finite.all():
            return detections
        self.counters["nonfinite_detections"] += int((~finite).sum())
        return detections[finite]

    def _associate(self, found: Detections) -> dict[int, int]:
        """Detection -> row of its track, by ByteTrack's matches in turn, each on what the one before left.

        Of the confirmed, those seen last come first (DeepSORT's cascade): a lost box that drifts through a crowd
        must not take a detection from its visible owner.
        """
        tracks = self._tracks
        confirmed = np.array([t.confirmed for t in tracks], bool)
        tracked = np.array([t.last_step == self._step - 1 for t in tracks], bool)
        strong = found.score > self._config.high_score
        iou = self._iou(found)
        fused = 1 - np.where(iou > 0, iou * found.score[:, None], -np.inf)
        matches: dict[int, int] = {}
        stages = (
            (fused, strong, confirmed & tracked, _FIRST_COST),
            (fused, strong, confirmed & ~tracked, _FIRST_COST),
            (1 - iou, ~strong, confirmed & tracked, _SECOND_COST),
            (fused, strong, ~confirmed, _UNCONFIRMED_COST),
        )
        for cost, dets, rows, limit in stages:
            free_dets = np.flatnonzero(dets & ~np.isin(np.arange(len(found)), list(matches)))
            free_rows = np.flatnonzero(rows & ~np.isin(np.arange(len(tracks)), list(matches.values())))
            d, r = assign(cost[np.ix_(free_dets, free_rows)], limit)
            matches |= dict(zip(free_dets[d].tolist(), free_rows[r].tolist(), strict=True))
        return matches

    def _iou(self, found: Detections) -> NDArray[np.float64]:
        """``(N, M)`` box IoU of detections and predicted boxes; -inf across phrases."""
        prompt = np.array([track.prompt_id for track in self._tracks], np.int16)
        iou = mask_tools.box_iou(found.xyxy, kalman.boxes_of(self._mean))
        return np.where(found.prompt_id[:, None] == prompt[None], iou, -np.inf)

    def _correct(self, found: Detections, track_of_det: dict[int, int]) -> None:
        dets, rows = list(track_of_det), list(track_of_det.values())
        if not dets:
            return
        measured = kalman.measure(found.xyxy[dets])
        self._mean[rows], self._covariance[rows] = kalman.update(self._mean[rows], self._covariance[rows], measured)
        for row in rows:
            self._tracks[row].confirmed = True
            self._tracks[row].last_step = self._step

    def _retire(self) -> list[int]:
        """Forget tracks that are lost for too long, duplicates, and the unconfirmed; returns the ids of the last."""
        unconfirmed = [track.track_id for track in self._tracks if not track.confirmed]
        oldest = self._step - self._config.lost_frames
        stays = np.array([track.confirmed and track.last_step >= oldest for track in self._tracks], bool)
        self._keep(stays & ~self._duplicates())
        return unconfirmed

    def _duplicates(self) -> BoolArray:
        """Rows of the shorter-lived of each tracked and lost pair whose boxes all but coincide."""
        tracked = np.array([track.last_step == self._step for track in self._tracks], bool)
        age = np.array([track.last_step - track.first_step for track in self._tracks], np.int64)
        boxes = kalman.boxes_of(self._mean)
        duplicate = np.zeros(len(self._tracks), bool)
        for a, b in np.argwhere(mask_tools.box_iou(boxes, boxes) > _DUPLICATE_IOU):
            same = self._tracks[a].prompt_id == self._tracks[b].prompt_id
            if same and tracked[a] and not tracked[b]:
                duplicate[b if age[a] > age[b] else a] = True
        return duplicate

    def _keep(self, rows: BoolArray) -> None:
        self._tracks = [track for track, stays in zip(self._tracks, rows, strict=True) if stays]
        self._mean, self._covariance = self._mean[rows], self._covariance[rows]

    def _bear(self, found: Detections, matched: Any) -> dict[int, int]:
        """Start tracks from confident detections that are left; returns id -> detection."""
        left = ~np.isin(np.arange(len(found)), list(matched))
        new = np.flatnonzero(left & (found.score >= self._config.new_object_score))
        room = max(0, self._config.max_objects - len(self._tracks))
        if len(new) > room:
            self._refuse(len(new) - room)
            new = np.sort(new[np.argsort(-found.score[new], kind="stable")[:room]])
        ids = range(self._next_id, self._next_id + len(new))
        self._next_id += len(new)
        mean, covariance = kalman.begin(kalman.measure(found.xyxy[new]))
        self._mean = np.concatenate([self._mean, mean])
        self._covariance = np.concatenate([self._covariance, covariance])
        first = self._step == 0
        prompts = found.prompt_id[new].tolist()
        self._tracks += [_Track(i, p, self._step, self._step, first) for i, p in zip(ids, prompts, strict=True)]
        return dict(zip(ids, new.tolist(), strict=True))

    def _refuse(self, count: int) -> None:
        if not self.counters["over_budget"]:
            LOGGER.warning(
                "%s: more than %d objects (tracker.max_objects): the best-scoring are kept, the rest is counted",
                self._stream_id,
                self._config.max_objects,
            )
        self.counters["over_budget"] += count

    def _shown(self, frame: Frame, found: Detections, det_of_id: dict[int, int], withdrawn: list[int]) -> FrameTracks:
        """Rows of the tracks that have a detection with at least one pixel."""
        ids = np.array(sorted(det_of_id), np.int64)
        dets = np.array([det_of_id[i] for i in ids.tolist()], np.int64)
        rles = [_encode(found[d : d + 1], frame.source_size) for d in dets.tolist()]
        filled = mask_tools.areas(rles) > 0
        masks = tuple(rle for rle, any_pixel in zip(rles, filled, strict=True) if any_pixel)
        ids, dets = ids[filled], dets[filled]
        return FrameTracks(
            frame.stream_id,
            self._session,
            frame.index,
            frame.pts_s,
            ids,
            found.prompt_id[dets],
            found.score[dets],
            mask_tools.rle_boxes(masks),
            masks,
            np.array(withdrawn, np.int64),
        )

    def skip(self, num_frames: int) -> None:
        """See :class:`pipeline.types.Tracker`. Nothing follows: boxes are only ever matched where they overlap."""

    def forget(self, track_ids: Int64Array) -> None:
        """Stop following these objects, as if they had never been."""
        self._keep(~np.isin(np.array([track.track_id for track in self._tracks], np.int64), track_ids))

    def save(self, folder: Path) -> None:
        """Write ``tracker.json``; floats are written so that they read back bit-equal."""
        state = {
            "stream_id": self._stream_id,
            "session": self._session,
            "step": self._step,
            "next_id": self._next_id,
            "tracks": [asdict(track) for track in self._tracks],
            "mean": self._mean.tolist(),
            "covariance": self._covariance.tolist(),
            "counters": dict(self.counters),
        }
        write_state(folder, _STATE_VERSION, state)

    def restore(self, folder: Path) -> None:
        """Continue from a state written by :meth:`save` with the same configuration.

        Raises:
            RunError: there is no state, or one of another version.
        """
        state = read_state(folder, _STATE_VERSION)
        self._stream_id, self._session = state["stream_id"], state["session"]
        self._step, self._next_id = state["step"], state["next_id"]
        self._tracks = [_Track(**track) for track in state["tracks"]]
        count = len(self._tracks)
        self._mean = np.array(state["mean"], np.float64).reshape(count, 8)
        self._covariance = np.array(state["covariance"], np.float64).reshape(count, 8, 8)
        self.counters = Counter(state["counters"])


def _encode(detection: Detections, size: tuple[int, int]) -> RLE:
    """Mask of one detection at source size ``(H, W)``: its logits enlarged, or its box if it has no mask (1x1)."""
    if detection.mask_logits.shape[1:] == (1, 1):
        mask = mask_tools.boxes_to_masks(detection.xyxy, size)
    else:
        enlarged = cv2.resize(detection.mask_logits[0], (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        mask = (enlarged > 0)[None]
    return mask_tools.encode(mask)[0]
