"""From tracklets to masklets: hold back what is on probation, and number what is confirmed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.results import FrameResult
from pipeline.types import RLE, FrameTracks, Int64Array, Prompts


class ReleaseBuffer:
    """Delays frames while their objects are on probation, and deletes withdrawn ids from the frames it still holds.

    With a delay of N a frame is released once N - 1 later frames were processed: an id can be withdrawn at most that
    late, so what is released never changes. (SAM3, ``hotstart_delay``: the video predictor's delayed generator.)
    """

    def __init__(self, delay_frames: int) -> None:
        self._delay = max(delay_frames, 1)
        self._held: deque[FrameTracks] = deque()
        self.num_withdrawn = 0
        """Ids taken back so far."""

    def push(self, tracks: FrameTracks) -> list[FrameTracks]:
        """Take a frame in; return those that are now final (at most one)."""
        self._held.append(tracks)
        if len(tracks.withdrawn):
            self.num_withdrawn += len(tracks.withdrawn)
            self._held = deque(without(held, tracks.withdrawn) for held in self._held)
        return [self._held.popleft()] if len(self._held) >= self._delay else []

    @property
    def held(self) -> tuple[FrameTracks, ...]:
        """The frames that wait, oldest first."""
        return tuple(self._held)

    def forget(self, ids: Int64Array) -> None:
        """Delete these ids from the frames that wait."""
        self._held = deque(without(held, ids) for held in self._held)

    def flush(self) -> list[FrameTracks]:
        """The frames still held, at the end of the video."""
        rest = list(self._held)
        self._held.clear()
        return rest

    def state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {"held": [tracks_to_json(tracks) for tracks in self._held], "num_withdrawn": self.num_withdrawn}

    def restore(self, stream_id: str, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self._held = deque(tracks_from_json(stream_id, tracks) for tracks in state["held"])
        self.num_withdrawn = state["num_withdrawn"]


def tracks_to_json(tracks: FrameTracks) -> dict[str, Any]:
    """One frame's tracks as JSON values; floats read back bit-equal. What it withdraws is left out: that is done."""
    return {
        "session": tracks.session,
        "index": tracks.index,
        "pts_s": tracks.pts_s,
        "track_id": tracks.track_id.tolist(),
        "prompt_id": tracks.prompt_id.tolist(),
        "score": tracks.score.tolist(),
        "xyxy": tracks.xyxy.tolist(),
        "masks": [[*rle.size, rle.counts.decode("ascii")] for rle in tracks.masks],
    }


def tracks_from_json(stream_id: str, state: Mapping[str, Any]) -> FrameTracks:
    """What :func:`tracks_to_json` wrote."""
    return FrameTracks(
        stream_id,
        state["session"],
        state["index"],
        state["pts_s"],
        np.array(state["track_id"], np.int64),
        np.array(state["prompt_id"], np.int16),
        np.array(state["score"], np.float32),
        np.array(state["xyxy"], np.float32).reshape(-1, 4),
        tuple(RLE((h, w), counts.encode("ascii")) for h, w, counts in state["masks"]),
    )


def without(tracks: FrameTracks, ids: Int64Array) -> FrameTracks:
    """``tracks`` without the rows of these ids."""
    keep = ~np.isin(tracks.track_id, ids)
    if keep.all():
        return tracks
    return FrameTracks(
        tracks.stream_id,
        tracks.session,
        tracks.index,
        tracks.pts_s,
        tracks.track_id[keep],
        tracks.prompt_id[keep],
        tracks.score[keep],
        tracks.xyxy[keep],
        tuple(m for m, k in zip(tracks.masks, keep, strict=True) if k),
        tracks.withdrawn,
    )


class MaskletNumbering:
    """Gives released tracklets their masklet id: from 1, in order of first appearance, never reused."""

    def __init__(self, video_id: str, prompts: Prompts, source_size: tuple[int, int]) -> None:
        self._video_id, self._phrases, self._size = video_id, prompts.phrases, source_size
        self._ids: dict[int, int] = {}
        self.num_masklets = 0
        """Masklets seen so far; the next one gets the number after it."""

    @property
    def ids(self) -> dict[int, int]:
        """A copy of the masklet ids by track id, without those that were retired."""
        return dict(self._ids)

    def restore(self, ids: Mapping[int, int], num_masklets: int) -> None:
        """Continue with these ids; new masklets are numbered after ``num_masklets``."""
        self._ids, self.num_masklets = dict(ids), num_masklets

    def set_phrases(self, phrases: Sequence[str]) -> None:
        """What ``prompt_id`` means from now on."""
        self._phrases = tuple(phrases)

    def retire(self, track_ids: Iterable[int]) -> None:
        """Forget ids that cannot come again, because the tracker forgot them: endless streams stay small."""
        for track_id in track_ids:
            self._ids.pop(track_id, None)

    def _id_of(self, track_id: int) -> int:
        if track_id not in self._ids:
            self.num_masklets += 1
            self._ids[track_id] = self.num_masklets
        return self._ids[track_id]

    def number(self, tracks: FrameTracks) -> FrameResult:
        """The frame as the user sees it, rows ascending by masklet id."""
        ids = np.array([self._id_of(int(t)) for t in tracks.track_id], np.int32)
        order = np.argsort(ids, kind="stable")
        return FrameResult(
            self._video_id,
            tracks.index,
            tracks.pts_s,
            self._size,
            ids[order],
            tuple(self._phrases[int(tracks.prompt_id[i])] for i in order),
            tracks.score[order],
            tracks.xyxy[order],
            tuple(tracks.masks[i] for i in order),
        )
