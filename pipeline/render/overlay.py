"""The annotated video of a run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import decode
from pipeline.errors import SourceError, UsageError
from pipeline.render import frames as frame_ops
from pipeline.render.draw import STYLES, Drawer, Scale, check_style
from pipeline.render.encode import Mp4Writer
from pipeline.render.labels import Chip, chip, paste_chip, shorten
from pipeline.types import UInt8Array

if TYPE_CHECKING:
    from pipeline.store import Run

LEAD_IN_S = 10.0
"""A source that starts later than this (a piece of a broadcast, or ``--start``) is moved to start at zero."""
_TITLE_BACKGROUND = (24, 24, 27)


def render(
    run: Run,
    out: Path,
    *,
    style: Collection[str] = STYLES,
    video_id: str | None = None,
    beside: Run | None = None,
) -> Path:
    """Write the video with its masklets drawn on: H.264 MP4, one picture per tracked frame, the source's own times.

    One frame is in memory at a time. ``beside``: a second run of the same video, drawn to the right of the first.

    Raises:
        UsageError: an unknown style or video, or a second run of another video.
        SourceError: the source is gone or is another file now.
        RunError: the run is damaged.
    """
    entry = run.video(video_id)
    runs = [run] if beside is None else [run, beside]
    ids = [entry.video_id] + [_counterpart(run, other, entry.video_id) for other in runs[1:]]
    check_style(style)
    table = frame_ops.open_source(entry)
    tracked = frame_ops.tracked_frames(run, entry, table)
    drawers = [Drawer((entry.height, entry.width), style) for _ in runs]
    titles = [_title(r, Scale.of((entry.height, entry.width)).font_px) for r in runs] if beside else []
    lanes = [frame_ops.Lane(r.frames(i)) for r, i in zip(runs, ids, strict=True)]
    shift = _shift_ticks(table, tracked)
    count = 0
    with Mp4Writer(out, time_base=table.time_base, fps=table.info.fps) as writer:
        for frame in frame_ops.pictures(table, tracked):
            panes = [np.array(frame.image) for _ in runs]
            for pane, lane, drawer in zip(panes, lanes, drawers, strict=True):
                drawer.draw(pane, lane.at(frame))
            for pane, title in zip(panes, titles, strict=False):
                margin = title.size[1] // 3
                paste_chip(pane, title, margin, pane.shape[0] - title.size[1] - margin)
            writer.write(_join(panes), int(table.pts[frame.index]) - shift)
            count += 1
        if not count or (count < len(tracked) and entry.status == "done"):
            raise SourceError(f"only {count} of {len(tracked)} tracked frames can be read", entry.uri)
    return out


def _counterpart(run: Run, other: Run, video_id: str) -> str:
    """The same video in another run: by its id, or the only one there; sizes must agree."""
    mine = run.video(video_id)
    named = any(v.video_id == video_id for v in other.videos)
    theirs = other.video(video_id if named else None)
    if (mine.width, mine.height) != (theirs.width, theirs.height):
        raise UsageError(
            f"{video_id} is {mine.width}x{mine.height} in one run and {theirs.width}x{theirs.height} in the other",
            str(other.folder),
            "two runs of the same video can stand side by side",
        )
    return theirs.video_id


def _title(run: Run, font_px: int) -> Chip:
    return chip(shorten(run.folder.resolve().name, 40), font_px, _TITLE_BACKGROUND)


def _shift_ticks(table: decode.FrameTable, tracked: range) -> int:
    """What to take off every time stamp: nothing, unless the first one is negative or far from zero."""
    first = int(table.pts[tracked.start]) if tracked else 0
    return 0 if 0 <= first * table.time_base <= LEAD_IN_S else first


def _join(panes: list[UInt8Array]) -> UInt8Array:
    """Panes side by side, with a dark gap between two."""
    if len(panes) == 1:
        return panes[0]
    gap = np.full((panes[0].shape[0], max(2, panes[0].shape[1] // 160), 3), _TITLE_BACKGROUND, np.uint8)
    return np.concatenate([panes[0], gap, panes[1]], axis=1)
