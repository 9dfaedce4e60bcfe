"""Stream time of a source whose own clock stops, restarts and jumps."""

from __future__ import annotations

FORWARD_S, BACKWARD_S = 30.0, 0.5
"""The source's clock may run ahead of ours by so much between two frames (playlists come in bursts), or go back by so
much, before it counts as another clock."""
_STEP_S = 1e-3
_DRIFT = 1e-3
"""Seconds per second by which two clocks may drift apart; real ones do by a tenth of it at most."""


class StreamClock:
    """Turns a camera's time stamps into one rising time line.

    It is the camera's own presentation time for as long as that runs; after a reconnection, a jump or without time
    stamps, time goes on by this machine's clock, as told from the frames that were least late: the last one before a
    reconnection may have waited for the end of a stall.
    """

    def __init__(self) -> None:
        self._shift_s = 0.0
        self._last: tuple[float, float] | None = None
        self._ahead_s = 0.0
        """Stream time minus our clock of the frame that was least late."""
        self._epoch = 0

    def stamp(self, pts_s: float | None, now_s: float, epoch: int) -> float:
        """The frame's time in seconds, later than the frame before. ``now_s``: this machine's monotonic clock."""
        if self._last is None:
            self._epoch = epoch
            stamped_s = pts_s if pts_s is not None else 0.0
        else:
            self._ahead_s -= _DRIFT * max(now_s - self._last[1], 0.0)
            stamped_s = self._next(pts_s, now_s, epoch, *self._last)
        self._ahead_s = stamped_s - now_s if self._last is None else max(self._ahead_s, stamped_s - now_s)
        self._last = (stamped_s, now_s)
        return stamped_s

    def _next(self, pts_s: float | None, now_s: float, epoch: int, last_s: float, last_now_s: float) -> float:
        by_our_clock_s = max(now_s + self._ahead_s, last_s + max(now_s - last_now_s, _STEP_S))
        if pts_s is None:
            return by_our_clock_s
        ahead_s = pts_s + self._shift_s - by_our_clock_s
        if epoch != self._epoch or ahead_s > FORWARD_S or pts_s + self._shift_s < last_s - BACKWARD_S:
            self._epoch = epoch
            self._shift_s = by_our_clock_s - pts_s
            return by_our_clock_s
        return max(pts_s + self._shift_s, last_s + _STEP_S)

    def resume(self, stamped_s: float, now_s: float) -> None:
        """Go on from a frame of an earlier process; the next one belongs to another epoch."""
        self._last, self._ahead_s, self._epoch = (stamped_s, now_s), stamped_s - now_s, -1
