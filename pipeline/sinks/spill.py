"""Rows parked in a file to be read back in another order, so that no whole video has to be in memory.

A run is stored frame by frame; half of the formats want masklet by masklet, and imported files come in any order.
SQLite sorts on disk and is in the standard library.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pipeline.results import FrameResult
from pipeline.types import RLE, Masklet

Row = tuple[int, int, int, float, int, float, float, float, float, float, bytes]
"""``(video, frame, track, pts_s, prompt, score, x1, y1, x2, y2, counts)``"""

_BATCH_ROWS = 5_000
_CACHE_KIB = 32_768


class Spill:
    """A temporary table of rows. A context manager: leaving it deletes the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: dict[str, int] = {}
        self._pending: list[Row] = []
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}", "temp_store=FILE"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute(
            "CREATE TABLE rows (video INT, frame INT, track INT, pts REAL, prompt INT, score REAL,"
            " x1 REAL, y1 REAL, x2 REAL, y2 REAL, counts BLOB)"
        )

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        self._path.unlink(missing_ok=True)

    def add(
        self,
        video: int,
        frame: int,
        track: int,
        pts_s: float,
        prompt: str,
        score: float,
        xyxy: Iterable[float],
        counts: bytes,
    ) -> None:
        """Park one row; all numbers must fit 64 bits."""
        x1, y1, x2, y2 = xyxy
        prompt_key = self._names.setdefault(prompt, len(self._names))
        self._pending.append((video, frame, track, pts_s, prompt_key, score, x1, y1, x2, y2, counts))
        if len(self._pending) >= _BATCH_ROWS:
            self._flush()

    def add_frame(self, video: int, result: FrameResult) -> None:
        """Park the rows of a frame, the masklet id as the track."""
        columns = (result.masklet_id.tolist(), result.prompt, result.score.tolist(), result.xyxy.tolist(), result.rles)
        for masklet_id, prompt, score, xyxy, rle in zip(*columns, strict=True):
            self.add(video, result.index, masklet_id, result.pts_s, prompt, score, xyxy, rle.counts)

    def _flush(self) -> None:
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO rows VALUES (?,?,?,?,?,?,?,?,?,?,?)", self._pending)
        self._db.execute("COMMIT")
        self._pending.clear()

    def duplicate(self) -> tuple[int, int, int] | None:
        """A ``(video, frame, track)`` that was parked twice, or ``None``."""
        self._flush()
        found = self._db.execute(
            "SELECT video, frame, track FROM rows GROUP BY video, frame, track HAVING COUNT(*) > 1 LIMIT 1"
        ).fetchone()
        return tuple(found) if found else None

    def _select(self, video: int, order: str) -> Iterator[Row]:
        self._flush()
        return self._db.execute(f"SELECT * FROM rows WHERE video = ? ORDER BY {order}", (video,))

    def frames(self, video: int) -> Iterator[tuple[int, list[tuple[Row, str]]]]:
        """``(frame, rows with their phrases)`` in time order, the rows of a frame by track."""
        names = list(self._names)
        for frame, rows in groupby(self._select(video, "frame, track"), key=lambda row: row[1]):
            yield frame, [(row, names[row[4]]) for row in rows]

    def masklets(self, video: int, video_id: str, size: tuple[int, int]) -> Iterator[Masklet]:
        """The video's masklets by id, one in memory at a time."""
        names = list(self._names)
        for masklet_id, rows in groupby(self._select(video, "track, frame"), key=lambda row: row[2]):
            yield _masklet(masklet_id, video_id, names, list(rows), size)


def _masklet(masklet_id: int, video_id: str, names: list[str], rows: list[Any], size: tuple[int, int]) -> Masklet:
    return Masklet(
        masklet_id,
        video_id,
        names[rows[0][4]],
        np.array([row[1] for row in rows], np.int64),
        np.array([row[3] for row in rows], np.float64),
        np.array([row[5] for row in rows], np.float32),
        np.array([row[6:10] for row in rows], np.float32),
        tuple(RLE(size, row[10]) for row in rows),
    )
