"""Foreign rows become a run folder: checked, put in time order, renumbered, committed at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import masks as mask_ops
from pipeline.errors import FormatError
from pipeline.results import FrameResult
from pipeline.sinks.reading import check_name
from pipeline.sinks.segmentation import check_size, whole
from pipeline.sinks.spill import Row, Spill
from pipeline.store import Manifest, RunWriter, VideoEntry
from pipeline.types import RLE

DEFAULT_FPS = Fraction(24)
"""Where a file states no rate: the time of a frame has to be something."""


@dataclass(slots=True)
class _Video:
    ordinal: int
    entry: VideoEntry
    tracks: dict[Hashable, int] = field(default_factory=dict)
    last_frame: int = -1
    num_frames_known: bool = True


class Intake:
    """Takes an importer's rows in any order and writes them as a run.

    Args:
        spill: where rows wait to be sorted.
        where: the file they come from, for messages.
        text: the phrase of rows whose format names none.
        size: ``(width, height)`` where the format states none.
        fps: the frame rate where the format states none.
    """

    def __init__(
        self,
        spill: Spill,
        where: str,
        *,
        text: str = "object",
        size: tuple[int, int] | None = None,
        fps: Fraction | None = None,
    ) -> None:
        self._spill, self._where = spill, where
        self.text, self.size_hint, self._fps = text, size, fps
        self._counts: dict[str, int] = {}
        self._videos: dict[Hashable, _Video] = {}
        self._prompts: dict[str, None] = {}

    @property
    def notes(self) -> list[str]:
        """What was assumed or left out."""
        return [f"{n} {what}" if n else what for what, n in self._counts.items()]

    def note(self, what: str) -> None:
        """Say once what was assumed."""
        self._counts.setdefault(what, 0)

    def count(self, what: str) -> None:
        """Count one more of what was left out; lost data is never silent."""
        self._counts[what] = self._counts.get(what, 0) + 1

    def add_prompt(self, prompt: Any) -> str:
        """Make a phrase known, in this order, whether or not a row has it.

        Raises:
            FormatError: not a text, or empty.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise FormatError(f"a category's name must be text, but got {str(prompt)[:40]!r}", self._where)
        self._prompts.setdefault(prompt)
        return prompt

    def add_video(
        self,
        key: Hashable,
        name: str,
        *,
        width: Any,
        height: Any,
        num_frames: Any = None,
        fps: Fraction | None = None,
        uri: str = "",
        prompts: Sequence[str] | None = None,
        num_annotated: int | None = None,
    ) -> None:
        """Make a video known.

        Without ``num_frames`` it has one more than its last row; without ``num_annotated`` all of them were annotated.

        Raises:
            FormatError: the key came before, or name, size or length make no sense.
        """
        if key in self._videos:
            raise FormatError(f"video {key!r} is listed twice", self._where)
        video_id = self._unique(safe_video_id(name, self._where))
        h, w = check_size(width, height, f"{self._where}, video {video_id}")
        frames = 0 if num_frames is None else whole(num_frames, "the number of frames", self._where)
        if not 0 <= frames < 2**31:
            raise FormatError(f"{frames} frames in a video", self._where)
        entry = VideoEntry(video_id, uri or name, "done", width=w, height=h, num_frames=frames)
        rate = fps or self._fps
        entry.fps = f"{rate.numerator}/{rate.denominator}" if rate else None
        entry.prompts = list(prompts) if prompts is not None else None
        entry.num_tracked = num_annotated or 0
        self._videos[key] = _Video(len(self._videos), entry, num_frames_known=num_frames is not None)

    def _unique(self, video_id: str) -> str:
        taken = {v.entry.video_id.casefold() for v in self._videos.values()}
        names = (video_id if n == 1 else f"{video_id}-{n}" for n in range(1, len(taken) + 2))
        return next(name for name in names if name.casefold() not in taken)

    def size(self, key: Hashable) -> tuple[int, int]:
        """``(H, W)`` of a video.

        Raises:
            FormatError: no such video.
        """
        entry = self._video(key).entry
        return entry.height, entry.width

    def _video(self, key: Hashable) -> _Video:
        try:
            return self._videos[key]
        except (KeyError, TypeError):
            raise FormatError(f"a row belongs to video {str(key)[:40]!r}, which is not listed", self._where) from None

    def add(
        self,
        key: Hashable,
        frame: int,
        track: Hashable,
        prompt: str,
        score: float,
        rle: RLE,
        *,
        xyxy: Sequence[float] | None = None,
        pts_s: float | None = None,
    ) -> None:
        """Take one mask. ``xyxy`` is for formats whose box is more exact than the mask's; else the tight box is used.

        Raises:
            FormatError: an unlisted video, or a frame outside it.
        """
        video = self._video(key)
        limit = video.entry.num_frames if video.num_frames_known else 2**31 - 1
        if not 0 <= frame < limit:
            where = f"{self._where}, video {video.entry.video_id}"
            raise FormatError(f"frame {frame} is not within the video's {limit} frames", where)
        video.last_frame = max(video.last_frame, frame)
        ordinal = video.tracks.setdefault(track, len(video.tracks))
        self._prompts.setdefault(prompt)
        rate = Fraction(video.entry.fps) if video.entry.fps else DEFAULT_FPS
        time_s = float(frame / rate) if pts_s is None else pts_s
        box = mask_ops.rle_boxes([rle])[0].tolist() if xyxy is None else xyxy
        self._spill.add(video.ordinal, frame, ordinal, time_s, prompt, score, box, rle.counts)

    def write(self, folder: Path, source: str) -> Manifest:
        """Write the run folder; ids are given from 1 in order of first appearance.

        Raises:
            FormatError: a track that has two masks on one frame.
        """
        self._refuse_duplicates()
        self._prompts = self._prompts or {self.text: None}
        manifest = Manifest(
            "", {"id": f"imported from {source}", "fingerprint": ""}, list(self._prompts), [], "imported"
        )
        writer = RunWriter.create(folder, manifest, "{}\n")
        for video in self._videos.values():
            if not video.num_frames_known:
                video.entry.num_frames = video.last_frame + 1
            self._write_video(writer, video)
        writer.manifest.status = "complete"
        writer.manifest.sources = [self._where]
        writer.save()
        return writer.manifest

    def _refuse_duplicates(self) -> None:
        found = self._spill.duplicate()
        if found:
            ordinal, frame, track = found
            video = next(v for v in self._videos.values() if v.ordinal == ordinal)
            name = next(key for key, number in video.tracks.items() if number == track)
            where = f"{self._where}, video {video.entry.video_id}, frame {frame}"
            raise FormatError(f"id {name!r} is there twice", where)

    def _write_video(self, writer: RunWriter, video: _Video) -> None:
        entry, numbers = video.entry, _Numbers(video.tracks)
        with writer.video(entry.video_id, rows_per_part=20_000, frames_per_part=2_000) as out:
            for frame, rows in self._spill.frames(video.ordinal):
                out.write(_frame_result(entry, frame, rows, numbers))
        entry.num_tracked = entry.num_tracked or entry.num_frames
        entry.num_masklets = len(numbers)
        if entry.fps:
            entry.duration_s = float(entry.num_frames / Fraction(entry.fps))
        writer.list_video(entry)
        if writer.is_save_due:
            writer.save()


