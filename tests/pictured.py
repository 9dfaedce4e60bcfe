"""Runs with a real video behind them: barcode frames that say which they are, and masks of known shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import decode
from pipeline import masks as mask_ops
from pipeline.decode import FrameTable
from pipeline.results import FrameResult
from pipeline.store import Manifest, Run, RunWriter, VideoEntry, open_run
from pipeline.types import BoolArray
from tests.synth import H264, Encoding, barcodes, encode

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"> ' & naïve 猫"
"""A phrase that breaks out of any place where it is not escaped."""
PHRASES = ("red ball", HOSTILE)
SIZE = (192, 320)


@dataclass(frozen=True)
class Footage:
    """A barcode video: how long, how large, how encoded, and at which times."""

    count: int = 40
    size: tuple[int, int] = SIZE
    how: Encoding = H264
    pts: Sequence[int] | None = None
    suffix: str = ".mp4"


def masks_at(frame: int, size: tuple[int, int]) -> dict[int, BoolArray]:
    """Masklet 1 is a moving disc, absent on frame 3; 2 a square on 5..30, away on 12..19; 3 a small one from 20 on."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width] / height
    out: dict[int, BoolArray] = {}
    if frame != 3:
        out[1] = (x - 0.4 - 0.01 * frame) ** 2 + (y - 0.55) ** 2 < 0.03
    if 5 <= frame <= 30 and not 12 <= frame <= 19:
        out[2] = (abs(x - 1.3) < 0.15) & (abs(y - 0.6) < 0.15)
    if frame >= 20:
        out[3] = (abs(x - 0.2) < 0.06) & (abs(y - 0.85) < 0.06)
    return out


def score_of(masklet_id: int, frame: int) -> float:
    """Masklet 1 is unsure on frames 10..14."""
    return 0.3 if masklet_id == 1 and 10 <= frame <= 14 else 0.9 - 0.1 * masklet_id


def rows(table: FrameTable, frames: range, size: tuple[int, int], video_id: str) -> Iterator[FrameResult]:
    """The results of these frames; frames without an object included."""
    for frame in frames:
        found = masks_at(frame, size)
        masks = np.array(list(found.values()), bool).reshape(-1, *size)
        yield FrameResult(
            video_id,
            frame,
            float(table.pts_s[frame]),
            size,
            np.array(list(found), np.int32),
            tuple(PHRASES[1 if i == 3 else 0] for i in found),
            np.array([score_of(i, frame) for i in found], np.float32),
            mask_ops.boxes(masks),
            mask_ops.encode(masks),
        )


def pictured_run(
    folder: Path, videos: Sequence[str] = ("clip",), *, footage: Footage | None = None, sampling: str = "{}"
) -> Run:
    """Write videos into ``folder`` and a run on them into ``folder/run``; ``sampling`` is YAML, as ``stride: 2``."""
    footage = footage or Footage()
    manifest = Manifest("0.0", {"id": "synthetic"}, list(PHRASES), [], "none")
    writer = RunWriter.create(folder / "run", manifest, f"sampling: {{{sampling.strip('{}')}}}\n")
    stride = int(sampling.split("stride:")[1].split(",")[0]) if "stride" in sampling else 1
    for video_id in videos:
        path = folder / f"{video_id}{footage.suffix}"
        encode(path, barcodes(footage.count, size=footage.size), footage.how, footage.pts)
        table = decode.probe(str(path), video_id)
        frames = range(0, len(table), stride)
        with writer.video(video_id, rows_per_part=30, frames_per_part=12) as part:
            for result in rows(table, frames, footage.size, video_id):
                part.write(result)
        writer.end_video(
            VideoEntry(
                video_id,
                str(path),
                "done",
                width=footage.size[1],
                height=footage.size[0],
                fps="30/1",
                num_frames=len(table),
                num_tracked=len(frames),
                num_masklets=3,
                decoder="pyav",
                duration_s=table.info.duration_s,
            )
        )
    writer.manifest.status = "complete"
    writer.save()
    return open_run(folder / "run")
