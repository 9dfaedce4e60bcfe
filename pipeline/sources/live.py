"""Live sources: a thread per camera fills a small slot; whoever tracks pulls from it and never waits for a camera.

A camera is a state machine that the tracking loop turns by :meth:`LiveSource.poll`: it notices ends (a server that
dies is a normal end of input to FFmpeg) and stalls, connects again with jittered backoff and says what happened.
Frames are numbered on arrival, so what is dropped is a gap in ``frame``.
"""

from __future__ import annotations

import logging
import math
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import av
import cv2
import numpy as np

from configs.schema import LiveConfig
from pipeline.decode import resize
from pipeline.decode_table import Orientation
from pipeline.errors import SourceError
from pipeline.sources.live_clock import StreamClock
from pipeline.sources.live_open import PLAYLIST_PATIENCE_S, CameraSpec, UnfitSourceError, check_size, open_live
from pipeline.types import Frame, UInt8Array

LOGGER = logging.getLogger("masklet.live")
_FIRST_BACKOFF_S = 0.25
_MAX_BAD_PACKETS = 100
"""Packets in a row that do not decode before the connection is given up: garbage, not a glitch."""
_MAX_ABANDONED = 4
"""Connections that are stuck in a system call; further ones wait until one of them comes back."""


class State(Enum):
    """Of a camera."""

    CONNECTING = "connecting"
    LIVE = "live"
    WAITING = "waiting"
    """Until the next try."""
    ENDED = "ended"
    """A file was read to its end, or the camera was stopped."""
    FAILED = "failed"
    """Given up."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A decoded frame in a slot; converted only if it is taken."""

    picture: av.VideoFrame
    index: int
    pts_s: float
    wall_s: float
    """Unix time of arrival."""
    arrived_s: float
    """The same moment on the monotonic clock."""
    epoch: int
    """Which connection it came by."""
    num_silences: int = 0
    """Times so far that the camera said nothing for a while without losing its connection."""
    silence_s: float = 0.0
    """How long the last of them was."""


class Slot:
    """A bounded hand-over from the reader's thread to the tracking loop.

    ``oldest``: the frame that waited longest makes room; ``latest``: what arrives while it is full is dropped;
    ``wait``: the reader waits for room, and nothing is dropped here.
    """

    def __init__(self, policy: str, capacity: int, wake: threading.Event) -> None:
        self._policy, self._capacity, self._wake = policy, capacity, wake
        self._items: deque[Arrival] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self.num_dropped = 0
        self.is_blocked = False
        """Whether the reader waits for room: its silence is not the camera's."""

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Arrival, is_current: Callable[[], bool]) -> None:
        """Hand over a frame; returns at once except with ``wait``. ``is_current`` tells when to stop waiting."""
        with self._changed:
            if self._policy == "wait":
                self._wait_for_room(is_current)
            if self._is_closed or not is_current():
                return
            if len(self._items) >= self._capacity:
                self.num_dropped += 1
                if self._policy == "latest":
                    return
                self._items.popleft()
            self._items.append(item)
        self._wake.set()

    def _wait_for_room(self, is_current: Callable[[], bool]) -> None:
        self.is_blocked = True
        while len(self._items) >= self._capacity and not self._is_closed and is_current():
            self._changed.wait(0.5)
        self.is_blocked = False

    def take(self) -> Arrival | None:
        """The next frame in order, if one waits."""
        with self._changed:
            item = self._items.popleft() if self._items else None
            self._changed.notify_all()
        return item

    def close(self) -> None:
        """Drop what waits and let a waiting reader go."""
        with self._changed:
            self._is_closed = True
            self._items.clear()
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """One frame of a camera, ready to be tracked."""

    frame: Frame
    """At the detector's size."""
    wall_s: float
    """Unix time of arrival."""
    arrived_s: float
    """The same moment on the monotonic clock."""
    gap_s: float | None = None
    """On the first frame after a reconnection, a silence or a pause: seconds since the last frame before it."""
    picture: UInt8Array | None = None
    """RGB for people, at most ``picture_px`` long; only if somebody looks."""
    note: str = ""
    """What else changed with a reconnection."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What :meth:`LiveSource.poll` reports when the camera is gone, or silent though connected."""

    reason: str
    is_final: bool
    """It ended or was given up; no frame will come."""


