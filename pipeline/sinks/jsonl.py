"""JSON lines: ``jsonl/VIDEO.jsonl``, a header, then one line per frame with objects.

The header is ``{"type": "header", "schema": 1, ...}``, a frame ``{"type": "frame", "frame", "pts_s", "objects"}``.
A file that was cut off is a valid prefix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.results import FrameResult
from pipeline.sinks.jsonio import dumps
from pipeline.sinks.reading import CheckedRun, short
from pipeline.store import VideoEntry

SCHEMA = 1
"""Raised when a reader of the old lines would misread the new ones."""


class JsonLines:
    """Writes one file per video."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """The lines of each video, as they stream by."""
        for entry in run.videos:
            with open(folder / f"{entry.video_id}.jsonl", "w", encoding="utf-8", newline="\n") as file:
                file.write(dumps(header(entry, run.prompts)) + "\n")
                for result in run.frames(entry):
                    file.write(dumps(frame_line(result)) + "\n")
        return []


def header(entry: VideoEntry, prompts: list[str]) -> dict[str, Any]:
    """The first line: what the others refer to."""
    return {
        "type": "header",
        "schema": SCHEMA,
        "video_id": entry.video_id,
        "uri": entry.uri,
        "width": entry.width,
        "height": entry.height,
        "fps": entry.fps,
        "num_frames": entry.num_frames,
        "prompts": prompts,
    }


def frame_line(result: FrameResult) -> dict[str, Any]:
    """One frame."""
    areas = result.area_px().tolist()
    return {
        "type": "frame",
        "frame": result.index,
        "pts_s": result.pts_s,
        "objects": [
            {
                "masklet_id": masklet_id,
                "prompt": result.prompt[i],
                "score": short(result.score[i]),
                "xyxy": [short(v) for v in result.xyxy[i]],
                "area_px": areas[i],
                "rle": {"size": list(result.rles[i].size), "counts": result.rles[i].counts.decode("ascii")},
            }
            for i, masklet_id in enumerate(result.masklet_id.tolist())
        ],
    }
