"""What is remembered of one video between two of its frames: tracker, frames on probation, numbers, looks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pipeline.errors import RunError
from pipeline.link import MaskletNumbering, ReleaseBuffer
from pipeline.types import Float32Array, FrameTracks, Tracker

_HEAD_SIGHTS = 12
"""Frames on which a newcomer's look still counts as what it looked like at first."""
_LOOK_EVERY_FRAMES = 4
"""Looks are running means; between two readings they hardly move."""


class VideoState:
    """One video under way. :meth:`save` between two frames and :meth:`restore` later go on bit-equal.

    Args:
        tracker: fresh, or restored with :meth:`restore`.
        buffer: the frames on probation.
        numbering: masklet ids so far.
        keeps_looks: note how objects look; they are kept to the end, so only for a piece that is to be stitched.
    """

    def __init__(
        self, tracker: Tracker, buffer: ReleaseBuffer, numbering: MaskletNumbering, *, keeps_looks: bool = True
    ) -> None:
        self.tracker, self.buffer, self.numbering = tracker, buffer, numbering
        self.looks = Looks(tracker if keeps_looks else None)

    @property
    def counters(self) -> dict[str, int]:
        """What was dropped or taken back so far; without zeros."""
        counted: dict[str, int] = getattr(self.tracker, "counters", {})
        return {k: v for k, v in {"withdrawn": self.buffer.num_withdrawn, **counted}.items() if v}

    def save(self, folder: Path) -> None:
        """Write the whole state into a folder of its own."""
        self.tracker.save(folder)
        ids = sorted(self.numbering.ids.items())
        state = {"ids": ids, "num_masklets": self.numbering.num_masklets, "buffer": self.buffer.state()}
        (folder / "video.json").write_text(json.dumps(state), encoding="utf-8")

    def restore(self, folder: Path, stream_id: str) -> None:
        """Continue from what :meth:`save` wrote with the same models and configuration.

        Raises:
            RunError: it cannot be read.
        """
        self.tracker.restore(folder)
        try:
            state = json.loads((folder / "video.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read a piece's state: {error}", str(folder), "track with --overwrite") from error
        self.numbering.restore(dict(state["ids"]), state["num_masklets"])
        self.buffer.restore(stream_id, state["buffer"])


class Looks:
    """How every object looked when it came and when it was last seen, for the tracker to be asked while it knows.

    A tracker without ``appearances(track_ids) -> float32 (n, d)`` gives none, nor does ``None``.
    """

    def __init__(self, tracker: Tracker | None) -> None:
        self._appearances = getattr(tracker, "appearances", None)
        self._sights: dict[int, int] = {}
        self._step = 0
        self.head: dict[int, Float32Array] = {}
        """Unit vectors by track id."""
        self.tail: dict[int, Float32Array] = {}

    def note(self, tracks: FrameTracks) -> None:
        """Take in a frame the tracker has just done."""
        if self._appearances is None:
            return
        for track_id in tracks.withdrawn.tolist():
            self._sights.pop(track_id, None)
            self.head.pop(track_id, None)
            self.tail.pop(track_id, None)
        ids = tracks.track_id[[self._is_due(int(t)) for t in tracks.track_id]] if len(tracks) else tracks.track_id
        self._step += 1
        for track_id, look in zip(ids.tolist(), self._appearances(ids) if len(ids) else (), strict=True):
            if not look.any():
                continue
            self.tail[track_id] = look
            if self._sights[track_id] <= _HEAD_SIGHTS:
                self.head[track_id] = look

    def _is_due(self, track_id: int) -> bool:
        """Count a sight; whether to look: at newcomers at once, then now and then."""
        self._sights[track_id] = self._sights.get(track_id, 0) + 1
        return self._sights[track_id] == 1 or (self._step + track_id) % _LOOK_EVERY_FRAMES == 0

    def save(self, file: Path, masklet_ids: dict[int, int]) -> None:
        """Write ``masklet_id (n,) head (n, d) tail (n, d)`` of all that got a number; no file without any look."""
        known = sorted((masklet_ids[t], t) for t in self.head if t in masklet_ids)
        if known:
            np.savez(
                file,
                masklet_id=np.array([m for m, _ in known], np.int32),
                head=np.stack([self.head[t] for _, t in known]).astype(np.float32),
                tail=np.stack([self.tail[t] for _, t in known]).astype(np.float32),
            )


def read_looks(file: Path) -> dict[int, tuple[Float32Array, Float32Array]]:
    """``(head, tail)`` by masklet id of what :meth:`Looks.save` wrote; empty without a file.

    Raises:
        RunError: it is damaged.
    """
    if not file.exists():
        return {}
    try:
        with np.load(file, allow_pickle=False) as data:
            columns = zip(data["masklet_id"].tolist(), data["head"], data["tail"], strict=True)
            return {int(masklet_id): (head, tail) for masklet_id, head, tail in columns}
    except (OSError, ValueError, KeyError) as error:
        raise RunError("the looks of a piece are damaged", str(file), "track this video again with --resume") from error