@dataclass(slots=True)
class SourceCounters:
    """What happened so far."""

    arrived: int = 0
    corrupt: int = 0
    """Frames that the decoder calls damaged, or that rest on lost ones; they are not tracked."""
    reconnects: int = 0
    paused: int = 0
    """Frames that came while tracking was paused."""


class LiveSource:
    """One camera. Only the tracking loop calls it; the reader threads are its own.

    Args:
        spec: which one.
        config: timeouts, drop policy, limits.
        wake: set whenever a frame is ready or a connection ended.
        input_size: ``(h, w)`` of the detector's input, ``None`` for frames as they are.
        seed: of the jitter.
    """

    def __init__(
        self,
        spec: CameraSpec,
        config: LiveConfig,
        wake: threading.Event,
        *,
        input_size: tuple[int, int] | None = None,
        seed: int | None = None,
    ) -> None:
        self.spec, self._config, self._wake, self._input_size = spec, config, wake, input_size
        policy = "wait" if spec.is_file and not spec.realtime else config.drop
        self.slot = Slot(policy, config.queue_frames, wake)
        self.counters = SourceCounters()
        self.state = State.CONNECTING
        self.error = ""
        """Why the camera is not live, in one line without credentials."""
        self.source_size: tuple[int, int] | None = None
        """``(height, width)`` of the first frame; later ones of another size are scaled to it."""
        self._shown_size: tuple[int, int] | None = None
        self.wants_pictures = False
        self.is_paused = False
        self._clock = StreamClock()
        self._random = random.Random(seed)
        self._next_index = 0
        self._num_seen = 0
        """Frames of a file that an earlier process has seen."""
        self._reader: _Reader | None = None
        self._abandoned: list[_Reader] = []
        self._epoch = 0
        self._tries = 0
        self._try_at_s = 0.0
        self._gone_since_s: float | None = None
        """When the first of the tries failed that go on."""
        self._rhythm = Rhythm()
        self._num_silences, self._silence_s = 0, 0.0
        self._is_silent = False
        self._taken: Arrival | None = None
        self._was_paused = False
        self._lock = threading.Lock()

    # -- the loop's side ------------------------------------------------------------------------------------------

    def poll(self, now_s: float | None = None) -> Lost | None:
        """Turn the state machine; says so once when the camera is lost."""
        now_s = time.monotonic() if now_s is None else now_s
        if self.state in (State.ENDED, State.FAILED):
            return None
        reader = self._reader
        if reader is None:
            self._try_again(now_s)
            return None
        if reader.has_frames and self.state is State.CONNECTING:
            self.state, self.error, self._tries, self._gone_since_s = State.LIVE, "", 0, None
        if reader.ended.is_set():
            return None if len(self.slot) and self.spec.is_file else self._lose(reader.reason, reader.is_final, now_s)
        if self._is_stalled(reader, now_s):
            return self._lose(f"no frame for {self._patience_s(reader):g} s", False, now_s)
        return self._silence(reader, now_s)

    def _silence(self, reader: _Reader, now_s: float) -> Lost | None:
        """Says once that a camera is silent for longer than its rhythm explains, though not for long enough to give up
        its connection. Segments of a playlist and frames of a file come when they come.
        """
        if self.spec.is_file or reader.is_playlist or self.slot.is_blocked:
            return None
        with self._lock:
            silent_s = self._rhythm.silent_s(now_s)
            if silent_s is None or self._is_silent or not reader.has_frames:
                return None
            self._is_silent = True
        return Lost(f"no frame for {silent_s:.1f} s", False)

    def _patience_s(self, reader: _Reader) -> float:
        if reader.is_playlist:
            return max(self._config.stall_timeout_s, PLAYLIST_PATIENCE_S)
        return self._config.stall_timeout_s if reader.has_frames else self._config.open_timeout_s

    def _is_stalled(self, reader: _Reader, now_s: float) -> bool:
        silent_s = now_s - reader.last_sign_s
        return silent_s > self._patience_s(reader) and not self.slot.is_blocked

    def _lose(self, reason: str, is_final: bool, now_s: float) -> Lost:
        """Let go of the connection and plan the next."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.abandon()
            self._abandoned = [r for r in self._abandoned if r.is_alive()]
            if reader.is_alive():
                self._abandoned.append(reader)
        was_live = self.state is State.LIVE or (reader is not None and reader.has_frames)
        self.error = reason
        self._gone_since_s = now_s if self._gone_since_s is None else self._gone_since_s
        give_up = 0 < self._config.give_up_after_s < now_s - self._gone_since_s
        if is_final or give_up:
            ended = self.spec.is_file and reader is not None and reader.has_frames and reader.reason == ""
            self.state = State.ENDED if ended else State.FAILED
            return Lost(reason, True)
        log = LOGGER.warning if was_live or self._tries == 0 else LOGGER.debug
        log("%s: %s; connecting again (%s)", self.spec.stream_id, reason, self.spec.shown)
        self.state = State.WAITING
        self._try_at_s = now_s + self._backoff_s()
        return Lost(reason, False)

    def _backoff_s(self) -> float:
        """Doubling from a quarter of a second to the cap, half of it random, so that cameras do not come in step."""
        longest_s = min(self._config.backoff_cap_s, _FIRST_BACKOFF_S * 2 ** min(self._tries, 16))
        self._tries += 1
        return float(longest_s * self._random.uniform(0.5, 1.0))

    def _try_again(self, now_s: float) -> None:
        stuck = sum(r.is_alive() for r in self._abandoned)
        if now_s < self._try_at_s or stuck >= _MAX_ABANDONED:
            return
        self.state = State.CONNECTING
        self._epoch += 1
        self._reader = _Reader(self, self._epoch)
        self._reader.start()

    def take(self) -> LiveFrame | None:
        """The next frame, if one waits; what comes during a pause is let go."""
        arrival = self.slot.take()
        if arrival is None:
            return None
        if self.is_paused:
            self.counters.paused += 1
            self._was_paused = True
            return None
        before, self._taken = self._taken, arrival
        gap_s = self._gap_s(before, arrival) if before is not None else None
        self._was_paused = False
        return self._converted(arrival, gap_s)

    def _gap_s(self, before: Arrival, arrival: Arrival) -> float | None:
        if before.epoch != arrival.epoch or self._was_paused:
            self.counters.reconnects += before.epoch != arrival.epoch
            return arrival.arrived_s - before.arrived_s
        return arrival.silence_s if arrival.num_silences != before.num_silences else None

    def _converted(self, arrival: Arrival, gap_s: float | None) -> LiveFrame:
        orientation = Orientation.of(arrival.picture)
        height, width = arrival.picture.height, arrival.picture.width
        upright = (width, height) if orientation.transpose else (height, width)
        note = ""
        if self.source_size is None:
            self.source_size = self._shown_size = upright
        if self.source_size != upright:
            height, width = self.source_size[::-1] if orientation.transpose else self.source_size
        if self._shown_size != upright:
            self._shown_size = upright
            rows = f"{self.source_size[1]}x{self.source_size[0]}"
            note = f"the picture is {upright[1]}x{upright[0]} now, rows stay {rows}"
        raw = arrival.picture.to_ndarray(format="rgb24", width=width, height=height)
        image = orientation.apply(np.asarray(raw, np.uint8))
        picture = shrunk(image, self._config.picture_px) if self.wants_pictures else None
        sized = resize(image, self._input_size) if self._input_size else image
        frame = Frame(self.spec.stream_id, arrival.index, arrival.pts_s, sized, self.source_size)
        return LiveFrame(frame, arrival.wall_s, arrival.arrived_s, gap_s, picture, note)

    def stop(self) -> None:
        """Let the camera go; returns at once, its thread ends when FFmpeg lets it."""
        if self.state is not State.FAILED:
            self.state = State.ENDED
        self.slot.close()
        if self._reader is not None:
            self._reader.abandon()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads of a stopped camera."""
        until_s = time.monotonic() + timeout_s
        for reader in [*self._abandoned, *([self._reader] if self._reader else [])]:
            reader.join(max(until_s - time.monotonic(), 0.0))

    @property
    def num_seen(self) -> int:
        """Frames at the beginning of a file that are passed over."""
        return self._num_seen

    @property
    def next_index(self) -> int:
        """Number of the frame that arrives next."""
        return self._next_index

    def resume(self, next_index: int, pts_s: float, wall_s: float, source_size: tuple[int, int] | None) -> None:
        """Go on from where an earlier process was, before the first :meth:`poll`; a file after its frames so far."""
        now_s = time.monotonic()
        before_s = now_s - max(time.time() - wall_s, 0.0)
        self._next_index, self.source_size, self._shown_size = next_index, source_size, source_size
        self._num_seen = next_index if self.spec.is_file else 0
        self._clock.resume(pts_s, before_s)
        self._taken = Arrival(av.VideoFrame(2, 2), next_index - 1, pts_s, wall_s, before_s, 0)

    # -- the reader's side ----------------------------------------------------------------------------------------

    def arrive(self, picture: av.VideoFrame, reader: _Reader) -> None:
        """Number and stamp a decoded frame and put it in the slot (called by the reader)."""
        with self._lock:
            if reader.is_abandoned:
                return
            now_s = time.monotonic()
            pts_s = _pts_s(picture)
            # A file's own clock is the only one that counts; it may be read faster or slower than it plays.
            clock_s = pts_s if self.spec.is_file and pts_s is not None else now_s
            stamped_s = self._clock.stamp(pts_s, clock_s, reader.epoch)
            if not self.spec.is_file:
                self._note_silence(stamped_s if reader.is_playlist else now_s, reader.epoch)
            silences = (self._num_silences, self._silence_s)
            arrival = Arrival(picture, self._next_index, stamped_s, time.time(), now_s, reader.epoch, *silences)
            self._next_index += 1
            self.counters.arrived += 1
        self.slot.put(arrival, lambda: not reader.is_abandoned)
        with self._lock:
            if not reader.is_playlist and not reader.is_abandoned:
                self._rhythm.is_free(time.monotonic())

    def _note_silence(self, at_s: float, epoch: int) -> None:
        silent_s = self._rhythm.came(at_s, epoch, was_silent=self._is_silent)
        self._is_silent = False
        if silent_s is not None:
            self._num_silences += 1
            self._silence_s = silent_s

    def count_corrupt(self) -> None:
        """A frame was damaged: it gets its number and nobody sees it."""
        with self._lock:
            self.counters.corrupt += 1
            self.counters.arrived += 1
            self._next_index += 1

    def wake(self) -> None:
        """Tell the loop that something happened."""
        self._wake.set()


