"""The life of each masklet in columns: when it was there and how sure the tracker was. Masks are not loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Float32Array, Int64Array

if TYPE_CHECKING:
    from pipeline.store import Run, VideoEntry


@dataclass(frozen=True, slots=True)
class Life:
    """One masklet's rows, without boxes and masks."""

    masklet_id: int
    phrase: str
    frame: Int64Array
    """``(T,)`` ascending."""
    pts_s: NDArray[np.float64]
    """``(T,)``"""
    score: Float32Array
    """``(T,)``"""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def mean_score(self) -> float:
        """Mean over the frames on which it is visible."""
        return float(self.score.mean(dtype=np.float64))


def lives_of(run: Run, video_id: str) -> list[Life]:
    """All masklets of a video, by id."""
    table = run.table(video_id, ["masklet_id", "frame", "pts_s", "prompt", "score"])
    ids = table["masklet_id"].to_numpy()
    order = np.argsort(ids, kind="stable")  # rows come sorted by frame, and stay so within an id
    frame, pts_s, score = (table[c].to_numpy()[order] for c in ("frame", "pts_s", "score"))
    found, starts = np.unique(ids[order], return_index=True)
    stops = [*starts[1:], len(ids)][: len(starts)]
    return [
        Life(
            int(i),
            table["prompt"][int(order[a])].as_py(),
            frame[a:b].astype(np.int64),
            pts_s[a:b].astype(np.float64),
            score[a:b].astype(np.float32),
        )
        for i, a, b in zip(found, starts, stops, strict=True)
    ]


def frame_step_s(lives: list[Life], entry: VideoEntry) -> float:
    """How long one tracked frame stays on screen: the usual distance between neighbours, in seconds."""
    times = np.unique(np.concatenate([life.pts_s for life in lives])) if lives else np.zeros(0)
    if len(times) > 1:
        return float(np.median(np.diff(times)))
    if entry.duration_s and entry.num_tracked:
        return entry.duration_s / entry.num_tracked
    return 1 / 24


def span_s(lives: list[Life], entry: VideoEntry) -> tuple[float, float]:
    """First and last moment of the video's time axis, in seconds."""
    step = frame_step_s(lives, entry)
    first = min((float(life.pts_s[0]) for life in lives), default=0.0)
    last = max((float(life.pts_s[-1]) for life in lives), default=0.0) + step
    duration = entry.duration_s or 0.0
    start = 0.0 if 0 <= first <= max(duration, step) else first
    return start, max(last, start + duration)


def shades(life: Life, edges_s: NDArray[np.float64], step_s: float) -> Float32Array:
    """``(B,)`` mean score between each two neighbouring ``edges_s`` ``(B + 1,)``; NaN where the masklet is away.

    A frame counts until the next one is due, ``step_s`` later.
    """
    total = np.concatenate([[0.0], np.cumsum(life.score, dtype=np.float64)])
    first = np.searchsorted(life.pts_s, edges_s[:-1], side="left")
    stop = np.searchsorted(life.pts_s, edges_s[1:], side="left")
    out = np.full(len(first), np.nan, np.float32)
    many = stop > first
    out[many] = (total[stop] - total[first])[many] / (stop - first)[many]
    before = np.clip(first - 1, 0, None)
    shown_on = ~many & (first > 0) & (edges_s[:-1] < life.pts_s[before] + step_s * 1.01)
    out[shown_on] = life.score[before][shown_on]
    return out


def clock(seconds: float, step_s: float = 0.1) -> str:
    """``m:ss``, with as many decimals as ``step_s`` asks for; ``h:mm:ss`` from one hour on."""
    decimals = 0 if step_s >= 1 else 1 if step_s >= 0.1 else 2
    sign, rest = ("-" if seconds < 0 else ""), round(abs(seconds), decimals)
    minutes, seconds = divmod(rest, 60)
    hours, minutes = divmod(int(minutes), 60)
    head = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{sign}{head}:{seconds:0{2 + (decimals and decimals + 1)}.{decimals}f}"