class _Numbers:
    """Masklet ids by track, given as tracks first appear; those that appear together in the order of their own ids."""

    def __init__(self, tracks: dict[Hashable, int]) -> None:
        self._ids: dict[int, int] = {}
        numbers = [key for key in tracks if isinstance(key, int)]
        order = sorted(numbers) if len(numbers) == len(tracks) else tracks
        self._rank = {tracks[key]: rank for rank, key in enumerate(order)}

    def __len__(self) -> int:
        return len(self._ids)

    def number(self, tracks: list[int]) -> list[int]:
        """The ids of the tracks of one frame."""
        for track in sorted(tracks, key=self._rank.__getitem__):
            self._ids.setdefault(track, len(self._ids) + 1)
        return [self._ids[track] for track in tracks]


def _frame_result(entry: VideoEntry, frame: int, rows: list[tuple[Row, str]], numbers: _Numbers) -> FrameResult:
    ids = numbers.number([row[2] for row, _ in rows])
    numbered = sorted(((i, row, prompt) for i, (row, prompt) in zip(ids, rows, strict=True)), key=lambda item: item[0])
    size = (entry.height, entry.width)
    return FrameResult(
        entry.video_id,
        frame,
        rows[0][0][3],
        size,
        np.array([number for number, _, _ in numbered], np.int32),
        tuple(prompt for _, _, prompt in numbered),
        np.array([row[5] for _, row, _ in numbered], np.float32),
        np.array([row[6:10] for _, row, _ in numbered], np.float32),
        tuple(RLE(size, row[10]) for _, row, _ in numbered),
    )


def safe_video_id(name: Any, where: str) -> str:
    """A video's foreign name as a video id: its path with ``_`` for the separators.

    Raises:
        FormatError: a path that climbs or starts at the root, or a name that no file can have.
    """
    if not isinstance(name, str) or not name:
        raise FormatError(f"a video's name must be text, but got {str(name)[:40]!r}", where)
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or name[0] in "/\\" or ":" in parts[0]:
        raise FormatError(f"the video name {name[:60]!r} leaves its folder", where)
    return check_name("_".join(part for part in parts if part not in ("", ".")), where)
