"""From a tracker's frames to final rows and events, for a stream without an end.

Rows come from the same pieces as those of a file (:class:`ReleaseBuffer`, :class:`MaskletNumbering`), so with a latency
of the tracker's hotstart they are the same rows. Everything remembered belongs to an object that is in sight or was a
short while ago: what is out of sight for ``end_after_s`` has ended, and tracker and numbering forget it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.link import MaskletNumbering, ReleaseBuffer, tracks_from_json, tracks_to_json, without
from pipeline.live.events import Event, LiveResult
from pipeline.types import FrameTracks, Prompts, UInt8Array


@dataclass(frozen=True, slots=True)
class LinkerConfig:
    """When rows are final, and when an object counts as gone."""

    delay_frames: int
    """Frames that output is held back; 0 and 1 hold nothing back."""
    probation_frames: int
    """Frames after which the tracker takes an object back no more (``tracker.hotstart_delay_frames``)."""
    lost_after_s: float
    end_after_s: float


@dataclass(slots=True)
class Life:
    """An object that was shown and has not ended."""

    masklet_id: int
    prompt_id: int
    num_frames: int
    """Frames processed since it was born, with or without it in sight."""
    last_pts_s: float
    is_confirmed: bool = False
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of a frame until its rows are final."""

    wall_s: float
    arrived_s: float
    picture: UInt8Array | None = None


@dataclass(frozen=True, slots=True)
class Linked:
    """What one call made final."""

    results: tuple[LiveResult, ...] = ()
    events: tuple[Event, ...] = ()
    ended: tuple[int, ...] = ()
    """Track ids that have ended: the tracker should forget them."""


