"""What the web page and the metrics see of running streams: written by the tracking loop, read by the server."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2

from pipeline.live.events import Event, LiveResult
from pipeline.live.painter import Painter

_EVENTS, _LIVES = 500, 200
_ENDINGS = ("ended", "retracted")
_JPEG_QUALITY = 80


@dataclass(slots=True)
class _Lane:
    """A masklet's life on the timeline."""

    masklet_id: int
    prompt: str
    born_wall_s: float
    end_wall_s: float | None = None
    state: str = "born"


@dataclass(slots=True)
class CameraView:
    """The latest of one camera."""

    latest: LiveResult | None = None
    lanes: dict[int, _Lane] = field(default_factory=dict)
    painter: Painter = field(default_factory=Painter)
    jpeg: tuple[int, bytes] | None = None
    """Frame and its encoded picture, kept for the next viewer."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Board:
    """Bounded: the latest frame of each camera, its last masklets, and the last events."""

    def __init__(self) -> None:
        self.views: dict[str, CameraView] = {}
        self._events: deque[tuple[int, Event]] = deque(maxlen=_EVENTS)
        # Numbers go on after those of an earlier process: a page that comes back asks for what it has not seen.
        self._num_events = round(time.time() * 1000)
        self.status: list[dict[str, Any]] = []
        """One plain dict per camera, as ``GET /streams`` answers; replaced as a whole by the loop."""
        self.sinks: list[dict[str, Any]] = []
        self.is_ready = False

    # -- the loop's side ------------------------------------------------------------------------------------------

    def show(self, stream_id: str, results: Sequence[LiveResult], events: Sequence[Event]) -> None:
        """Take over what became final."""
        view = self.views.setdefault(stream_id, CameraView())
        if results:
            view.latest = results[-1]
        for event in events:
            self._num_events += 1
            self._events.append((self._num_events, event))
            _note(view, event)

    def remove(self, stream_id: str) -> None:
        """Forget a camera."""
        self.views.pop(stream_id, None)

    # -- the server's side ----------------------------------------------------------------------------------------

    @property
    def num_events(self) -> int:
        """Number of the last event."""
        return self._num_events

    def events_after(self, number: int) -> list[tuple[int, Event]]:
        """Events with a higher number, as far as they are remembered."""
        return [(n, e) for n, e in list(self._events) if n > number]

    def snapshot(self, stream_id: str) -> bytes | None:
        """The latest picture with masks, ids and phrases as JPEG; ``None`` before the first."""
        view = self.views.get(stream_id)
        if view is None:
            return None
        with view.lock:
            latest = view.latest
            if latest is None:
                return None
            if view.jpeg is None or view.jpeg[0] != latest.result.index:
                picture = view.painter.paint(latest)
                if picture is None:
                    return None
                quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
                ok, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)
                if not ok:
                    return None
                view.jpeg = (latest.result.index, data.tobytes())
            return view.jpeg[1]

    def timeline(self, stream_id: str) -> list[dict[str, Any]]:
        """The last masklets of a camera, the oldest first."""
        view = self.views.get(stream_id)
        lanes = list(view.lanes.values()) if view else []
        return [
            {
                "masklet_id": lane.masklet_id,
                "prompt": lane.prompt,
                "born_wall_s": lane.born_wall_s,
                "end_wall_s": lane.end_wall_s,
                "state": lane.state,
            }
            for lane in lanes
        ]


def _note(view: CameraView, event: Event) -> None:
    """Write an event on the camera's timeline; ended masklets go when there are too many."""
    if event.masklet_id is None:
        return
    lane = view.lanes.get(event.masklet_id)
    if lane is None:
        lane = _Lane(event.masklet_id, event.prompt or "", event.wall_s)
        view.lanes = {**view.lanes, event.masklet_id: lane}
    lane.state = event.kind
    lane.end_wall_s = event.wall_s if event.kind in (*_ENDINGS, "lost") else None
    if len(view.lanes) > _LIVES:
        over = [i for i, item in view.lanes.items() if item.state in _ENDINGS][: len(view.lanes) - _LIVES]
        view.lanes = {i: item for i, item in view.lanes.items() if i not in over}
