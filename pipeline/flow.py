"""The one flow, as generators feeding generators: frames -> detections -> tracks -> masklets."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from pipeline.link import MaskletNumbering, ReleaseBuffer
from pipeline.results import FrameResult
from pipeline.telemetry import StageTimes
from pipeline.types import Detections, Detector, Frame, FrameTracks, Prompts, Tracker

T = TypeVar("T")


def batched(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Lists of up to ``size`` consecutive frames."""
    batch: list[Frame] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def detect(
    frames: Iterable[Frame], detector: Detector, prompts: Prompts, batch_frames: int, times: StageTimes
) -> Iterator[tuple[Frame, Detections]]:
    """Each frame with what was found on it; the detector runs ahead by a batch, and begins the next one if it can."""
    batches = batched(times.waiting("decode", frames), batch_frames)
    prefetch = getattr(detector, "prefetch", None) if getattr(detector, "looks_ahead", False) else None
    for batch, following in with_next(batches) if prefetch else ((batch, None) for batch in batches):
        with times.stage("detect"):
            if prefetch and following:
                prefetch(following)
            found = detector.detect(batch, prompts)
        yield from zip(batch, found, strict=True)


def with_next(items: Iterable[T]) -> Iterator[tuple[T, T | None]]:
    """Each item with the one after it; an error of ``items`` waits until the last one before it was handed out."""
    iterator = iter(items)
    error: Exception | None = None

    def pull() -> T | None:
        nonlocal error
        try:
            return next(iterator, None)
        except Exception as caught:
            error = caught
            return None

    item = pull()
    while item is not None:
        following = pull()
        yield item, following
        item = following
    if error is not None:
        raise error


@dataclass(eq=False, slots=True)
class _Stream:
    """One stream's frames on their way through a joint detector."""

    frames: Iterator[Frame]
    times: StageTimes
    pulled: list[Frame] = field(default_factory=list)
    """Decoded, not yet looked at."""
    ready: deque[tuple[Frame, Detections]] = field(default_factory=deque)
    error: BaseException | None = None
    """What its source failed with; raised when its own turn comes."""
    is_over: bool = False
    is_new: bool = True
    """No call so far was its own."""

    def pull(self, count: int) -> None:
        """Have up to ``count`` frames to look at."""
        while len(self.pulled) < count and not self.is_over:
            with self.times.stage("decode"):
                try:
                    self.pulled.append(next(self.frames))
                except StopIteration:
                    self.is_over = True
                except Exception as error:
                    self.error, self.is_over = error, True


class JointDetection:
    """Frames of several streams in the same detector calls, for streams that take turns in one thread.

    Whoever runs out of detections takes along the next frames of all others that have run out too; a call has up to
    ``batch_frames`` frames, an equal share of each stream that still has any, and at least one of each. A source or a
    detector that fails, fails for the stream whose turn it is; the frames of the others wait for theirs.

    Args:
        num_streams: how many there may be; whoever begins takes its share of so many, to get in step with those that
            have yet to begin.
    """

    def __init__(self, detector: Detector, batch_frames: int, num_streams: int) -> None:
        self._detector, self._batch_frames = detector, batch_frames
        self._first_share = max(1, batch_frames // num_streams)
        self._streams: list[_Stream] = []

    def detect(
        self, frames: Iterable[Frame], prompts: Prompts, times: StageTimes
    ) -> Iterator[tuple[Frame, Detections]]:
        """As :func:`detect`, for one of the streams; all of them look for the same phrases."""
        stream = _Stream(iter(frames), times)
        self._streams.append(stream)
        try:
            while stream.ready or self._look(stream, prompts):
                yield stream.ready.popleft()
        finally:
            self._streams.remove(stream)

    def _look(self, asking: _Stream, prompts: Prompts) -> bool:
        """One joint call; false when the asking stream has no more frames."""
        share = self._share(asking)
        asking.pull(share)
        if not asking.pulled:
            if asking.error is not None:
                raise asking.error
            return False
        group = [asking, *(s for s in self._streams if s is not asking and not s.ready)]
        for stream in group:
            stream.pull(share)
        batch = [frame for stream in group for frame in stream.pulled]
        started = time.perf_counter()
        found = iter(self._detector.detect(batch, prompts))
        per_frame_s = (time.perf_counter() - started) / len(batch)
        for stream in group:
            stream.times.add("detect", per_frame_s * len(stream.pulled))
            stream.ready.extend((frame, next(found)) for frame in stream.pulled)
            stream.pulled.clear()
        asking.is_new = False
        return True

    def _share(self, asking: _Stream) -> int:
        """Frames of each stream in a call."""
        if asking.is_new:
            return self._first_share
        going_on = sum(not stream.is_over for stream in self._streams)
        return max(1, self._batch_frames // max(going_on, 1))


def track(
    detected: Iterable[tuple[Frame, Detections | None]], tracker: Tracker, times: StageTimes
) -> Iterator[FrameTracks]:
    """The objects followed on each frame, in order."""
    for frame, detections in detected:
        with times.stage("track"):
            tracks = tracker.step(frame, detections)
        yield tracks


def release(tracks: Iterable[FrameTracks], buffer: ReleaseBuffer, numbering: MaskletNumbering) -> Iterator[FrameResult]:
    """Confirmed masklets, every frame exactly once, late by the buffer's delay."""
    for held in tracks:
        for final in buffer.push(held):
            yield numbering.number(final)
    for final in buffer.flush():
        yield numbering.number(final)