class LiveLinker:
    """Final rows and events of one stream."""

    def __init__(self, stream_id: str, source_size: tuple[int, int], config: LinkerConfig) -> None:
        self.stream_id, self._config = stream_id, config
        self._buffer = ReleaseBuffer(config.delay_frames)
        nothing = Prompts((), np.zeros((0, 1, 1), np.float32), np.zeros((0, 1), bool))
        self._numbering = MaskletNumbering(stream_id, nothing, source_size)
        self._source_size = source_size
        self._phrases: tuple[str, ...] = ()
        self._muted: set[int] = set()
        self._seen: deque[Seen] = deque()
        self._lives: dict[int, Life] = {}
        self._last: tuple[int, float, float] = (-1, 0.0, 0.0)
        """Frame, pts_s and wall_s of the last released frame."""
        self.session = 0
        self.counts: Counter[str] = Counter()
        """Events by kind."""

    @property
    def num_masklets(self) -> int:
        """Masklets so far."""
        return self._numbering.num_masklets

    @property
    def num_lives(self) -> int:
        """Objects that have not ended."""
        return len(self._lives)

    @property
    def num_visible(self) -> int:
        """Objects that are not lost."""
        return sum(not life.is_lost for life in self._lives.values())

    @property
    def ids(self) -> dict[int, int]:
        """Masklet ids by track id, of objects that have not ended."""
        return self._numbering.ids

    @property
    def source_size(self) -> tuple[int, int]:
        """``(height, width)`` that all rows refer to."""
        return self._source_size

    @property
    def newest(self) -> tuple[float, float]:
        """pts_s and wall_s of the last frame that was pushed."""
        _, pts_s, wall_s = self._last
        held = self._buffer.held
        return (held[-1].pts_s, self._seen[-1].wall_s) if held else (pts_s, wall_s)

    @property
    def last(self) -> tuple[int, float, float]:
        """Frame, pts_s and wall_s of the last released frame; frame -1 before the first."""
        return self._last

    def set_phrases(self, slots: Sequence[str], retired: Iterable[int] = ()) -> Linked:
        """What prompt ids mean from now on. Objects of ``retired`` ids end."""
        self._phrases = tuple(slots)
        self._numbering.set_phrases(slots)
        retired = set(retired)
        self._muted = retired
        gone = [t for t, life in self._lives.items() if life.prompt_id in retired]
        held = {
            int(t)
            for tracks in self._buffer.held
            for t, p in zip(tracks.track_id, tracks.prompt_id, strict=True)
            if int(p) in retired
        }
        if held:
            self._buffer.forget(np.array(sorted(held), np.int64))
        events = [self._end(t, "its phrase was taken off") for t in gone]
        return Linked((), tuple(events), tuple(sorted({*gone, *held})))

    def push(self, tracks: FrameTracks, seen: Seen) -> Linked:
        """Take a tracked frame; returns what became final (at most one frame)."""
        if self._muted:
            tracks = without(tracks, tracks.track_id[np.isin(tracks.prompt_id, list(self._muted))])
        retracted = [self._retract(int(t), tracks, seen) for t in tracks.withdrawn if int(t) in self._lives]
        self._seen.append(seen)
        linked = self._release(self._buffer.push(tracks))
        return Linked(linked.results, (*retracted, *linked.events), linked.ended)

    def release_held(self) -> Linked:
        """Make final what is held back, without ending any object."""
        return self._release(self._buffer.flush())

    def flush(self, reason: str) -> Linked:
        """Make everything final and end every object: the stream ended, or a gap was too long."""
        linked = self.release_held()
        ended = tuple(self._lives)
        events = tuple(self._end(t, reason) for t in ended)
        self._numbering.retire(list(self._numbering.ids))
        return Linked(linked.results, (*linked.events, *events), (*linked.ended, *ended))

    def stream_event(self, kind: str, wall_s: float, detail: str, gap_s: float | None = None) -> Event:
        """An event of the stream itself."""
        frame, pts_s, _ = self._last
        return self._event(kind, frame, pts_s, wall_s, gap_s=gap_s, detail=detail)

    def _release(self, final: Iterable[FrameTracks]) -> Linked:
        results: list[LiveResult] = []
        events: list[Event] = []
        ended: list[int] = []
        for tracks in final:
            seen = self._seen.popleft()
            self._last = (tracks.index, tracks.pts_s, seen.wall_s)
            result = self._numbering.number(tracks)
            results.append(LiveResult(result, self.session, seen.wall_s, seen.arrived_s, seen.picture))
            events += self._visible(tracks, seen)
            gone, more = self._missing(tracks, seen)
            events += more
            ended += gone
        return Linked(tuple(results), tuple(events), tuple(ended))

    def _visible(self, tracks: FrameTracks, seen: Seen) -> list[Event]:
        """Births, confirmations and returns on a released frame."""
        events = []
        ids = self._numbering.ids
        for track_id, prompt_id in zip(tracks.track_id.tolist(), tracks.prompt_id.tolist(), strict=True):
            life = self._lives.get(track_id)
            if life is None:
                held = max(self._config.delay_frames - 1, 0)
                life = self._lives[track_id] = Life(ids[track_id], prompt_id, held, tracks.pts_s)
                events.append(self._object_event("born", life, tracks, seen))
            elif life.is_lost:
                life.is_lost = False
                events.append(self._object_event("recovered", life, tracks, seen))
            life.last_pts_s = tracks.pts_s
        for life in self._lives.values():
            life.num_frames += 1
            if not life.is_confirmed and life.num_frames >= self._config.probation_frames:
                life.is_confirmed = True
                events.append(self._object_event("confirmed", life, tracks, seen))
        return events

    def _missing(self, tracks: FrameTracks, seen: Seen) -> tuple[list[int], list[Event]]:
        """Objects out of sight for long: lost, then ended."""
        events: list[Event] = []
        gone: list[int] = []
        for track_id, life in self._lives.items():
            away_s = tracks.pts_s - life.last_pts_s
            if away_s > self._config.lost_after_s and not life.is_lost:
                life.is_lost = True
                events.append(self._object_event("lost", life, tracks, seen))
            if away_s > self._config.end_after_s and not self._is_held(track_id):
                gone.append(track_id)
        return gone, [*events, *(self._end(t, "out of sight") for t in gone)]

    def _is_held(self, track_id: int) -> bool:
        """Whether the object is back, on a frame that is not released yet."""
        return any(track_id in tracks.track_id for tracks in self._buffer.held)

    def _retract(self, track_id: int, tracks: FrameTracks, seen: Seen) -> Event:
        life = self._lives.pop(track_id)
        self._numbering.retire([track_id])
        return self._object_event("retracted", life, tracks, seen)

    def _end(self, track_id: int, reason: str) -> Event:
        life = self._lives.pop(track_id)
        self._numbering.retire([track_id])
        frame, pts_s, wall_s = self._last
        return self._event(
            "ended", frame, pts_s, wall_s, masklet_id=life.masklet_id, prompt=self._phrase(life), detail=reason
        )

    def _object_event(self, kind: str, life: Life, tracks: FrameTracks, seen: Seen) -> Event:
        return self._event(
            kind, tracks.index, tracks.pts_s, seen.wall_s, masklet_id=life.masklet_id, prompt=self._phrase(life)
        )

    def _phrase(self, life: Life) -> str:
        return self._phrases[life.prompt_id]

    def _event(self, kind: str, frame: int, pts_s: float, wall_s: float, **more: Any) -> Event:
        self.counts[kind] += 1
        subject = more.get("masklet_id") or round(wall_s * 1000)
        event_id = f"{self.stream_id}:{self.session}:{frame}:{kind}:{subject}"
        return Event(event_id, kind, self.stream_id, self.session, frame, pts_s, wall_s, **more)

    # -- saving and restoring -------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything but pictures, as JSON values."""
        return {
            "source_size": list(self._source_size),
            "session": self.session,
            "num_masklets": self._numbering.num_masklets,
            "ids": sorted(self._numbering.ids.items()),
            "lives": [[track_id, asdict(life)] for track_id, life in self._lives.items()],
            "held": [tracks_to_json(tracks) for tracks in self._buffer.held],
            "seen": [[seen.wall_s] for seen in self._seen],
            "last": list(self._last),
            "counts": dict(self.counts),
            "muted": sorted(self._muted),
            "phrases": list(self._phrases),
        }

    def restore(self, state: dict[str, Any], now_s: float) -> None:
        """Continue from what :meth:`state` returned; call :meth:`adopt` next."""
        self.session = state["session"]
        self._numbering.restore(dict(state["ids"]), state["num_masklets"])
        self._lives = {track_id: Life(**life) for track_id, life in state["lives"]}
        for tracks in state["held"]:
            self._buffer.push(tracks_from_json(self.stream_id, tracks))
        self._seen = deque(Seen(wall_s, now_s) for (wall_s,) in state["seen"])
        frame, pts_s, wall_s = state["last"]
        self._last = (frame, pts_s, wall_s)
        self.counts = Counter(state["counts"])
        self._muted, self._phrases = set(state["muted"]), tuple(state["phrases"])
        self._numbering.set_phrases(self._phrases)

    def adopt(self, num_masklets: int, births: Mapping[int, int]) -> None:
        """Respect numbers that were given after the state was saved: none is given twice.

        ``births``: masklet ids by track id of this session. Only tracks in held frames are still the same objects; they
        keep their number, so that rows that are handed out again are the same rows.
        """
        held = {int(t) for tracks in self._buffer.held for t in tracks.track_id}
        ids = {**{t: m for t, m in births.items() if t in held}, **self._numbering.ids}
        self._numbering.restore(ids, max(num_masklets, self._numbering.num_masklets))
