"""What is compared: objects per frame, from a run or from ground truth, as one kind of value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from configs.load import load_config
from pipeline.errors import ConfigError
from pipeline.evaluate.sequence import Float64Array, IntArray
from pipeline.results import FrameResult
from pipeline.store import Run, VideoEntry
from pipeline.types import RLE


class Role(IntEnum):
    """What an annotation is for (MOTChallenge, MOT16: Milan et al., arXiv 1603.00831)."""

    OBJECT = 0
    """To be found."""
    LEFT_OUT = 1
    """Not evaluated: a miss is no miss, but a prediction on it is a false positive, as in TrackEval."""
    DISTRACTOR = 2
    """Not evaluated, and a prediction that matches it is dropped (static people, reflections)."""
    IGNORE_REGION = 3
    """A region nobody annotated: an unmatched prediction mostly inside is dropped (MOTS)."""


@dataclass(frozen=True, slots=True)
class FrameLabels:
    """The objects of one frame; row *i* of every column is one object."""

    index: int
    """0-based source frame."""
    track_id: IntArray
    phrase: tuple[str, ...]
    score: Float64Array
    xyxy: Float64Array
    """``(N, 4)`` pixels, x2/y2 exclusive; may reach beyond the frame."""
    rles: tuple[RLE, ...] | None
    """N masks, or ``None`` where only boxes are known."""
    role: NDArray[np.int8] | None = None
    """``(N,)`` of :class:`Role`; ``None``: all are objects."""

    def __len__(self) -> int:
        return len(self.track_id)

    def rows(self, keep: NDArray[Any]) -> FrameLabels:
        """The objects of a boolean mask or index array."""
        chosen = np.arange(len(self))[keep]
        return FrameLabels(
            self.index,
            self.track_id[chosen],
            tuple(self.phrase[i] for i in chosen),
            self.score[chosen],
            self.xyxy[chosen],
            None if self.rles is None else tuple(self.rles[i] for i in chosen),
            None if self.role is None else self.role[chosen],
        )

    def renamed(self, rename: Callable[[str], str]) -> FrameLabels:
        """The same objects under other phrases."""
        return replace(self, phrase=tuple(map(rename, self.phrase)))

    @classmethod
    def empty(cls, index: int, *, masks: bool) -> FrameLabels:
        """A frame without objects."""
        return cls(
            index, np.zeros(0, np.int64), (), np.zeros(0), np.zeros((0, 4)), () if masks else None, np.zeros(0, np.int8)
        )


@dataclass(frozen=True, slots=True)
class LabelledVideo:
    """What is known of one video before its frames are read."""

    video_id: str
    size: tuple[int, int] | None
    """``(height, width)`` in pixels; ``None``: unknown."""
    num_frames: int | None
    """Frames of the source; ``None``: unknown."""
    phrases: tuple[str, ...]
    """What was asked of this video, whether it has such objects or not."""
    looked_at: range | None = None
    """The frames that were tracked or annotated (``--stride``, ``--start``, ``--stop``); ``None``: all."""
    sparse: bool = False
    """Not all frames were looked at, and which is not known but for those that have objects."""
    partial: bool = False
    """Reading stopped early: later frames are missing, not empty."""


class Labels(Protocol):
    """A run, or ground truth."""

    @property
    def videos(self) -> Sequence[LabelledVideo]:
        """The videos, each id once."""
        ...

    @property
    def masks(self) -> bool:
        """Whether objects have masks, or boxes only."""
        ...

    def frames(self, video_id: str) -> Iterator[FrameLabels]:
        """The frames with objects in time order; may be called again."""
        ...


class RunLabels:
    """A run folder as labels; imported ground truth is one too.

    Args:
        run: the run.
        roles: tells what each annotation of a frame is for; everything is to be found without it.
        masks: whether its masks mean anything (they are filled boxes where a format has boxes only).
        asked: what was asked of every video, where the manifest does not say it.
    """

    def __init__(
        self,
        run: Run,
        *,
        roles: Callable[[FrameResult], NDArray[np.int8]] | None = None,
        masks: bool = True,
        asked: Sequence[str] | None = None,
    ) -> None:
        self._run, self._roles, self.masks = run, roles, masks
        self.videos: Sequence[LabelledVideo] = tuple(
            _labelled(run, v, asked or (run.manifest.prompts if v.prompts is None else v.prompts)) for v in run.videos
        )

    def forget_extent(self) -> None:
        """Take size and length of the videos for unknown: they were only guessed."""
        self.videos = tuple(replace(v, size=None, num_frames=None) for v in self.videos)

    def frames(self, video_id: str) -> Iterator[FrameLabels]:
        """The frames with objects in time order, one part of the run in memory at a time."""
        for result in self._run.frames(video_id):
            yield frame_labels(result, None if self._roles is None else self._roles(result))


def _labelled(run: Run, entry: VideoEntry, phrases: Sequence[str]) -> LabelledVideo:
    skipped = 0 < entry.num_tracked < entry.num_frames
    looked_at = _looked_at(run, entry) if skipped else None
    return LabelledVideo(
        entry.video_id,
        (entry.height, entry.width) if entry.height and entry.width else None,
        entry.num_frames or None,
        tuple(phrases),
        looked_at=looked_at,
        sparse=skipped and looked_at is None,
        partial=entry.status != "done",
    )


def _looked_at(run: Run, entry: VideoEntry) -> range | None:
    """The frames that were tracked, as the run's configuration says; ``None`` if it does not explain their number."""
    try:
        sampling = load_config(str(run.folder / "config.yaml")).sampling
    except ConfigError:
        return None
    fps = Fraction(entry.fps) if entry.fps else None
    start, stop = (_frame_at(moment, fps, last) for moment, last in ((sampling.start, 0), (sampling.stop, None)))
    if start is None:
        return None
    frames = range(start, entry.num_frames if stop is None else min(stop, entry.num_frames), sampling.stride)
    return frames if len(frames) == entry.num_tracked else None


def _frame_at(moment: str | None, fps: Fraction | None, default: int | None) -> int | None:
    """A frame number, or the first frame at or after ``12.5s`` where frames come at a constant rate."""
    if moment is None or not moment.endswith("s"):
        return default if moment is None else int(moment)
    return math.ceil(Fraction(moment[:-1]) * fps) if fps else None


def frame_labels(result: FrameResult, role: NDArray[np.int8] | None = None) -> FrameLabels:
    """A frame of a run as labels; a negative score (MOTChallenge's "unknown") counts as certain."""
    return FrameLabels(
        result.index,
        result.masklet_id.astype(np.int64),
        result.prompt,
        np.where(result.score < 0, 1.0, result.score.astype(np.float64)),
        result.xyxy.astype(np.float64),
        result.rles,
        role,
    )
