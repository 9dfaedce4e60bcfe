"""supervision's ``JSONSink`` layout: ``supervision/VIDEO.json``, an array with one object per detection and frame.

The rows are made by supervision itself; its sink would hold them all in memory until it is closed, so they are written
here as they come. Beside its own columns stand ``frame_index``, ``pts_s``, ``prompt`` and the mask as run lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import supervision as sv

from pipeline.results import FrameResult
from pipeline.sinks.jsonio import write_array
from pipeline.sinks.reading import Categories, CheckedRun, short
from pipeline.store import VideoEntry


class Supervision:
    """Writes one JSON array per video."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """``class_id`` counts the run's phrases from 0."""
        for entry in run.videos:
            write_array(folder / f"{entry.video_id}.json", _rows(run, entry, run.categories()))
        return []


def _rows(run: CheckedRun, entry: VideoEntry, categories: Categories) -> Iterator[dict[str, Any]]:
    for result in run.frames(entry):
        for row, score in zip(
            sv.JSONSink.parse_detection_data(*_detections(result, categories)), result.score, strict=True
        ):
            yield {**row, "confidence": short(score)}


def _detections(result: FrameResult, categories: Categories) -> tuple[sv.Detections, dict[str, Any]]:
    """The frame's detections without pixels, and what goes beside them. Lists have one element per detection."""
    detections = sv.Detections(
        xyxy=result.xyxy.reshape(-1, 4),
        confidence=result.score,
        class_id=np.array([categories.id_of(p) - 1 for p in result.prompt], int),
        tracker_id=result.masklet_id.astype(int),
    )
    beside = {
        "frame_index": result.index,
        "pts_s": result.pts_s,
        "prompt": list(result.prompt),
        "rle": [{"size": list(r.size), "counts": r.counts.decode("ascii")} for r in result.rles],
    }
    return detections, beside
