"""The worker that follows cameras: frames of several in one detector call, a tracker of its own for each. No Ray.

It pulls: each :meth:`CameraWorker.step` takes at most one frame of every camera, those that waited longest first, so a
slow device drops frames evenly. A camera that fails, fails alone: its tracker is made anew and the others never notice.
State is explicit and per camera (:meth:`CameraWorker.save`, then :meth:`CameraWorker.add` with the same folder), so a
camera can move to another worker; an actor that wraps this class needs nothing else.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.live.checkpoint import Marks, Past, load_state, prepare_state
from pipeline.live.events import Event, LiveResult
from pipeline.live.exemplars import Exemplars
from pipeline.live.heap import TRIM_EVERY_FRAMES, give_back
from pipeline.live.linker import Linked, LinkerConfig, LiveLinker, Seen
from pipeline.live.phrases import PhraseTable
from pipeline.live.stats import CameraStats, StageStats
from pipeline.sources.live import LiveFrame, Lost, State
from pipeline.telemetry import STARTED_S
from pipeline.types import Detections, Detector, Prompts, Tracker

LOGGER = logging.getLogger("masklet.live")
_FIRST_BACKOFF_S, _BACKOFF_CAP_S = 0.25, 10.0
_CALM_S = 60.0
"""A camera that did not fail for so long begins with the shortest wait again."""
_COMPLAIN_EVERY_S = 30.0
_STEPS = 16
"""The usual time between frames is the median of so many."""
_MISSED_FRAMES = 4
"""More at once are told to the tracker; drops now and then are in the speed that it sees."""


class CameraFeed(Protocol):
    """Where frames come from: :class:`pipeline.sources.live.LiveSource`, or its stand-in on another machine."""

    state: State
    is_paused: bool

    def poll(self) -> Lost | None:
        """Keep the connection going; says so once when the camera is lost."""
        ...

    def take(self) -> LiveFrame | None:
        """The next frame, if one waits."""
        ...

    def stop(self) -> None:
        """Let the camera go."""
        ...

    @property
    def next_index(self) -> int:
        """Number of the frame that arrives next."""
        ...

    def resume(self, next_index: int, pts_s: float, wall_s: float, source_size: tuple[int, int] | None) -> None:
        """Go on from where an earlier process was; without a size, with that of the next frame."""
        ...


@dataclass(frozen=True, slots=True)
class CameraOutput:
    """What one camera has to say after a step."""

    stream_id: str
    results: tuple[LiveResult, ...] = ()
    events: tuple[Event, ...] = ()


@dataclass(slots=True)
class Camera:
    """One camera and everything that belongs to it."""

    stream_id: str
    feed: CameraFeed
    marks: Marks
    folder: Path | None
    prompts: Prompts
    """As asked for, without exemplars."""
    phrases: PhraseTable = field(default_factory=PhraseTable)
    stats: CameraStats = field(default_factory=CameraStats)
    tracker: Tracker | None = None
    linker: LiveLinker | None = None
    """From the first frame on, when its size is known."""
    served_s: float = 0.0
    """When it was last taken a frame from."""
    next_frame: int = 0
    """One after the last frame that was tracked."""
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=_STEPS))
    """Seconds between frames that were tracked, the latest; the first one is often long: everything is new to it."""
    lost_wall_s: float | None = None
    start_up_s: float = 0.0
    """What of the gap at hand is this process's own: it took so long to get ready."""
    is_closed: bool = False
    """A gap was too long: the session has ended, the next frame begins another."""
    pending: Linked = field(default_factory=Linked)
    """What an error left behind, to be said with the next step."""
    failed_s: float = -_CALM_S
    """When its tracking last failed."""
    num_tries: int = 0
    """How often it failed again, soon after."""
    try_at_s: float = 0.0
    """Until then nothing of it is tracked: it would only fail again, at everybody's cost."""
    complained_s: float = -_COMPLAIN_EVERY_S
    restart: str = ""
    """Why an earlier process's objects do not go on, to be said with the first frame."""

    @property
    def step_s(self) -> float:
        """Usual time between frames that were tracked; 0 while unknown."""
        return statistics.median_low(self.steps) if self.steps else 0.0

    def num_missed(self, live: LiveFrame) -> int:
        """About how many frames there were since the last one that was tracked: by the clock, and by stream time.

        A camera that froze sends what it has at once: seconds of stream time within a moment, most of it dropped.
        """
        if not self.step_s or not self.stats.tracked:
            return 0
        return round(max(live.gap_s or 0.0, live.frame.pts_s - self.marks.past.pts_s) / self.step_s)

    def note_step(self, live: LiveFrame) -> None:
        """Learn the usual time between frames; before ``marks`` are told of this one."""
        step_s = live.frame.pts_s - self.marks.past.pts_s
        if live.gap_s is None and step_s > 0 and self.stats.tracked:
            self.steps.append(step_s)


