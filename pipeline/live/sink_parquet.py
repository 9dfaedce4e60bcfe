"""Rolling Parquet parts of a stream without an end: ``masklets/ID/part-N`` as in any run, and ``events/ID/part-N``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.live.checkpoint import Past
from pipeline.live.events import Event, LiveResult
from pipeline.live.sinks import Item
from pipeline.results import FrameResult
from pipeline.store import rows_table, write_atomically

EVENT_SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("kind", pa.string()),
        ("stream_id", pa.string()),
        ("session", pa.int32()),
        ("frame", pa.int32()),
        ("pts_s", pa.float64()),
        ("wall_s", pa.float64()),
        ("masklet_id", pa.int32()),
        ("prompt", pa.string()),
        ("gap_s", pa.float64()),
        ("detail", pa.string()),
    ]
)
"""Columns of ``events``."""


_KINDS = ("masklets", "events")


class SegmentWriter:
    """Parts of one stream, each covering ``segment_s`` of stream time.

    The last part is open: :meth:`commit` writes what it has so far, and again with more, each time by one rename. So
    readers always see whole parts, and a crash costs what came after the last commit.
    """

    def __init__(self, folder: Path, *, segment_s: float, rows_per_part: int) -> None:
        self._folder, self._segment_s, self._rows_per_part = folder, segment_s, rows_per_part
        folder.mkdir(parents=True, exist_ok=True)
        parts = sorted(folder.glob("part-*.parquet"))
        self._part = len(parts)
        self._last_frame = max((_last(p, "frame") for p in parts), default=-1)
        self.num_repeated = 0
        """Frames with rows that were not written, because later ones were there already."""
        self._frames: list[FrameResult] = []
        self._num_rows = 0
        self._is_dirty = not parts
        self._segment: int | None = None

    def add(self, result: FrameResult) -> None:
        """Append a frame; one that an earlier process already committed is passed over, and counted."""
        if result.index <= self._last_frame:
            self.num_repeated += bool(len(result))
            return
        segment = int(result.pts_s // self._segment_s)
        if self._segment is not None and (segment != self._segment or self._num_rows >= self._rows_per_part):
            self.roll()
        self._segment = segment
        self._last_frame = result.index
        if len(result):
            self._frames.append(result)
            self._num_rows += len(result)
            self._is_dirty = True

    def roll(self) -> None:
        """Close the open part, if it has rows."""
        self.commit()
        if self._frames:
            self._part += 1
            self._frames, self._num_rows = [], 0

    def commit(self) -> None:
        """Write the open part. A stream without any row gets one empty part: readers need its schema."""
        if self._is_dirty:
            _write(self._folder / f"part-{self._part:05d}.parquet", rows_table(self._frames))
            self._is_dirty = False


class EventWriter:
    """Event parts of one stream, rolled by number of events."""

    _PER_PART = 5_000

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._part = len(list(folder.glob("part-*.parquet")))
        self._events: list[Event] = []
        self._is_dirty = False

    def add(self, event: Event) -> None:
        """Append an event."""
        if len(self._events) >= self._PER_PART:
            self.commit()
            self._part += 1
            self._events = []
        self._events.append(event)
        self._is_dirty = True

    def commit(self) -> None:
        """Write the open part."""
        if self._is_dirty:
            columns = [pa.array([getattr(e, f.name) for e in self._events], type=f.type) for f in EVENT_SCHEMA]
            table = pa.Table.from_arrays(columns, schema=EVENT_SCHEMA)
            _write(self._folder / f"part-{self._part:05d}.parquet", table)
            self._is_dirty = False


class ParquetSink:
    """Rows and events of all streams under one folder."""

    wants_pictures = False

    def __init__(self, folder: Path, *, segment_s: float, rows_per_part: int) -> None:
        self._folder, self._segment_s, self._rows_per_part = folder, segment_s, rows_per_part
        self._rows: dict[str, SegmentWriter] = {}
        self._events: dict[str, EventWriter] = {}

    def write(self, items: Sequence[Item]) -> int:
        """Append; a part is written when it is full."""
        for item in items:
            if isinstance(item, LiveResult):
                self._rows_of(item.result.video_id).add(item.result)
            else:
                self._events_of(item.stream_id).add(item)
        return 0

    @property
    def num_repeated(self) -> int:
        """Frames that were handed out again and are not written twice."""
        return sum(rows.num_repeated for rows in self._rows.values())

    def past(self, stream_id: str) -> Past:
        """What the folder has of a stream already."""
        rows, events = (sorted((self._folder / kind / stream_id).glob("part-*.parquet")) for kind in _KINDS)
        frames = [_last(p, "frame") for p in (*rows, *events)]
        masklets = [_highest(p, "masklet_id") for p in (*rows, *events)]
        times = [_last(p, "pts_s") for p in rows[-1:]]
        return Past(
            next_frame=int(max(frames, default=-1)) + 1,
            num_masklets=int(max(masklets, default=0)),
            next_session=int(max((_highest(p, "session") for p in events), default=-1 if not rows else 0)) + 1,
            pts_s=max(times, default=0.0),
            wall_s=max((p.stat().st_mtime for p in rows[-1:]), default=0.0),
        )

    def _rows_of(self, stream_id: str) -> SegmentWriter:
        if stream_id not in self._rows:
            self._rows[stream_id] = SegmentWriter(
                self._folder / "masklets" / stream_id, segment_s=self._segment_s, rows_per_part=self._rows_per_part
            )
        return self._rows[stream_id]

    def _events_of(self, stream_id: str) -> EventWriter:
        if stream_id not in self._events:
            self._events[stream_id] = EventWriter(self._folder / "events" / stream_id)
        return self._events[stream_id]

    def flush(self) -> None:
        """Write all open parts."""
        for rows in self._rows.values():
            rows.commit()
        for events in self._events.values():
            events.commit()

    def close(self) -> None:
        """Write all open parts."""
        self.flush()


def _write(path: Path, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue().to_pybytes())


def _last(part: Path, column: str) -> float:
    values = pq.read_table(part, columns=[column])[column]
    return float(values[-1].as_py()) if len(values) else -1.0


def _highest(part: Path, column: str) -> float:
    highest = pc.max(pq.read_table(part, columns=[column])[column]).as_py()
    return float(highest) if highest is not None else 0.0
