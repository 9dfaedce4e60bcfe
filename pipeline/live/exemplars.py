"""``--box`` on live streams: boxes drawn on frames of the first camera say what to look for on all of them.

A file's frames are read beforehand, as ``track`` does. A camera's are those that are tracked: a box waits for the first
one at or after its frame. The pictures are kept beside the saved state, so that a restarted stream looks for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.types import BoxPrompt, Frame, Prompts

PLACEHOLDER = "visual"
"""The phrase of a stream that has boxes alone (as in ``Sam3Processor``); nothing is looked for until they are seen."""
EncodeBoxes = Callable[[Frame, Sequence[BoxPrompt], Prompts], Prompts]


class Exemplars:
    """The boxes of a stream command and the frames they are drawn on.

    Args:
        boxes: as the user drew them.
        stream_id: the camera whose frames they are drawn on.
        encode_boxes: the detector's.
        folder: keeps the frames; a restarted stream finds them there.
    """

    def __init__(
        self, boxes: Sequence[BoxPrompt], stream_id: str, encode_boxes: EncodeBoxes, folder: Path | None = None
    ) -> None:
        self._encode_boxes, self._stream_id, self._folder = encode_boxes, stream_id, folder
        self._boxes: dict[int, list[BoxPrompt]] = {}
        for box in boxes:
            self._boxes.setdefault(box.frame, []).append(box)
        self._frames: dict[int, Frame] = {}
        self._applied: dict[int, tuple[Prompts, Prompts]] = {}
        for index in self._boxes:
            self._load(index)

    @property
    def missing(self) -> list[int]:
        """Frames that boxes are drawn on and that were not seen yet."""
        return sorted(set(self._boxes) - set(self._frames))

    def see(self, frame: Frame) -> bool:
        """Keep a frame that boxes wait for; true if prompts have to be :meth:`applied` anew."""
        due = [i for i in self.missing if i <= frame.index] if frame.stream_id == self._stream_id else []
        for index in due:
            self._frames[index] = frame
            self._save(index)
        if due:
            self._applied.clear()
        return bool(due)

    def applied(self, prompts: Prompts) -> Prompts:
        """``prompts`` with what the boxes show, as far as their frames were seen; the same object for the same prompts.

        Raises:
            UsageError: a box without area inside its frame.
        """
        known = self._applied.get(id(prompts))
        if known is None or known[0] is not prompts:
            known = self._applied[id(prompts)] = (prompts, self._apply(prompts))
        return known[1]

    def _apply(self, prompts: Prompts) -> Prompts:
        found = prompts
        for index in sorted(self._frames):
            frame = self._frames[index]
            boxes = [replace(box, frame=frame.index) for box in self._boxes[index]]
            found = self._encode_boxes(frame, boxes, found)
        waits = self.missing and not self._frames and prompts.phrases[: prompts.num_wanted] == (PLACEHOLDER,)
        return _nothing(prompts) if waits else found

    def _path(self, index: int) -> Path | None:
        return self._folder / f"frame-{index}.npz" if self._folder is not None else None

    def _save(self, index: int) -> None:
        path, frame = self._path(index), self._frames[index]
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, image=frame.image, source_size=frame.source_size, index=frame.index, pts_s=frame.pts_s)

    def _load(self, index: int) -> None:
        path = self._path(index)
        if path is None or not path.exists():
            return
        with np.load(path) as kept:
            height, width = kept["source_size"].tolist()
            self._frames[index] = Frame(
                self._stream_id, int(kept["index"]), float(kept["pts_s"]), kept["image"], (height, width)
            )


def _nothing(prompts: Prompts) -> Prompts:
    return Prompts((), prompts.embeddings[:0], prompts.mask[:0])
