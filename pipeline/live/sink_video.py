"""Annotated video: to MP4 files, or pushed to an RTSP server. Drawn and encoded by a child process per stream.

FFmpeg may block in a connection or a write for as long as it likes, and Python with it; a process of its own cannot
harm tracking, can be killed, and takes the drawing off it too.
"""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.live.events import LiveResult
from pipeline.live.sinks import Item

_CLOSE_TIMEOUT_S = 10.0
_RESTART_AFTER_S = 2.0


class VideoSink:
    """One child for each stream that comes along."""

    wants_pictures = True

    def __init__(self, target: str) -> None:
        self._target = target
        self._children: dict[str, _Child] = {}

    def write(self, items: Sequence[Item]) -> int:
        """Hand the pictures to the children; returns how many could not be."""
        lost = 0
        for item in items:
            if isinstance(item, LiveResult) and item.picture is not None:
                lost += not self._child(item.result.video_id).send(item)
        return lost

    def _child(self, stream_id: str) -> _Child:
        if stream_id not in self._children:
            self._children[stream_id] = _Child(target_of(self._target, stream_id, is_first=not self._children))
        return self._children[stream_id]

    def flush(self) -> None:
        """Nothing: fragments are written as they are full."""

    def close(self) -> None:
        """Finish all videos."""
        for child in self._children.values():
            child.close()


def target_of(target: str, stream_id: str, *, is_first: bool) -> str:
    """Where this stream's video goes: ``{id}`` is replaced; without one, further streams get a suffix."""
    if "{id}" in target or is_first:
        return target.replace("{id}", stream_id)
    if "://" in target:
        return f"{target.rstrip('/')}-{stream_id}"
    path = Path(target)
    return str(path.with_name(f"{path.stem}-{stream_id}{path.suffix}"))


class _Child:
    """A drawing and encoding process, started again if it dies."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0

    def send(self, item: LiveResult) -> bool:
        """Hand over a frame; false if the process is gone."""
        if self._process is None or self._process.poll() is not None:
            if time.monotonic() - self._started_s < _RESTART_AFTER_S:
                return False
            self._reap()
            self._started_s = time.monotonic()
            command = [sys.executable, "-m", "pipeline.live.video_child"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
            # Not as an argument: everybody on the machine can read those, and there may be a password in it.
            if not self._write(self._target.encode()):
                return False
        return self._write(pickle.dumps(item, protocol=5))

    def _write(self, data: bytes) -> bool:
        assert self._process is not None and self._process.stdin is not None  # asked for
        try:
            self._process.stdin.write(struct.pack("!I", len(data)) + data)
            self._process.stdin.flush()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let it finish the file, or end it after a while."""
        if self._process is None:
            return
        try:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait(_CLOSE_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
        self._reap()

    def _reap(self) -> None:
        if self._process is not None:
            if self._process.stdin is not None and not self._process.stdin.closed:
                try:
                    self._process.stdin.close()
                except OSError:
                    pass
            self._process.wait()
            self._process = None
