"""Rerun: ``rerun/VIDEO.rrd``, a recording with the masklets as a label image, boxes and scores over time.

Written with ``rerun-sdk`` (the extra ``rerun``), which streams to the file. Time lines: ``frame`` and ``pts``.
Recordings are not forward compatible: open them with the Rerun version that wrote them. The video is not copied in.

Schema: Rerun's archetypes ``AnnotationContext``, ``SegmentationImage``, ``Boxes2D``, ``Scalars``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rerun as rr

from pipeline.results import FrameResult
from pipeline.sinks.flatten import label_image, overlap_notes
from pipeline.sinks.reading import CheckedRun
from pipeline.store import VideoEntry

MAX_ID = 65_535
"""Rerun's class ids have 16 bits."""


class Rerun:
    """Writes a recording per video."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """Frame by frame, as the rows stream by."""
        totals = np.zeros(3, np.int64)
        for entry in run.videos:
            recording = rr.RecordingStream("masklet", recording_id=entry.video_id)
            recording.save(folder / f"{entry.video_id}.rrd")
            totals += _record(recording, run, entry)
            recording.flush()
            recording.disconnect()
        contested, hidden, unnumbered = totals.tolist()
        notes = overlap_notes(contested, hidden)
        if unnumbered:
            notes.append(f"{unnumbered} masks of masklets above {MAX_ID} are left out: Rerun's ids have 16 bits")
        return notes


def _record(recording: rr.RecordingStream, run: CheckedRun, entry: VideoEntry) -> list[int]:
    """Log one video; return what was lost: contested pixels, hidden masks, masks without a number."""
    _describe(recording, run, entry)
    contested = hidden = unnumbered = 0
    following = 0
    for result in run.frames(entry):
        if result.index > following:
            _log_nothing(recording, following)
        labels, clashes = label_image(result)
        contested += clashes
        hidden += len(result) - len(np.intersect1d(labels, result.masklet_id))
        unnumbered += int((result.masklet_id > MAX_ID).sum())
        _log(recording, result, np.where(labels > MAX_ID, 0, labels).astype(np.uint16))
        following = result.index + 1
    if following < entry.num_frames:
        _log_nothing(recording, following)
    return [contested, hidden, unnumbered]


def _describe(recording: rr.RecordingStream, run: CheckedRun, entry: VideoEntry) -> None:
    """Names of the ids, static and thus known before the first frame."""
    names: dict[int, str] = {}
    for result in run.frames(entry):
        names |= dict(zip(result.masklet_id.tolist(), result.prompt, strict=True))
    infos = [rr.AnnotationInfo(id=i, label=f"{names[i]} {i}") for i in sorted(names) if i <= MAX_ID]
    recording.log("video", rr.AnnotationContext(infos), static=True)


def _log(
    recording: rr.RecordingStream, result: FrameResult, labels: np.ndarray[tuple[int, int], np.dtype[np.uint16]]
) -> None:
    recording.set_time("frame", sequence=result.index)
    recording.set_time("pts", duration=result.pts_s)
    recording.log("video/masks", rr.SegmentationImage(labels))
    recording.log(
        "video/boxes",
        rr.Boxes2D(
            mins=result.xyxy[:, :2],
            sizes=result.xyxy[:, 2:] - result.xyxy[:, :2],
            class_ids=np.minimum(result.masklet_id, MAX_ID).astype(np.uint16),
            labels=[f"{prompt} {i}" for prompt, i in zip(result.prompt, result.masklet_id.tolist(), strict=True)],
        ),
    )
    for masklet_id, score in zip(result.masklet_id.tolist(), result.score.tolist(), strict=True):
        recording.log(f"score/{masklet_id}", rr.Scalars(score))


def _log_nothing(recording: rr.RecordingStream, frame: int) -> None:
    """End what was shown: in Rerun the last value stays until another is logged."""
    recording.reset_time()
    recording.set_time("frame", sequence=frame)
    for path in ("video/masks", "video/boxes"):
        recording.log(path, rr.Clear(recursive=False))
