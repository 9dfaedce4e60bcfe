"""The one flow, as generators feeding generators: frames -> detections -> tracks -> masklets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.link import MaskletNumbering, ReleaseBuffer
from pipeline.results import FrameResult
from pipeline.telemetry import StageTimes
from pipeline.types import Detections, Detector, Frame, FrameTracks, Prompts, Tracker


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
    """Each frame with what was found on it; the detector runs ahead by one batch."""
    for batch in batched(times.waiting("decode", frames), batch_frames):
        with times.stage("detect"):
            found = detector.detect(batch, prompts)
        yield from zip(batch, found, strict=True)


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
