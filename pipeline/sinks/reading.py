"""A run as exporters see it: checked, streaming, frame by frame or masklet by masklet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import FormatError, RunError
from pipeline.masks import fault_of
from pipeline.results import FrameResult
from pipeline.sinks.segmentation import check_size
from pipeline.sinks.spill import Spill
from pipeline.store import Run, VideoEntry, fps_fraction
from pipeline.types import Masklet


class Categories:
    """Category ids of phrases: from 1, in the order of the run's prompts, then of first use."""

    def __init__(self, prompts: Iterable[str]) -> None:
        self._ids = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts), start=1)}

    def id_of(self, prompt: str) -> int:
        """The id of this phrase, a new one if it has none."""
        return self._ids.setdefault(prompt, len(self._ids) + 1)

    def items(self) -> Iterator[tuple[int, str]]:
        """``(id, phrase)`` of all so far."""
        yield from ((i, prompt) for prompt, i in self._ids.items())

    def coco(self) -> Iterator[dict[str, object]]:
        """COCO's ``categories``; drawn late, it has all that were used."""
        yield from ({"id": i, "name": prompt, "supercategory": "object"} for i, prompt in self.items())


class CheckedRun:
    """A run whose rows are verified as they stream by, so that no exporter has to distrust them.

    Failed videos are left out and named in :attr:`notes`.

    Args:
        run: the run.
        scratch: a folder for temporary files.

    Raises:
        FormatError: a video id that is no plain file name.
    """

    def __init__(self, run: Run, scratch: Path) -> None:
        self._run, self._scratch = run, scratch
        self.notes: list[str] = []
        self.videos: list[VideoEntry] = []
        for entry in run.videos:
            check_name(entry.video_id, str(run.folder))
            if entry.status == "failed":
                self.notes.append(f"{entry.video_id} failed when it was tracked and is left out")
                continue
            check_size(entry.width, entry.height, f"{run.folder}, video {entry.video_id}")
            if entry.status == "partial":
                self.notes.append(
                    f"{entry.video_id} is partial: {entry.error or 'it has fewer frames than it promised'}"
                )
            self.videos.append(entry)

    @property
    def prompts(self) -> list[str]:
        """The phrases that were searched for, in the user's order."""
        return list(self._run.manifest.prompts)

    def categories(self) -> Categories:
        """Fresh category ids."""
        return Categories(self.prompts)

    def frames(self, entry: VideoEntry) -> Iterator[FrameResult]:
        """The frames with objects, in time order.

        Raises:
            RunError: a part is damaged, foreign, or its rows contradict the manifest.
        """
        last = -1
        frames = self._run.frames(entry.video_id)
        while True:
            try:
                result = next(frames, None)
            except (TypeError, ValueError, KeyError, IndexError) as error:
                where = str(self._run.folder / "masklets" / entry.video_id)
                raise RunError("a part is damaged", where, f"after frame {last}: {error}") from error
            if result is None:
                return
            self._check(result, entry, last)
            last = result.index
            yield result

    def masklets(self, entry: VideoEntry) -> Iterator[Masklet]:
        """The masklets by id, one in memory at a time; the rows pass through a temporary file."""
        with Spill(self._scratch / "rows.sqlite") as spill:
            for result in self.frames(entry):
                spill.add_frame(0, result)
            yield from spill.masklets(0, entry.video_id, (entry.height, entry.width))

    def _check(self, result: FrameResult, entry: VideoEntry, last: int) -> None:
        fault = _fault(result, entry, last)
        if fault:
            where = f"{self._run.folder}, video {entry.video_id}, frame {result.index}"
            raise RunError(f"the run's rows are damaged: {fault}", where, "track this video again")


def _fault(result: FrameResult, entry: VideoEntry, last: int) -> str | None:
    """What contradicts the contract of the run folder in this frame, or ``None``."""
    if not last < result.index < entry.num_frames:
        return f"the frame is not within {last + 1}..{entry.num_frames - 1}"
    ids = result.masklet_id
    if len(ids) and (ids[0] < 1 or (np.diff(ids) <= 0).any()):
        return "masklet ids do not ascend from 1"
    if not (np.isfinite(result.score).all() and np.isfinite(result.xyxy).all() and np.isfinite(result.pts_s)):
        return "a score, a box or the time is not finite"
    faults = (fault_of(rle, (entry.height, entry.width)) for rle in result.rles)
    return next((f"a mask does not fit: {f}" for f in faults if f), None)


def check_name(name: str, where: str) -> str:
    """``name``, if it is a plain file name.

    Raises:
        FormatError: it is empty, hidden, too long, or would leave its folder.
    """
    harmful = (
        not name or name.startswith(".") or len(name.encode()) > 200 or any(c in "/\\:" or ord(c) < 32 for c in name)
    )
    if harmful:
        raise FormatError(f"{name[:60]!r} cannot be a file name", where, "rename the video")
    return name


def rate_of(entry: VideoEntry) -> Fraction:
    """The frame rate; 24 where the source states none (as its times were made)."""
    return fps_fraction(entry) or Fraction(24)


def xywh(xyxy: Iterable[float]) -> list[float]:
    """COCO's box of ours."""
    x1, y1, x2, y2 = (float(v) for v in xyxy)
    return [x1, y1, x2 - x1, y2 - y1]


def short(value: Any) -> float:
    """A float32 as the shortest decimal that reads back as the same float32."""
    return float(str(np.float32(value)))
