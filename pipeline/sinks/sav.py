"""SA-V: ``sav/VIDEO_auto.json``, frame-major run lengths with statistics per masklet.

SA-V annotates every fourth frame of 24 per second; here every source frame is a row, so read it with
``annot_sample_rate=1``. Absent masklets are zero-area run lengths, as in SA-V. ``masklet_prompt`` and ``masklet_score``
are keys of ours.

Schema: sam2 ``sav_dataset/README.md`` and its example ``sav_000001_auto.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.sinks.jsonio import write_object
from pipeline.sinks.reading import CheckedRun, rate_of, short
from pipeline.sinks.segmentation import from_runs
from pipeline.store import VideoEntry

SMALL_PX, LARGE_PX = 32**2, 96**2
"""Borders of ``masklet_size_bucket`` (COCO's)."""


@dataclass(slots=True)
class _Life:
    """What SA-V says of a masklet, gathered while its rows stream by."""

    prompt: str
    first: int
    visible: int = 0
    area_px: int = 0
    last: int = -1
    changes: int = 0

    def see(self, frame: int, area_px: int) -> None:
        if self.visible and frame != self.last + 1:
            self.changes += 2
        self.visible, self.area_px, self.last = self.visible + 1, self.area_px + area_px, frame


class SAV:
    """Writes one JSON file per video."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """Two passes over the rows: statistics, then masks."""
        for entry in run.videos:
            write_object(folder / f"{entry.video_id}_auto.json", _members(run, entry))
        return ["every frame is a row: read with annot_sample_rate=1 (SA-V itself has every fourth)"]


def _members(run: CheckedRun, entry: VideoEntry) -> dict[str, Any]:
    lives = _lives(run, entry)
    resolution = float(entry.width * entry.height)
    ordered = [lives[i] for i in sorted(lives)]
    sizes = [life.area_px / life.visible for life in ordered]
    duration_s = entry.duration_s if entry.duration_s is not None else float(entry.num_frames / rate_of(entry))
    return {
        "video_id": entry.video_id,
        "video_duration": duration_s,
        "video_frame_count": float(entry.num_frames),
        "video_height": float(entry.height),
        "video_width": float(entry.width),
        "video_resolution": resolution,
        "video_environment": "",
        "video_split": "",
        "masklet": _frames(run, entry, sorted(lives)),
        "masklet_id": sorted(lives),
        "masklet_size_rel": [size / resolution for size in sizes],
        "masklet_size_abs": sizes,
        "masklet_size_bucket": [_bucket(size) for size in sizes],
        "masklet_visibility_changes": [life.changes + (life.last < entry.num_frames - 1) for life in ordered],
        "masklet_first_appeared_frame": [float(life.first) for life in ordered],
        "masklet_frame_count": [entry.num_frames] * len(ordered),
        "masklet_edited_frame_count": [0] * len(ordered),
        "masklet_type": ["auto"] * len(ordered),
        "masklet_stability_score": None,
        "masklet_num": len(ordered),
        "masklet_prompt": [life.prompt for life in ordered],
        "masklet_score": _scores(run, entry),
    }


def _bucket(size_px: float) -> str:
    if size_px < SMALL_PX:
        return "small"
    return "medium" if size_px < LARGE_PX else "large"


def _lives(run: CheckedRun, entry: VideoEntry) -> dict[int, _Life]:
    lives: dict[int, _Life] = {}
    for result in run.frames(entry):
        rows = zip(result.masklet_id.tolist(), result.prompt, result.area_px().tolist(), strict=True)
        for masklet_id, prompt, area_px in rows:
            lives.setdefault(masklet_id, _Life(prompt, result.index)).see(result.index, area_px)
    return lives


def _frames(run: CheckedRun, entry: VideoEntry, ids: list[int]) -> Iterator[list[dict[str, Any]]]:
    """A row of masks for every source frame."""
    size = (entry.height, entry.width)
    empty = {"size": list(size), "counts": from_runs([size[0] * size[1]], size).counts.decode("ascii")}
    nothing = [empty] * len(ids)
    place = {masklet_id: i for i, masklet_id in enumerate(ids)}
    following = 0
    for result in run.frames(entry):
        yield from (nothing for _ in range(following, result.index))
        row = list(nothing)
        for masklet_id, rle in zip(result.masklet_id.tolist(), result.rles, strict=True):
            row[place[masklet_id]] = {"size": list(rle.size), "counts": rle.counts.decode("ascii")}
        yield row
        following = result.index + 1
    yield from (nothing for _ in range(following, entry.num_frames))


def _scores(run: CheckedRun, entry: VideoEntry) -> Iterator[dict[str, Any]]:
    """Scores of the frames that have any."""
    for result in run.frames(entry):
        if len(result):
            scores = dict(zip(map(str, result.masklet_id.tolist()), map(short, result.score), strict=True))
            yield {"frame": result.index, "scores": scores}
