"""What is counted while streams run: per camera and per stage, in constant memory."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds of the latency histograms."""


@dataclass(slots=True)
class Histogram:
    """Counts by duration, as Prometheus has them."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0

    def add(self, duration_s: float) -> None:
        """Count one."""
        self.counts[bisect_left(BUCKETS_S, duration_s)] += 1
        self.sum_s += duration_s

    def merge(self, other: Histogram) -> None:
        """Count what another has counted."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum_s += other.sum_s

    def cumulative(self) -> list[tuple[str, int]]:
        """``(upper bound, count up to it)``, the last bound ``+Inf``."""
        total, out = 0, []
        for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], self.counts, strict=True):
            total += count
            out.append((bound, total))
        return out


class Window:
    """Rate and latency of the last seconds."""

    def __init__(self, length_s: float = 5.0, capacity: int = 600) -> None:
        self._length_s = length_s
        self._items: deque[tuple[float, float]] = deque(maxlen=capacity)

    def add(self, value: float, now_s: float) -> None:
        """Note a value."""
        self._items.append((now_s, value))

    def rate(self, now_s: float | None = None) -> float:
        """Values per second."""
        now_s = time.monotonic() if now_s is None else now_s
        recent = [t for t, _ in list(self._items) if t > now_s - self._length_s]
        return len(recent) / self._length_s if len(recent) > 1 else 0.0

    def mean(self, now_s: float | None = None) -> float:
        """Mean of the recent values, 0 without any."""
        now_s = time.monotonic() if now_s is None else now_s
        recent = [v for t, v in list(self._items) if t > now_s - self._length_s]
        return sum(recent) / len(recent) if recent else 0.0


@dataclass(slots=True)
class CameraStats:
    """Of one camera."""

    tracked: int = 0
    """Frames that went through detector and tracker."""
    rows: int = 0
    failures: int = 0
    """Times its tracking failed and was restarted."""
    sessions: int = 0
    """Times it had to start afresh with new ids."""
    latency: Histogram = field(default_factory=Histogram)
    """From a frame's arrival to its row, hotstart included."""
    step: Histogram = field(default_factory=Histogram)
    """From a frame's arrival to the end of its tracking."""
    recent_tracked: Window = field(default_factory=Window)
    recent_latency: Window = field(default_factory=Window)


@dataclass(slots=True)
class StageStats:
    """Of the worker's stages: ``convert``, ``detect``, ``track``, ``link``."""

    stages: dict[str, Histogram] = field(default_factory=dict)

    def add(self, name: str, duration_s: float) -> None:
        """Count one call."""
        self.stages.setdefault(name, Histogram()).add(duration_s)
