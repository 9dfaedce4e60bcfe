"""One line per masklet over the time of a video: when it was there, and how sure the tracker was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.render.lives import Life, clock, frame_step_s, lives_of, shades, span_s
from pipeline.render.page import HAIRLINE, INK, MARGIN_PX, QUIET, WIDTH_PX, Page, mixed
from pipeline.render.palette import colour
from pipeline.types import Float32Array

if TYPE_CHECKING:
    from pipeline.store import Run

MAX_ROWS = 400
"""More masklets than that are not drawn (the longest are); the page says so."""
_HEAD_PX, _FOOT_PX = 118, 64
_LABEL_PX = 230
_FAINTEST = 0.28
_LEFT, _RIGHT = MARGIN_PX + _LABEL_PX, WIDTH_PX - MARGIN_PX


def timeline(run: Run, out: Path, *, video_id: str | None = None) -> Path:
    """Write a PNG with one line per masklet, grouped by phrase; stronger colour means a higher score.

    Raises:
        UsageError: no such video, or the file cannot be written.
    """
    entry = run.video(video_id)
    everyone = lives_of(run, entry.video_id) if entry.status != "failed" else []
    shown = longest(everyone, MAX_ROWS)
    groups = _by_phrase(shown)
    pitch = max(7, min(26, 2400 // max(len(shown), 1)))
    group_gap = 46
    page = Page(_HEAD_PX + len(shown) * pitch + len(groups) * group_gap + _FOOT_PX)
    start, stop = span_s(everyone, entry)
    _heading(page, entry.video_id, summary(everyone, shown, stop - start))
    y = _HEAD_PX
    bottom = y + len(shown) * pitch + len(groups) * group_gap
    _axis(page, start, stop, y - 8, bottom)
    edges = np.linspace(start, stop, _RIGHT - _LEFT + 1)
    step = frame_step_s(everyone, entry)
    for phrase, members in groups.items():
        _group_title(page, y + 34, phrase, len(members))
        y += group_gap
        for life in members:
            _row(page, y, pitch, life, shades(life, edges, step))
            y += pitch
    if not shown:
        page.text(_LEFT, bottom + 8, "No masklets in this video.", 18, QUIET)
    return page.save(out)


def longest(lives: list[Life], limit: int) -> list[Life]:
    """At most ``limit`` masklets, those seen on most frames, in the order of their ids."""
    chosen = sorted(lives, key=len, reverse=True)[:limit]
    return sorted(chosen, key=lambda life: life.masklet_id)


def summary(lives: list[Life], shown: list[Life], duration_s: float) -> str:
    """``12 masklets · 0:10.0 · the longest 400 are shown``"""
    count = f"{len(lives):,} masklet{'' if len(lives) == 1 else 's'}"
    left_out = f" · the {len(shown)} longest are shown" if len(shown) < len(lives) else ""
    return f"{count} · {clock(duration_s)}{left_out}"


def _by_phrase(lives: list[Life]) -> dict[str, list[Life]]:
    groups: dict[str, list[Life]] = {}
    for life in lives:
        groups.setdefault(life.phrase, []).append(life)
    return groups


def _heading(page: Page, title: str, subtitle: str) -> None:
    page.text(MARGIN_PX, 52, title, 28, room_px=WIDTH_PX - 520)
    page.text(MARGIN_PX, 80, subtitle, 17, QUIET)
    page.text(_RIGHT - 232, 52, "score", 15, QUIET, anchor="rs")
    ramp = np.stack([[mixed(INK, _strength(v))] * 10 for v in np.linspace(0, 1, 160)], axis=1)
    page.picture(_RIGHT - 204, 41, ramp.astype(np.uint8), radius_px=5)
    page.text(_RIGHT - 216, 52, "0", 15, QUIET, anchor="ms")
    page.text(_RIGHT - 32, 52, "1", 15, QUIET, anchor="ms")


def _strength(score: float) -> float:
    return _FAINTEST + (1 - _FAINTEST) * float(np.clip(score, 0, 1))


def _axis(page: Page, start_s: float, stop_s: float, top: int, bottom: int) -> None:
    """Times below, and a hairline through all rows at each."""
    every = tick_s(stop_s - start_s, 10)
    first = int(np.ceil(start_s / every - 1e-9))
    for tick in range(first, int(np.floor(stop_s / every + 1e-9)) + 1):
        x = _LEFT + (tick * every - start_s) / (stop_s - start_s) * (_RIGHT - _LEFT)
        page.rule(x, top, x, bottom + 10, HAIRLINE)
        page.text(x, bottom + 32, clock(tick * every, every), 15, QUIET, anchor="ms")


def tick_s(duration_s: float, at_most: int) -> float:
    """The distance between ticks that makes at most so many of them, a round number of seconds."""
    steps = (
        0.01,
        0.02,
        0.05,
        0.1,
        0.2,
        0.5,
        1,
        2,
        5,
        10,
        15,
        30,
        60,
        120,
        300,
        600,
        900,
        1800,
        3600,
        7200,
        14400,
        86400,
    )
    return next((s for s in steps if duration_s / s <= at_most), duration_s / at_most)


def _group_title(page: Page, baseline: int, phrase: str, count: int) -> None:
    page.text(MARGIN_PX, baseline, phrase, 18, room_px=_LABEL_PX - 60)
    page.text(_LEFT - 18, baseline, str(count), 15, QUIET, anchor="rs")


def _row(page: Page, y: int, pitch: int, life: Life, scores: Float32Array) -> None:
    rgb = colour(life.masklet_id)
    if pitch >= 14:
        page.dot(MARGIN_PX + 7, y + pitch / 2, min(6, pitch // 3), rgb)
        page.text(MARGIN_PX + 22, y + pitch / 2, str(life.masklet_id), min(16, pitch - 2), QUIET, anchor="lm")
    present = np.flatnonzero(~np.isnan(scores))
    if not len(present):
        return
    middle = y + pitch // 2
    page.rule(_LEFT + int(present[0]), middle, _LEFT + int(present[-1]), middle, mixed(rgb, 0.5))
    height = max(4, round(pitch * 0.62))
    for first, last in stretches(present):
        strip = [mixed(rgb, _strength(float(s))) for s in scores[first : last + 1]]
        pixels = np.broadcast_to(np.array(strip, np.uint8)[None], (height, len(strip), 3))
        page.picture(_LEFT + int(first), middle - height // 2, pixels, radius_px=min(3, height // 2, len(strip) // 2))


def stretches(present: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    cuts = np.flatnonzero(np.diff(present) > 1)
    firsts, lasts = present[np.r_[0, cuts + 1]], present[np.r_[cuts, len(present) - 1]]
    return [(int(a), int(b)) for a, b in zip(firsts, lasts, strict=True)]