class CameraWorker:
    """Follows any number of cameras on one device.

    Args:
        detector: shared by all.
        make_tracker: a fresh tracker for ``(stream_id, session)``.
        linker_config: latency and when objects count as lost or ended.
        batch_frames: frames per detector call.
        max_gap_s: a longer gap starts a new session.
        exemplars: boxes that say what to look for, besides the phrases.
    """

    def __init__(
        self,
        detector: Detector,
        make_tracker: Callable[[str, int], Tracker],
        linker_config: LinkerConfig,
        *,
        batch_frames: int,
        max_gap_s: float,
        exemplars: Exemplars | None = None,
    ) -> None:
        self._detector, self._make_tracker, self._linker_config = detector, make_tracker, linker_config
        self._batch_frames, self._max_gap_s, self._exemplars = batch_frames, max_gap_s, exemplars
        self.cameras: dict[str, Camera] = {}
        self.stages = StageStats()
        self._untrimmed = 0

    # -- which cameras --------------------------------------------------------------------------------------------

    def add(
        self,
        stream_id: str,
        feed: CameraFeed,
        prompts: Prompts,
        folder: Path | None = None,
        past: Sequence[Past] = (),
    ) -> CameraOutput:
        """Follow one more camera; continues the state in ``folder`` if there is one.

        ``past``: what was given out under this id already; frames, masklets and sessions are numbered after it.
        """
        camera = Camera(stream_id, feed, Marks(folder), folder, prompts)
        for known in past:
            camera.marks.adopt(known)
        self.cameras[stream_id] = camera
        events = self._restore(camera)
        self._change(camera, prompts)
        return self._output(camera, Linked(), events)

    def remove(self, stream_id: str, reason: str) -> CameraOutput:
        """Let a camera go; what was held back becomes final."""
        camera = self.cameras.pop(stream_id)
        camera.feed.stop()
        return self._output(camera, camera.linker.flush(reason) if camera.linker else Linked())

    def pause(self, stream_id: str, is_paused: bool) -> CameraOutput:
        """Stop tracking a camera for a while, or go on."""
        camera = self.cameras[stream_id]
        begins = is_paused and not camera.feed.is_paused
        camera.feed.is_paused = is_paused
        if not begins or camera.linker is None or camera.lost_wall_s is not None:
            return self._output(camera, Linked())
        camera.lost_wall_s = time.time()
        return self._output(camera, Linked(), [camera.linker.stream_event("stream_gap", camera.lost_wall_s, "paused")])

    def set_prompts(self, stream_id: str, prompts: Prompts) -> CameraOutput:
        """Look for other phrases on this camera; objects of those that stay keep their ids."""
        camera = self.cameras[stream_id]
        return self._output(camera, self._change(camera, prompts))

    def _change(self, camera: Camera, prompts: Prompts) -> Linked:
        camera.prompts = prompts
        camera.phrases.change(self._exemplars.applied(prompts) if self._exemplars is not None else prompts)
        if camera.linker is None:
            return Linked()
        linked = camera.linker.set_phrases(camera.phrases.slots, camera.phrases.retired)
        self._forget(camera, linked)
        return linked

    @staticmethod
    def _forget(camera: Camera, linked: Linked) -> None:
        if linked.ended and camera.tracker is not None:
            camera.tracker.forget(np.array(linked.ended, np.int64))

    # -- the step -------------------------------------------------------------------------------------------------

    def step(self) -> tuple[list[CameraOutput], int]:
        """Advance every camera that has a frame by that frame; what became final, and how many frames were tracked."""
        outputs = [out for camera in list(self.cameras.values()) if (out := self._polled(camera)) is not None]
        batch = self._collect()
        self._look_at(batch)
        for (camera, live), found in zip(batch, self._detect(batch), strict=True):
            if found is not None:
                outputs.append(self._follow(camera, live, found))
        self._untrimmed += len(batch)
        if self._untrimmed >= TRIM_EVERY_FRAMES:
            self._untrimmed = 0
            with self._timed("trim"):
                give_back()
        return outputs, len(batch)

    def _look_at(self, batch: Sequence[tuple[Camera, LiveFrame]]) -> None:
        """Once the frame of an exemplar comes, every camera looks for what its boxes show."""
        if self._exemplars is None or not self._exemplars.missing:
            return
        came = [self._shows_box(camera, live) for camera, live in batch]
        if any(came):
            for camera in self.cameras.values():
                self._change(camera, camera.prompts)

    def _shows_box(self, camera: Camera, live: LiveFrame) -> bool:
        assert self._exemplars is not None  # the caller checked
        try:
            return self._exemplars.see(live.frame)
        except Exception:
            self._complain(camera, "a box could not be read from its picture")
            return False

    def _polled(self, camera: Camera) -> CameraOutput | None:
        try:
            return self._poll(camera)
        except Exception:
            self._failed(camera, "its source failed")
            return None

    def _poll(self, camera: Camera) -> CameraOutput | None:
        """Keep the connection going; report a loss, and end the session once the gap is too long."""
        lost = camera.feed.poll()
        events: list[Event] = []
        linked, camera.pending = camera.pending, Linked()
        if lost is not None and camera.linker is not None and camera.lost_wall_s is None:
            camera.lost_wall_s = time.time()
            if lost.reason:
                events.append(camera.linker.stream_event("stream_gap", camera.lost_wall_s, lost.reason))
        if camera.linker is not None and not camera.is_closed and self._is_over(camera, lost):
            reason = "the stream ended" if lost and lost.is_final else "a long gap"
            linked = _joined(linked, self._close_session(camera, reason))
        if not events and not linked.results and not linked.events:
            return None
        return self._output(camera, linked, events)

    def _is_over(self, camera: Camera, lost: Lost | None) -> bool:
        if lost is not None and lost.is_final:
            return True
        if camera.lost_wall_s is None:
            return False
        return time.time() - camera.lost_wall_s > self._max_gap_s + camera.start_up_s

    def _close_session(self, camera: Camera, reason: str) -> Linked:
        """Make final what is held back and end all objects; ids do not go on."""
        camera.is_closed, camera.tracker = True, None
        return camera.linker.flush(reason) if camera.linker is not None else Linked()

    def _collect(self) -> list[tuple[Camera, LiveFrame]]:
        """A frame each of the cameras that have one, the longest unserved first, up to a detector's batch."""
        batch: list[tuple[Camera, LiveFrame]] = []
        now_s = time.monotonic()
        ready = [camera for camera in self.cameras.values() if now_s >= camera.try_at_s]
        for camera in sorted(ready, key=lambda c: c.served_s):
            with self._timed("convert"):
                live = self._taken(camera)
            if live is not None:
                camera.served_s = time.monotonic()
                batch.append((camera, live))
            if len(batch) == self._batch_frames:
                break
        return batch

    def _taken(self, camera: Camera) -> LiveFrame | None:
        try:
            return camera.feed.take()
        except Exception:
            self._failed(camera, "a frame could not be converted")
            return None

    def _detect(self, batch: Sequence[tuple[Camera, LiveFrame]]) -> list[Detections | None]:
        """Detections of each frame; cameras with the same phrases share a call."""
        found: list[Detections | None] = [None] * len(batch)
        groups: dict[int, list[int]] = {}
        for row, (camera, _) in enumerate(batch):
            groups.setdefault(id(camera.phrases.prompts), []).append(row)
        for rows in groups.values():
            for row, detections in zip(rows, self._detect_group([batch[r] for r in rows]), strict=True):
                found[row] = detections
        return found

    def _detect_group(self, group: Sequence[tuple[Camera, LiveFrame]]) -> Sequence[Detections | None]:
        prompts = group[0][0].phrases.prompts
        if not prompts.num_wanted:
            return [Detections.empty() for _ in group]
        try:
            with self._timed("detect"):
                return self._detector.detect([live.frame for _, live in group], prompts)
        except Exception:
            if len(group) == 1:
                self._failed(group[0][0], "the detector failed")
                return [None]
            return [found for member in group for found in self._detect_group([member])]

    def _follow(self, camera: Camera, live: LiveFrame, found: Detections) -> CameraOutput:
        events: list[Event] = []
        linked = Linked()
        try:
            events, linked = self._begin(camera, live)
            tracker, linker = camera.tracker, camera.linker
            assert tracker is not None and linker is not None  # _begin made them
            with self._timed("track"):
                tracks = tracker.step(live.frame, camera.phrases.to_slots(found))
            with self._timed("link"):
                more = linker.push(tracks, Seen(live.wall_s, live.arrived_s, live.picture))
            self._forget(camera, more)
            linked = _joined(linked, more)
        except Exception:
            self._failed(camera, "the tracker failed")
        self._count(camera, live)
        return self._output(camera, linked, events)

    def _begin(self, camera: Camera, live: LiveFrame) -> tuple[list[Event], Linked]:
        """Have tracker and linker ready for this frame, in the old session or in a new one."""
        if camera.linker is None:
            return self._begin_first(camera, live), Linked()
        linked = Linked()
        too_long = live.gap_s is not None and live.gap_s > self._max_gap_s + camera.start_up_s
        camera.start_up_s = 0.0
        if too_long and not camera.is_closed:
            linked = self._close_session(camera, "a long gap")
        was_closed, camera.is_closed = camera.is_closed, False
        if was_closed:
            camera.linker.session = max(camera.linker.session + 1, camera.marks.next_session)
            camera.stats.sessions += 1
        if camera.tracker is None:
            camera.tracker = self._make_tracker(camera.stream_id, camera.linker.session)
        elif (missed := camera.num_missed(live)) > _MISSED_FRAMES:
            camera.tracker.skip(missed)
        events = []
        if live.gap_s is not None and camera.lost_wall_s is None:  # short, and over before anybody looked
            began_s, detail = live.wall_s - live.gap_s, f"no frame for {live.gap_s:.1f} s"
            events.append(camera.linker.stream_event("stream_gap", began_s, detail))
        if live.gap_s is not None or was_closed or live.note:
            camera.lost_wall_s = None
            detail = "; ".join(p for p in ("new ids" if was_closed else "ids go on", live.note) if p)
            events.append(camera.linker.stream_event("stream_reconnected", live.wall_s, detail, live.gap_s))
        return events, linked

    def _begin_first(self, camera: Camera, live: LiveFrame) -> list[Event]:
        """A linker and a tracker; numbers go on after what was given out under this id before."""
        linker = camera.linker = LiveLinker(camera.stream_id, live.frame.source_size, self._linker_config)
        linker.session = camera.marks.next_session
        linker.adopt(camera.marks.num_masklets, {})
        linker.set_phrases(camera.phrases.slots, camera.phrases.retired)
        camera.tracker = self._make_tracker(camera.stream_id, linker.session)
        restart, camera.restart = camera.restart, ""
        if not restart:
            return []
        return [
            linker.stream_event("stream_gap", live.wall_s, restart),
            linker.stream_event("stream_reconnected", live.wall_s, "new ids", live.gap_s),
        ]

    def _failed(self, camera: Camera, what: str) -> None:
        """Start a camera's tracking afresh after an error, later each time; called while handling it."""
        now_s = time.monotonic()
        camera.stats.failures += 1
        camera.num_tries = camera.num_tries + 1 if now_s - camera.failed_s < _CALM_S else 0
        camera.failed_s = now_s
        if camera.num_tries:
            camera.try_at_s = now_s + min(_FIRST_BACKOFF_S * 2 ** min(camera.num_tries - 1, 16), _BACKOFF_CAP_S)
        self._complain(camera, f"{what}; its tracking starts afresh")
        if camera.linker is None:
            camera.tracker = None
            return
        camera.lost_wall_s = time.time()
        gap = Linked(events=(camera.linker.stream_event("stream_gap", camera.lost_wall_s, what),))
        camera.pending = _joined(camera.pending, gap)
        try:
            camera.pending = _joined(camera.pending, self._close_session(camera, what))
        except Exception:
            LOGGER.debug("%s: what was held back is lost", camera.stream_id, exc_info=True)
            camera.linker, camera.is_closed, camera.restart = None, False, what

    def _complain(self, camera: Camera, what: str) -> None:
        """Log the error that is being handled, with its traceback now and then."""
        if time.monotonic() - camera.complained_s < _COMPLAIN_EVERY_S:
            LOGGER.debug("%s: %s", camera.stream_id, what, exc_info=True)
            return
        camera.complained_s = time.monotonic()
        LOGGER.exception("%s: %s (%d failures so far)", camera.stream_id, what, camera.stats.failures)

    def _count(self, camera: Camera, live: LiveFrame) -> None:
        now_s = time.monotonic()
        camera.next_frame = live.frame.index + 1
        camera.note_step(live)
        camera.marks.saw(live.frame.pts_s, live.wall_s)
        camera.stats.tracked += 1
        camera.stats.recent_tracked.add(1.0, now_s)
        camera.stats.step.add(now_s - live.arrived_s)

    def _output(self, camera: Camera, linked: Linked, events: Sequence[Event] = ()) -> CameraOutput:
        now_s = time.monotonic()
        for final in linked.results:
            camera.stats.rows += len(final.result)
            camera.stats.latency.add(now_s - final.arrived_s)
            camera.stats.recent_latency.add(now_s - final.arrived_s, now_s)
        if camera.linker is not None:
            if camera.linker.num_masklets > camera.marks.num_masklets:
                born = {t: m for t, m in camera.linker.ids.items() if m > camera.marks.num_masklets}
                camera.marks.note_births(camera.linker.session, born)
            camera.marks.update(camera.feed.next_index, camera.linker.num_masklets, camera.linker.session + 1)
        return CameraOutput(camera.stream_id, linked.results, (*events, *linked.events))

    @contextmanager
    def _timed(self, stage: str) -> Any:
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.stages.add(stage, time.perf_counter() - start_s)

    # -- state ----------------------------------------------------------------------------------------------------

    def save(self, stream_id: str) -> Callable[[], None]:
        """Write a camera's state to its folder. It counts once what is returned is called: after its rows are safe."""
        camera = self.cameras[stream_id]
        linker = camera.linker
        if camera.folder is None or linker is None or camera.tracker is None:
            return lambda: None
        state = {
            "linker": linker.state(),
            "phrases": camera.phrases.state(),
            "next_frame": camera.next_frame,
            "tracked": camera.stats.tracked,
            "steps": list(camera.steps),
            "saved_wall_s": time.time(),
        }
        commit, num_masklets = prepare_state(camera.folder, state, camera.tracker.save), linker.num_masklets

        def done() -> None:
            commit()
            camera.marks.saved(num_masklets)

        return done

    def suspend(self, stream_id: str) -> CameraOutput:
        """Hand out what is held back, without ending anything: :meth:`add` can go on from the saved state."""
        camera = self.cameras[stream_id]
        camera.feed.stop()
        return self._output(camera, camera.linker.release_held() if camera.linker else Linked())

    def _restore(self, camera: Camera) -> list[Event]:
        """Continue from the saved state, or after what was given out; says which frames may be missing."""
        try:
            loaded = load_state(camera.folder) if camera.folder is not None else None
            if loaded is not None and self._load(camera, *loaded):
                return self._announce(camera, loaded[0]["next_frame"], loaded[0]["saved_wall_s"])
            why = "no saved state to go on from"
        except Exception:
            LOGGER.exception("%s: its saved state cannot be read; new ids follow the old ones", camera.stream_id)
            why = "the saved state cannot be read"
        camera.linker = camera.tracker = None
        camera.phrases, camera.is_closed = PhraseTable(), False
        past = camera.marks.past
        if past.next_frame:
            camera.feed.resume(past.next_frame, past.pts_s, past.wall_s or time.time(), None)
            camera.restart = f"{why}; rows before frame {past.next_frame} may be missing"
            LOGGER.warning("%s: %s", camera.stream_id, camera.restart)
        return []

    def _load(self, camera: Camera, state: dict[str, Any], tracker_folder: Path) -> bool:
        """Take over a saved state, unless a later session has begun since."""
        if camera.marks.next_session > state["linker"]["session"] + 1:
            return False
        size = tuple(state["linker"]["source_size"])
        camera.linker = LiveLinker(camera.stream_id, (size[0], size[1]), self._linker_config)
        camera.linker.restore(state["linker"], time.monotonic())
        camera.linker.adopt(camera.marks.num_masklets, camera.marks.births(camera.linker.session))
        camera.phrases.restore(**state["phrases"])
        camera.stats.tracked = state["tracked"]
        camera.steps.extend(state["steps"])
        camera.tracker = self._make_tracker(camera.stream_id, camera.linker.session)
        try:
            camera.tracker.restore(tracker_folder)
        except Exception:
            LOGGER.exception("%s: the saved tracker cannot be read; ids start afresh", camera.stream_id)
            camera.pending = self._close_session(camera, "its state was lost")
        return True

    def _announce(self, camera: Camera, saved_frame: int, saved_wall_s: float) -> list[Event]:
        """Say what may be missing. The gap counts from the last frame, which may have come long after the save."""
        linker, past = camera.linker, camera.marks.past
        assert linker is not None  # restored just before
        next_frame = max(past.next_frame, saved_frame)
        pts_s, wall_s = max(linker.newest, (past.pts_s, past.wall_s), key=lambda seen: seen[1])
        camera.feed.resume(next_frame, pts_s, wall_s or saved_wall_s, linker.source_size)
        missing = f"rows of frames {saved_frame}..{next_frame - 1} may be missing" if next_frame > saved_frame else ""
        detail = "; ".join(p for p in ("the worker was restarted", missing) if p)
        LOGGER.warning("%s: %s", camera.stream_id, detail)
        camera.lost_wall_s = wall_s or saved_wall_s
        if camera.lost_wall_s < STARTED_S:  # what was lost since is the camera's or ours; loading models is ours
            camera.start_up_s = time.time() - STARTED_S
        return [linker.stream_event("stream_gap", time.time(), detail)]


def _joined(a: Linked, b: Linked) -> Linked:
    return Linked((*a.results, *b.results), (*a.events, *b.events), (*a.ended, *b.ended))
