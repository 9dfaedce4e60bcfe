"""What a live stream says besides rows: objects that come, go and are taken back, and gaps of the stream itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.results import FrameResult
from pipeline.types import UInt8Array

OBJECT_EVENTS = ("born", "confirmed", "lost", "recovered", "retracted", "ended")
STREAM_EVENTS = ("stream_gap", "stream_reconnected")


@dataclass(frozen=True, slots=True)
class Event:
    """One event. ``event_id`` tells events apart, also across restarts: receivers may see one twice, and can tell."""

    event_id: str
    kind: str
    """One of :data:`OBJECT_EVENTS` or :data:`STREAM_EVENTS`."""
    stream_id: str
    session: int
    frame: int
    """The frame it happened on; for a gap, the last one before it."""
    pts_s: float
    wall_s: float
    """Unix time."""
    masklet_id: int | None = None
    prompt: str | None = None
    gap_s: float | None = None
    """Length of a gap that is over."""
    detail: str = ""
    """Why, in words."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"type": "event", **asdict(self)}


@dataclass(frozen=True, slots=True)
class LiveResult:
    """A frame that is final for this latency."""

    result: FrameResult
    session: int
    wall_s: float
    """Unix time at which the frame arrived."""
    arrived_s: float
    """The same moment on the monotonic clock."""
    picture: UInt8Array | None = None
    """RGB for people, perhaps smaller than the source."""

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per masklet with the columns of ``RUN/masklets``, plus ``session`` and ``wall_s``."""
        result = self.result
        areas = result.area_px()
        return [
            {
                "type": "masklet",
                "video_id": result.video_id,
                "session": self.session,
                "frame": result.index,
                "pts_s": result.pts_s,
                "wall_s": self.wall_s,
                "masklet_id": int(result.masklet_id[i]),
                "prompt": result.prompt[i],
                "score": _short(result.score[i]),
                **{name: float(v) for name, v in zip(("x1", "y1", "x2", "y2"), result.xyxy[i], strict=True)},
                "area_px": int(areas[i]),
                "rle": {"size": list(result.rles[i].size), "counts": result.rles[i].counts.decode("ascii")},
            }
            for i in range(len(result))
        ]


def _short(score: np.float32) -> float:
    """The shortest decimal that reads back as this float32."""
    return float(np.format_float_positional(score, unique=True))