class Rhythm:
    """How often frames come, so that a silence can be told from a slow camera. Called under the source's lock."""

    _SHORTEST_S, _FRAME_TIMES = 1.0, 5

    def __init__(self) -> None:
        self._intervals: deque[float] = deque(maxlen=16)
        self._last_s: float | None = None
        self._epoch = 0

    @property
    def longest_s(self) -> float:
        """What is longer is a silence; endless until a few frames have come."""
        if len(self._intervals) < 3:
            return math.inf
        return max(self._SHORTEST_S, self._FRAME_TIMES * statistics.median(self._intervals))

    def came(self, at_s: float, epoch: int, *, was_silent: bool) -> float | None:
        """A frame came; how long the silence before it was, if it was one. Other connections have other rhythms."""
        last_s, self._last_s = self._last_s, at_s
        if last_s is None or epoch != self._epoch:
            self._epoch = epoch
            self._intervals.clear()
            return None
        interval_s = at_s - last_s
        if was_silent or interval_s > self.longest_s:
            return interval_s
        self._intervals.append(interval_s)
        return None

    def is_free(self, at_s: float) -> None:
        """The frame was handed over: until now it was us who were silent."""
        self._last_s = at_s

    def silent_s(self, now_s: float) -> float | None:
        """How long the present silence is, if it is one."""
        silent_s = now_s - self._last_s if self._last_s is not None else 0.0
        return silent_s if silent_s > self.longest_s else None


