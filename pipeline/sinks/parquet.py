"""Flat Parquet: ``parquet/masklets.parquet``, a row per masklet and frame, sorted by video, masklet and frame.

The run folder is Parquet already; this is the same in one file, in plain columns that every reader has, the masklet's
rows together. The run lengths are binary. Rates, sizes and lengths of the videos stand in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.masks import areas
from pipeline.sinks.reading import CheckedRun
from pipeline.store import VideoEntry
from pipeline.types import Masklet

SCHEMA_VERSION = 1
"""In the metadata; raised when old readers would misread a new file."""

SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("masklet_id", pa.int32()),
        ("frame", pa.int32()),
        ("pts_s", pa.float64()),
        ("prompt", pa.string()),
        ("score", pa.float32()),
        ("x1", pa.float32()),
        ("y1", pa.float32()),
        ("x2", pa.float32()),
        ("y2", pa.float32()),
        ("area_px", pa.int32()),
        ("rle_height", pa.int32()),
        ("rle_width", pa.int32()),
        ("rle_counts", pa.binary()),
    ]
)

_ROWS_PER_GROUP = 50_000


class Parquet:
    """Writes one file."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """Masklet by masklet, in row groups."""
        videos = {e.video_id: _about(e) for e in run.videos}
        about = {
            "masklet_schema": str(SCHEMA_VERSION),
            "videos": json.dumps(videos),
            "prompts": json.dumps(run.prompts),
        }
        with pq.ParquetWriter(folder / "masklets.parquet", SCHEMA.with_metadata(about), compression="zstd") as writer:
            for group in _groups(run):
                writer.write_table(group)
        return []


def _about(entry: VideoEntry) -> dict[str, object]:
    return {
        "uri": entry.uri,
        "width": entry.width,
        "height": entry.height,
        "fps": entry.fps,
        "num_frames": entry.num_frames,
    }


def _groups(run: CheckedRun) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for entry in run.videos:
        for masklet in run.masklets(entry):
            waiting.append(_table(masklet))
            if sum(len(t) for t in waiting) >= _ROWS_PER_GROUP:
                yield pa.concat_tables(waiting)
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _table(masklet: Masklet) -> pa.Table:
    n = len(masklet)
    height, width = masklet.masks[0].size
    columns = [
        [masklet.video_id] * n,
        [masklet.masklet_id] * n,
        masklet.index,
        masklet.pts_s,
        [masklet.prompt] * n,
        masklet.score,
        *(masklet.xyxy[:, i] for i in range(4)),
        areas(masklet.masks),
        [height] * n,
        [width] * n,
        [rle.counts for rle in masklet.masks],
    ]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)
