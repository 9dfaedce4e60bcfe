"""Which frames of a video are asked for."""

from __future__ import annotations

import re

import numpy as np

from configs.schema import SamplingConfig
from pipeline.decode import FrameTable
from pipeline.errors import ConfigError

_SECONDS = re.compile(r"^(\d+(?:\.\d*)?|\.\d+)s?$")


def frame_range(sampling: SamplingConfig, table: FrameTable) -> tuple[int, int]:
    """``(first, one past last)`` frame index of ``--start`` and ``--stop`` in this video.

    Raises:
        ConfigError: a moment is neither a frame number (``123``) nor seconds (``4.5``, ``4.5s``), or nothing lies
            between the two.
    """
    start = _frame(sampling.start, "sampling.start", table) if sampling.start is not None else 0
    stop = _frame(sampling.stop, "sampling.stop", table) if sampling.stop is not None else len(table)
    start, stop = min(start, len(table)), min(stop, len(table))
    if start >= stop and len(table):
        raise ConfigError("no frames between start and stop", table.info.uri, f"the video has {len(table)} frames")
    return start, stop


def _frame(moment: str, key: str, table: FrameTable) -> int:
    """The first frame at or after a moment; seconds count from the first frame shown."""
    if moment.isdigit():
        return int(moment)
    seconds = _SECONDS.match(moment)
    if seconds is None:
        raise ConfigError(f"bad moment {moment!r}", key, "write a frame number such as 120, or seconds such as 4.5s")
    times = table.pts_s
    return int(np.searchsorted(times - times[:1].sum(), float(seconds[1]), side="left"))
