"""Detections from a file instead of a model: association measured on real detections, or another tool's results.

Reads MOTChallenge detection text, COCO JSON and Parquet (a run folder's ``masklets`` too):

* MOT: ``frame,id,left,top,width,height,confidence[,...]``, frames from 1; a file for one video, or a folder of
  ``VIDEO.txt`` or ``VIDEO/det/*.txt``. The text names no phrase: all rows belong to the one that is asked for.
* COCO: a list of results, ``image_id`` being the 0-based frame, or a whole data set (``images`` with ``frame_id`` and
  ``video_id``). Boxes, run lengths, or both; phrases are the categories' names.
* Parquet: ``frame, x1, y1, x2, y2``, and where there are such columns ``score, prompt, video_id, rle``.

Every row counts: ``detector.score_threshold`` is for models, and ByteTrack makes use of weak detections.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import DetectorConfig
from pipeline import masks as mask_ops
from pipeline.detectors.scripted_files import ANY_VIDEO, DetectionRow, read_detections
from pipeline.errors import FormatError, UsageError
from pipeline.types import RLE, Detections, Float32Array, Frame, Prompts

UNNAMED = "object"
"""The phrase of rows without one, where none is asked for."""
_MAX_LOGITS = 1 << 26
"""Mask values of one frame kept at full size (256 MB); beyond that every second pixel of each axis is left out."""


def scripted_prompts(config: DetectorConfig, phrases: Sequence[str]) -> Prompts:
    """The phrases to report: those asked for, or else all that the file names, in order of appearance.

    Raises:
        UsageError: several phrases are asked for, but the file names none; or it has none of them.
        FormatError: the file is malformed.
    """
    names = list(dict.fromkeys(row.phrase for _, row in _rows(config) if row.phrase is not None))
    wanted = [" ".join(p.split()) for p in phrases] or names or [UNNAMED]
    if not names and len(wanted) > 1:
        raise UsageError("the detections name no phrases, so they can belong to one only", str(config.detections))
    if names and not set(wanted) & set(names):
        raise UsageError(
            f"no detection of {', '.join(wanted)}", str(config.detections), f"it has: {', '.join(names[:8])}"
        )
    return Prompts(tuple(wanted), np.zeros((len(wanted), 1, 1), np.float32), np.ones((len(wanted), 1), bool))


def _rows(config: DetectorConfig) -> Iterable[tuple[str, DetectionRow]]:
    if config.detections is None:
        raise UsageError("no detections are given", "detector.detections", "name a file")
    return read_detections(Path(config.detections))


class ScriptedDetector:
    """Hands out the detections of a file, frame by frame; a :class:`pipeline.types.Detector`.

    Args:
        config: ``detections`` names the file or folder.

    Raises:
        FormatError: it is malformed. UsageError: it does not exist.
    """

    def __init__(self, config: DetectorConfig) -> None:
        self._where = str(config.detections)
        self._videos: dict[str, dict[int, list[DetectionRow]]] = {}
        for video_id, row in _rows(config):
            self._videos.setdefault(video_id, {}).setdefault(row.frame, []).append(row)

    @property
    def video_ids(self) -> list[str]:
        """The videos the file names; empty if it is for any video."""
        return [v for v in self._videos if v != ANY_VIDEO]

    def detect(self, frames: Sequence[Frame], prompts: Prompts) -> list[Detections]:
        """The rows of each frame whose phrase is among ``prompts``, best first.

        Raises:
            FormatError: a mask is not of the frame's size. UsageError: the file has other videos only.
        """
        return [self._of_frame(frame, prompts) for frame in frames]

    def _of_frame(self, frame: Frame, prompts: Prompts) -> Detections:
        number = {phrase: i for i, phrase in enumerate(prompts.phrases[: prompts.num_wanted])}
        found = [
            (row, 0 if row.phrase is None else number[row.phrase])
            for row in self._video(frame.stream_id).get(frame.index, [])
            if row.phrase is None or row.phrase in number
        ]
        if not found:
            return Detections.empty()
        found.sort(key=lambda item: -item[0].score)
        rows = [row for row, _ in found]
        where = f"{self._where}, frame {frame.index}"
        return Detections(
            np.array([_box(row, frame.source_size, where) for row in rows], np.float32),
            np.array([row.score for row in rows], np.float32),
            np.array([prompt for _, prompt in found], np.int16),
            _logits(rows, frame.source_size),
        )

    def _video(self, stream_id: str) -> dict[int, list[DetectionRow]]:
        """This video's rows by frame."""
        video = self._videos.get(stream_id) or self._videos.get(ANY_VIDEO)
        if video is None and self._videos:
            known = ", ".join(self.video_ids[:5])
            raise UsageError(f"no detections of video {stream_id!r}", self._where, f"it has: {known}")
        return video or {}


def _box(row: DetectionRow, size: tuple[int, int], where: str) -> Sequence[float]:
    if row.rle is not None:
        fault = mask_ops.fault_of(row.rle, size)
        if fault:
            raise FormatError(f"a mask does not fit the video: {fault}", where)
        if row.xyxy is None:
            box: list[float] = mask_ops.rle_boxes([row.rle])[0].tolist()
            return box
    assert row.xyxy is not None, "a row has a box or a mask"
    return row.xyxy


def _logits(rows: Sequence[DetectionRow], size: tuple[int, int]) -> Float32Array:
    """Masks as logits of -1 and 1, ``(N, H, W)``; ``(N, 1, 1)`` where all rows are boxes."""
    if all(row.rle is None for row in rows):
        return np.ones((len(rows), 1, 1), np.float32)
    step = 1
    while len(rows) * (size[0] // step) * (size[1] // step) > _MAX_LOGITS:
        step *= 2
    masks = [_mask(row, size)[::step, ::step] for row in rows]
    return np.where(np.stack(masks), np.float32(1), np.float32(-1))


def _mask(row: DetectionRow, size: tuple[int, int]) -> Any:
    rle: RLE | None = row.rle
    return mask_ops.decode([rle])[0] if rle is not None else mask_ops.boxes_to_masks(np.array([row.xyxy]), size)[0]