def read_frames(
    spec: CameraSpec, config: LiveConfig, indices: Sequence[int], input_size: tuple[int, int] | None
) -> Iterator[Frame]:
    """These frames of a file, as a :class:`LiveSource` would give them; fewer where it ends or breaks off."""
    wake, waiting = threading.Event(), set(indices)
    source = LiveSource(replace(spec, realtime=False), config, wake, input_size=input_size)
    try:
        while waiting and (source.state not in (State.ENDED, State.FAILED) or len(source.slot)):
            source.poll()
            live = source.take()
            if live is None:
                wake.wait(0.01)
            elif live.frame.index in waiting:
                waiting.remove(live.frame.index)
                yield live.frame
    finally:
        source.stop()
        source.join(1.0)


class _Reader(threading.Thread):
    """One connection: opens, decodes, hands over; ends by itself or is abandoned."""

    def __init__(self, source: LiveSource, epoch: int) -> None:
        super().__init__(name=f"camera-{source.spec.stream_id}-{epoch}", daemon=True)
        self._source, self.epoch = source, epoch
        self.has_frames = False
        self.is_abandoned = False
        self.ended = threading.Event()
        self.reason = ""
        self.is_final = False
        self.is_playlist = False
        """Frames come a segment at a time and are paced here."""
        self.last_sign_s = time.monotonic()

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self.is_abandoned = True

    def run(self) -> None:
        """Read until the end, an error, or until abandoned."""
        spec = self._source.spec
        try:
            self._read()
            self.reason, self.is_final = ("", True) if spec.is_file else ("the stream ended", False)
        except SourceError as error:
            # A camera that has just been switched on, or plugged in again, may do better the next time.
            self.reason, self.is_final = str(error), spec.is_file or isinstance(error, UnfitSourceError)
        except (av.error.ExitError, TimeoutError):
            self.reason = f"no data for {self._source._config.stall_timeout_s:g} s"
        except (av.error.FFmpegError, OSError, ValueError, EOFError) as error:
            self.reason = one_line(error)
            self.is_final = spec.is_file
        except Exception as error:
            LOGGER.exception("%s: the reader failed", spec.stream_id)
            self.reason = type(error).__name__
        self.ended.set()
        self._source.wake()

    def _read(self) -> None:
        source = self._source
        with open_live(source.spec, source._config) as (container, stream):
            self.last_sign_s = time.monotonic()
            pace, loss = self._pace(container.format.name), _Loss()
            for picture in self._unseen(self._decoded(container, stream)):
                if pace is not None:
                    pace.wait(_pts_s(picture))
                if self.is_abandoned:
                    return
                check_size(picture.width, picture.height, source.spec, source._config)
                if picture.is_corrupt:  # no sign of life: the watchdog ends what gives nothing else
                    source.count_corrupt()
                    continue
                self.last_sign_s = time.monotonic()
                if not source.spec.is_file and loss.shows_in(picture):
                    source.count_corrupt()
                    continue
                self.has_frames = True
                source.arrive(picture, self)
                self.last_sign_s = time.monotonic()

    def _pace(self, format_name: str) -> _Pace | _PlaylistPace | None:
        spec = self._source.spec
        if spec.is_file:
            return _Pace() if spec.realtime else None
        self.is_playlist = format_name == "hls"
        return _PlaylistPace() if self.is_playlist else None

    def _unseen(self, pictures: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """All but those that an earlier process has seen."""
        for number, picture in enumerate(pictures):
            if number >= self._source.num_seen:
                yield picture
            else:
                self.last_sign_s = time.monotonic()

    def _decoded(self, container: Any, stream: Any) -> Iterator[av.VideoFrame]:
        """Decoded frames; a packet that does not decode is passed over, many in a row are an error."""
        bad = 0
        for packet in container.demux(stream):
            if self.is_abandoned:
                return
            try:
                pictures = packet.decode()
            except av.error.FFmpegError as error:
                bad += 1
                if bad > _MAX_BAD_PACKETS:
                    raise av.error.InvalidDataError(error.errno, "nothing decodes any more") from None
                continue
            if pictures:
                bad = 0
            yield from pictures


class _Loss:
    """Which frames of a connection rest on lost ones: after a hole, all up to the next key frame.

    A decoder builds on the pictures it has, so objects smear and show twice, and it calls none of that corrupt. The
    same rule as GStreamer's ``wait-for-keyframe`` of ``rtph264depay``, told from time, since FFmpeg hides what was
    missing. A camera that merely paused loses at most ``_LONGEST_S`` of frames by it.
    """

    _SHORTEST_HOLE_S, _HOLE_STEPS, _LONGEST_S = 0.3, 4.0, 2.0

    def __init__(self) -> None:
        self._last_pts_s: float | None = None
        self._usual_step_s = 0.0
        self._doubt_until_s = -math.inf

    def shows_in(self, picture: av.VideoFrame) -> bool:
        """Whether this frame, the next of the connection, may show what was lost before it."""
        pts_s = _pts_s(picture)
        if pts_s is None:
            return False
        step_s = pts_s - self._last_pts_s if self._last_pts_s is not None else 0.0
        self._last_pts_s = pts_s
        if picture.key_frame or step_s < 0:
            self._doubt_until_s = -math.inf
        elif self._usual_step_s and step_s > max(self._HOLE_STEPS * self._usual_step_s, self._SHORTEST_HOLE_S):
            self._doubt_until_s = pts_s + self._LONGEST_S
        if step_s > 0:
            self._usual_step_s += (step_s - self._usual_step_s) * (0.1 if self._usual_step_s else 1.0)
        return pts_s < self._doubt_until_s


class _Pace:
    """Plays a file at its own speed."""

    def __init__(self) -> None:
        self._start: tuple[float, float] | None = None

    def wait(self, pts_s: float | None) -> None:
        """Sleep until this moment of the file has come."""
        now_s = time.monotonic()
        if pts_s is None:
            return
        if self._start is None:
            self._start = (pts_s, now_s)
        time.sleep(max(0.0, self._start[1] + pts_s - self._start[0] - now_s))


class _PlaylistPace:
    """Spreads the frames of segments, which come in bursts, over the time they show.

    A little faster than they show, so that what a late segment added to the lag is made up for again and the lag stays
    what the playlist makes it: about a segment.
    """

    _SPEED, _LONGEST_S = 1.05, 2.0

    def __init__(self) -> None:
        self._last_pts_s: float | None = None
        self._due_s = 0.0

    def wait(self, pts_s: float | None) -> None:
        """Sleep until it is this frame's turn; jumps of the clock are not waited for."""
        now_s = time.monotonic()
        last_pts_s, self._last_pts_s = self._last_pts_s, pts_s
        step_s = pts_s - last_pts_s if pts_s is not None and last_pts_s is not None else 0.0
        if not 0.0 < step_s <= self._LONGEST_S:
            self._due_s = now_s
            return
        self._due_s = max(self._due_s + step_s / self._SPEED, now_s - step_s)
        time.sleep(max(0.0, self._due_s - now_s))


def _pts_s(picture: av.VideoFrame) -> float | None:
    base = picture.time_base
    return None if picture.pts is None or base is None else picture.pts * base.numerator / base.denominator


def one_line(error: BaseException) -> str:
    """Why a connection failed, without the address (it may hold a password)."""
    text = getattr(error, "strerror", None) or type(error).__name__
    return " ".join(str(text).split())


def shrunk(image: UInt8Array, long_side_px: int) -> UInt8Array:
    """``image`` scaled down so that its long side is at most ``long_side_px``."""
    height, width = image.shape[:2]
    scale = long_side_px / max(height, width)
    if scale >= 1:
        return image
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
