"""Which frames of a video are asked for."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from configs.schema import ChunkConfig, SamplingConfig
from pipeline.decode import FrameTable, redact
from pipeline.errors import ConfigError, NoVideoError

_AS_CALM = 1.1
"""Packet sizes within a tenth say nothing: noise and the rhythm of B-frames are as large."""
_EARLY_SHARE = 0.9
"""A group of pictures shorter than this share of the longest was cut short."""
_SECONDS = re.compile(r"^(\d+(?:\.\d*)?|\.\d+)s?$")


def frame_range(sampling: SamplingConfig, table: FrameTable) -> tuple[int, int]:
    """``(first, one past last)`` frame index of ``--start`` and ``--stop`` in this video.

    Raises:
        ConfigError: a moment is neither a frame number (``123``) nor seconds (``4.5``, ``4.5s``), or nothing lies
            between the two.
        NoVideoError: this video ends before the start; others of the job may not.
    """
    start = _frame(sampling.start, "sampling.start", table) if sampling.start is not None else 0
    stop = _frame(sampling.stop, "sampling.stop", table) if sampling.stop is not None else len(table)
    if start >= len(table) > 0:
        raise NoVideoError(f"it has {len(table)} frames and ends before --start", redact(table.info.uri))
    stop = min(stop, len(table))
    if start >= stop and len(table):
        where, todo = redact(table.info.uri), f"the video has {len(table)} frames"
        raise ConfigError("no frames between start and stop", where, todo)
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


def chunk_ranges(chunk: ChunkConfig, sampling: SamplingConfig, table: FrameTable) -> list[tuple[int, int]]:
    """The pieces of a video as ``(start, stop)`` frame indices, each overlapping the next.

    Pieces are intervals of presentation time, so a variable frame rate cuts where the clock says. A start moves by up
    to half an overlap, to a scene cut or to where little moves (:func:`_start_near`). It lies on the grid of
    ``--stride``, so that neighbours sample the same frames. A last piece shorter than the overlap joins the one before.

    """
    first, last = frame_range(sampling, table)
    length_s = chunk.length_s
    if length_s is None or last - first < 2:
        return [(first, last)]
    times = table.pts_s
    end_s = times[last - 1]
    count = max(int((end_s - times[first]) // length_s), 1)
    targets = [times[first] + k * length_s for k in range(1, count + 1) if times[first] + k * length_s < end_s]
    starts = [first, *(_start_near(t, chunk.overlap_s, first, sampling.stride, table) for t in targets)]
    starts = [s for i, s in enumerate(starts) if i == 0 or (s > starts[i - 1] and end_s - times[s] > chunk.overlap_s)]
    stops = [min(int(np.searchsorted(times, times[s] + chunk.overlap_s, side="right")), last) for s in starts[1:]]
    return list(zip(starts, [*stops, last], strict=True))


def step_cuts(chunk: ChunkConfig, sampling: SamplingConfig, batch_frames: int, table: FrameTable) -> list[int]:
    """The frames at which sequential pieces begin, without the first piece's; empty for a video done in one go.

    They lie between two of the detector's batches, counted from the first frame: an attempt that starts at one sees
    the same batches, and a batch's size may change the last bits of a score.
    """
    length_s = chunk.length_s
    if length_s is None or chunk.mode != "sequential":
        return []
    first, last = frame_range(sampling, table)
    grid = sampling.stride * batch_frames
    times = table.pts_s
    if first >= last:
        return []
    moments = np.arange(times[first] + length_s, times[last - 1], length_s)
    cuts = first + (np.searchsorted(times, moments) - first + grid - 1) // grid * grid
    return [int(c) for c in np.unique(cuts) if first < c < last]


def _start_near(target_s: float, reach_s: float, first: int, stride: int, table: FrameTable) -> int:
    """A frame to start a piece at, within half the reach of the target, on the stride grid.

    Identities are handed over in the middle of the overlap (``reach_s``), so that is put on a scene cut if there is
    one; else where the overlap holds the least motion; where packet sizes are not known, the start on a keyframe.
    """
    times = table.pts_s
    low, high = np.searchsorted(times, (target_s - reach_s / 2 - 1e-9, target_s + reach_s / 2 + 1e-9))
    starts = np.arange(low, high)
    cuts_s = _scene_cuts_s(table) - reach_s / 2
    cuts_s = cuts_s[np.abs(cuts_s - target_s) <= reach_s / 2]
    if len(cuts_s):
        moment = cuts_s[np.abs(cuts_s - target_s).argmin()]
    elif len(table.packet_bytes) and len(starts):
        moment = times[_calmest(starts, target_s, reach_s, table)]
    else:
        keys_s = table.keyframes * float(table.time_base)
        near = keys_s[np.abs(keys_s - target_s) <= reach_s / 2]
        moment = near[np.abs(near - target_s).argmin()] if len(near) else target_s
    index = int(np.searchsorted(times, moment - 1e-9, side="left"))
    return first + (index - first) // stride * stride


def _scene_cuts_s(table: FrameTable) -> NDArray[np.float64]:
    """Moments of keyframes that came before their turn: encoders put them there because the picture changed.

    A group of pictures has a largest length, which keyframes keep unless a scene cut restarts the count (x264's and
    x265's ``scenecut``). Where all are the same, or the file is all keyframes, nothing is known.
    """
    lengths = np.diff(table.keyframes)
    if len(lengths) < 2 or len(table.keyframes) > len(table) // 2:
        return np.zeros(0)
    early = lengths < _EARLY_SHARE * lengths.max()
    return np.asarray(table.keyframes[1:][early] * float(table.time_base), np.float64)


def _calmest(starts: NDArray[np.int64], target_s: float, reach_s: float, table: FrameTable) -> int:
    """The start whose overlap has the fewest bytes in it; of those about as calm, the nearest to the target.

    Keyframes count as their neighbours do: they are large because they hold the whole picture. Bytes are summed over
    the whole overlap, so that the rhythm of B-frames does not matter.
    """
    size = table.packet_bytes.astype(np.float64)
    is_key = np.isin(table.pts, table.keyframes)
    if is_key.all():
        return int(starts[np.abs(table.pts_s[starts] - target_s).argmin()])
    size[is_key] = np.interp(np.flatnonzero(is_key), np.flatnonzero(~is_key), size[~is_key])
    total = np.r_[0.0, np.cumsum(size)]
    stops = np.searchsorted(table.pts_s, table.pts_s[starts] + reach_s, side="right")
    motion = (total[stops] - total[starts]) / np.maximum(stops - starts, 1)
    calm = starts[motion <= _AS_CALM * motion.min()]
    return int(calm[np.abs(table.pts_s[calm] - target_s).argmin()])
