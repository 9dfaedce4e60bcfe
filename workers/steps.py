"""A unit done in steps: rows and state are committed piece by piece, and another attempt goes on from the last piece.

``UNITS/.steps/KEY/00000/`` appears by atomic rename like a unit and holds ``masklets/part-*.parquet`` of this piece,
``state/`` (what the tracker, the frames on probation and the numbering are after its last frame) and ``unit.json``. An
attempt starts with the parts of all unbroken pieces as its own. The unit itself is committed as any other; then its
pieces are removed. Since state is saved between two frames and goes on bit-equal, rows equal those of an attempt
without steps.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.store import VideoWriter
from workers.units import STEPS, UnitFolder, UnitReport, committed, link_parts
from workers.video_state import VideoState


class Steps:
    """The pieces of one attempt at a unit; without ``cuts`` nothing is ever committed before its end.

    Args:
        units: where units are committed.
        key: the unit's.
        cuts: the frame each piece but the last ends before, ascending.
        stride: distance of the frames that are tracked.
    """

    def __init__(self, units: Path, key: str, cuts: Sequence[int], stride: int) -> None:
        self._root = units / STEPS / key
        self._cuts, self._stride = list(cuts), stride
        self._num_done = self._num_parts = 0

    def resume(self, folder: UnitFolder, state: VideoState, report: UnitReport) -> int:
        """Take over what an earlier attempt committed: rows, state and figures; the first frame that is left to do."""
        first = report.start
        while self._num_done < len(self._cuts):
            done = committed(self._root, _name(self._num_done))
            if done is None:
                break
            self._num_parts += link_parts(self._root / done.key / "masklets", folder.masklets)
            self._num_done, first = self._num_done + 1, done.stop
            report.num_tracked, report.num_masklets = done.num_tracked, done.num_masklets
            report.timings_s = dict(done.timings_s)
        if self._num_done:
            state.restore(self._root / _name(self._num_done - 1) / "state", report.video_id)
        return first

    @property
    def num_parts(self) -> int:
        """Parts committed so far."""
        return self._num_parts

    def after_frame(
        self, index: int, writer: VideoWriter, state: VideoState, report: UnitReport, folder: UnitFolder
    ) -> None:
        """Commit a piece if ``index`` was its last frame; all rows that are final must be written already."""
        if self._num_done >= len(self._cuts) or index + self._stride < self._cuts[self._num_done]:
            return
        name, cut = _name(self._num_done), self._cuts[self._num_done]
        writer.commit()
        piece = UnitFolder(self._root, name)
        try:
            self._num_parts += link_parts(folder.masklets, piece.masklets, self._num_parts)
            state.save(piece.temporary / "state")
            piece.commit(replace(report, key=name, stop=cut))
        finally:
            piece.discard()
        self._num_done += 1

    def discard(self) -> None:
        """Remove all pieces: the unit is committed."""
        shutil.rmtree(self._root, ignore_errors=True)


def _name(ordinal: int) -> str:
    return f"{ordinal:05d}"
