"""One row of pictures per masklet: how it looked from its first frame to its last."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.render.draw import Cutout, cut_out, outlines
from pipeline.render.frames import open_source, scattered
from pipeline.render.lives import Life, clock, lives_of, span_s
from pipeline.render.page import HAIRLINE, INK, MARGIN_PX, QUIET, WIDTH_PX, Page
from pipeline.render.palette import RGB, colour
from pipeline.render.timeline import longest, summary
from pipeline.types import RLE, UInt8Array

if TYPE_CHECKING:
    from pipeline.store import Run, VideoEntry

MAX_ROWS = 40
"""More masklets than that are not drawn (the longest are); the page says so."""
COLUMNS = 6
_HEAD_PX, _ROW_PX = 112, 196
_LABEL_PX, _GAP_PX = 236, 12
_CELL = ((WIDTH_PX - 2 * MARGIN_PX - _LABEL_PX - (COLUMNS - 1) * _GAP_PX) // COLUMNS, 140)
"""Width and height of one picture."""


@dataclass(frozen=True, slots=True)
class Look:
    """One masklet on one frame, to be cut out."""

    masklet_id: int
    frame: int
    rle: RLE


def contact_sheet(run: Run, out: Path, *, video_id: str | None = None) -> Path:
    """Write a PNG with one row per masklet: up to six moments of its life, its outline, id, phrase, frames, mean score.

    Raises:
        UsageError: no such video, or the file cannot be written.
        SourceError: the source video is gone or is another file now.
    """
    entry = run.video(video_id)
    table = open_source(entry)
    everyone = lives_of(run, entry.video_id)
    shown = longest(everyone, MAX_ROWS)
    moments = {life.masklet_id: moments_of(life, COLUMNS) for life in shown}
    looks = find_looks(run, entry, moments)
    page = Page(_HEAD_PX + max(len(shown), 1) * _ROW_PX + 16)
    page.text(MARGIN_PX, 52, entry.video_id, 28, room_px=WIDTH_PX - 2 * MARGIN_PX)
    start, stop = span_s(everyone, entry)
    page.text(MARGIN_PX, 80, summary(everyone, shown, stop - start), 17, QUIET)
    tops = {life.masklet_id: _HEAD_PX + row * _ROW_PX for row, life in enumerate(shown)}
    for life in shown:
        _legend(page, tops[life.masklet_id], life)
    for frame in scattered(table, looks):
        for look in looks[frame.index]:
            column = int(np.flatnonzero(moments[look.masklet_id] == frame.index)[0])
            _cell(page, tops[look.masklet_id], column, portrait(frame.image, look.rle, _CELL, colour(look.masklet_id)))
            caption = f"{clock(frame.pts_s)}  ·  frame {frame.index}"
            page.text(_cell_x(column), tops[look.masklet_id] + _CELL[1] + 34, caption, 14, QUIET)
    if not shown:
        page.text(MARGIN_PX, _HEAD_PX + 40, "No masklets in this video.", 18, QUIET)
    return page.save(out)


def moments_of(life: Life, count: int) -> NDArray[np.int64]:
    """Up to ``count`` frames spread evenly over those on which the masklet is visible, first and last included."""
    rows = np.unique(np.linspace(0, len(life) - 1, min(count, len(life))).round().astype(int))
    return np.asarray(life.frame[rows], np.int64)


def find_looks(run: Run, entry: VideoEntry, moments: dict[int, NDArray[np.int64]]) -> dict[int, list[Look]]:
    """The masks at these moments (frames by masklet), by frame. Only the rows of these frames are read."""
    pairs = {(masklet_id, int(f)) for masklet_id, frames in moments.items() for f in frames}
    wanted = sorted({f for _, f in pairs})
    rows = run.dataset(entry.video_id).to_table(
        columns=["frame", "masklet_id", "rle"], filter=pc.field("frame").isin(wanted)
    )
    looks: dict[int, list[Look]] = {f: [] for f in wanted}
    for row in rows.to_pylist():
        if (row["masklet_id"], row["frame"]) in pairs:
            height, width = row["rle"]["size"]
            rle = RLE((height, width), row["rle"]["counts"])
            looks[row["frame"]].append(Look(row["masklet_id"], row["frame"], rle))
    return looks


def portrait(image: UInt8Array, rle: RLE, cell: tuple[int, int], rgb: RGB) -> UInt8Array:
    """The masklet in the middle of a picture of ``cell`` ``(w, h)``, outlined, its surroundings dimmed."""
    cutout = cut_out(rle) or Cutout(0, 0, np.zeros(rle.size, np.uint8))
    x, y, width, height = _window(cutout, (image.shape[1], image.shape[0]), cell)
    large = (2 * cell[0], 2 * cell[1])  # drawn at twice the size, for a fine, smooth line
    view = image[y : y + height, x : x + width]
    picture = cv2.resize(view, large, interpolation=cv2.INTER_AREA if large[0] < width else cv2.INTER_CUBIC)
    scale_x, scale_y = large[0] / width, large[1] / height
    placed = np.array([[scale_x, 0, (cutout.x - x) * scale_x], [0, scale_y, (cutout.y - y) * scale_y]])
    inside = (cv2.warpAffine(cutout.inside * 255, placed, large, flags=cv2.INTER_LINEAR) > 127).astype(np.uint8)
    dimmed = cv2.LUT(picture, (np.arange(256) * 0.42 + 18).astype(np.uint8))
    cv2.copyTo(picture, inside, dimmed)
    cv2.polylines(dimmed, outlines(Cutout(0, 0, inside)), True, rgb, 3, cv2.LINE_AA)
    return np.asarray(cv2.resize(dimmed, cell, interpolation=cv2.INTER_AREA), np.uint8)


def _window(cutout: Cutout, frame: tuple[int, int], cell: tuple[int, int]) -> tuple[int, int, int, int]:
    """``x, y, w, h`` of the part of the frame to show: the object with a margin, in the cell's shape where it fits."""
    box_h, box_w = cutout.inside.shape
    height = max(box_h * 1.3, box_w * 1.3 * cell[1] / cell[0], 24)
    width = height * cell[0] / cell[1]
    w, h = round(min(width, frame[0])), round(min(height, frame[1]))
    x = round(np.clip(cutout.x + (box_w - w) / 2, 0, frame[0] - w))
    y = round(np.clip(cutout.y + (box_h - h) / 2, 0, frame[1] - h))
    return x, y, w, h


def _cell_x(column: int) -> int:
    return MARGIN_PX + _LABEL_PX + column * (_CELL[0] + _GAP_PX)


def _cell(page: Page, top: int, column: int, pixels: UInt8Array) -> None:
    page.picture(_cell_x(column), top + 14, pixels, radius_px=6)


def _legend(page: Page, top: int, life: Life) -> None:
    page.rule(MARGIN_PX, top, WIDTH_PX - MARGIN_PX, top, HAIRLINE)
    page.dot(MARGIN_PX + 9, top + 32, 9, colour(life.masklet_id))
    page.text(MARGIN_PX + 28, top + 39, str(life.masklet_id), 22, INK)
    page.text(MARGIN_PX, top + 70, life.phrase, 18, INK, room_px=_LABEL_PX - 20)
    facts = (
        f"{len(life):,} frame{'' if len(life) == 1 else 's'}",
        f"{clock(float(life.pts_s[0]))} - {clock(float(life.pts_s[-1]))}",
        f"mean score {life.mean_score:.2f}",
    )
    for line, fact in enumerate(facts):
        page.text(MARGIN_PX, top + 96 + 22 * line, fact, 15, QUIET)
